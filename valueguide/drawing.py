"""Candidates drawn into a camera frame, coloured by score; for reports and for live views."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from valueguide.types import Float32, UInt8

_WHITE, _INK, _GREY = (255, 255, 255), (17, 24, 39), (156, 163, 175)
#: The darkest fifth of viridis disappears on a dark table.
_DARKEST = 0.2
#: Fractional bits of OpenCV's drawing coordinates: smooth lines at small sizes.
_SHIFT = 4


def score_colors(values: NDArray[np.floating]) -> UInt8:
    """(K,) scores -> uint8 (K, 3) RGB, viridis from the lowest (violet) to the highest (yellow) score.

    Non-finite scores are grey; when all are equal, every one has the middle colour.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    colors = np.full((len(values), 3), _GREY, np.uint8)
    if not finite.any():
        return colors
    low, span = values[finite].min(), np.ptp(values[finite])
    unit = (values[finite] - low) / span if span > 0 else np.full(finite.sum(), 0.5)
    levels = np.round(255 * (_DARKEST + (1 - _DARKEST) * unit)).astype(np.uint8)
    mapped = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    colors[finite] = mapped
    return colors


def draw_candidates(
    frame: UInt8, lines: Sequence[NDArray[np.floating]], values: Float32 | None, chosen: int, scale: int = 1
) -> UInt8:
    """The frame, enlarged, with one polyline per candidate coloured by score; the chosen one has a dark edge.

    frame: uint8 (H, W, 3). lines: K arrays (n, 2) of pixels in the original frame, x right and y down;
    NaN points are left out. values: (K,) or None when nothing was scored. Returns a new picture
    uint8 (H * scale, W * scale, 3).
    """
    height, width = frame.shape[:2]
    canvas = cv2.resize(frame, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    if not lines:
        return canvas
    colors = np.full((len(lines), 3), 255, np.uint8) if values is None else score_colors(values)
    ranks = np.arange(len(lines)) if values is None else np.nan_to_num(values, nan=-np.inf)
    order = [int(i) for i in np.argsort(ranks, kind="stable") if i != chosen]
    for index in (*order, chosen):
        points = np.asarray(lines[index], np.float64) * scale
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) < 2:
            continue
        color = tuple(int(c) for c in colors[index])
        fixed = np.round(np.clip(points, -1e4, 1e4) * 2**_SHIFT).astype(np.int32)[:, None]
        if index == chosen:
            cv2.polylines(canvas, [fixed], False, _INK, 6, cv2.LINE_AA, _SHIFT)
        cv2.polylines(canvas, [fixed], False, color, 3 if index == chosen else 1, cv2.LINE_AA, _SHIFT)
        tip = (int(fixed[-1, 0, 0]), int(fixed[-1, 0, 1]))
        radius = (4 if index == chosen else 2) << _SHIFT
        cv2.circle(canvas, tip, radius, color, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def draw_scores(frame: UInt8, values: Float32 | None, chosen: int, scale: int = 1) -> UInt8:
    """The frame, enlarged, with one bar per candidate's score: for suites that cannot project a path.

    Bars grow from the lowest finite score; the chosen one is framed. See `draw_candidates`.
    """
    height, width = frame.shape[:2]
    canvas = cv2.resize(frame, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    if values is None or not np.isfinite(values).any():
        return canvas
    floor = canvas.shape[0] - 6
    tallest, step = canvas.shape[0] // 6, min(14, (canvas.shape[1] - 12) // len(values))
    panel = canvas[floor - tallest - 6 : floor + 4, 4 : 12 + step * len(values)]
    panel[:] = (panel * 0.35).astype(np.uint8)
    finite = np.asarray(values)[np.isfinite(values)]
    span = max(float(np.ptp(finite)), 1e-9)
    for index, color in enumerate(score_colors(values)):
        unit = (float(values[index]) - float(finite.min())) / span if np.isfinite(values[index]) else 0.0
        left, top = 8 + index * step, floor - max(2, round(tallest * unit))
        right = left + max(step - 3, 1)
        cv2.rectangle(canvas, (left, top), (right, floor), tuple(int(c) for c in color), -1)
        if index == chosen:
            cv2.rectangle(canvas, (left - 1, top - 1), (right + 1, floor + 1), _WHITE, 1)
    return canvas
