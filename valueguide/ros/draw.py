"""The annotated picture: candidate paths coloured by score, and in words what the robot does and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from valueguide.drawing import draw_candidates, draw_scores
from valueguide.ros.urdf import UrdfChain
from valueguide.safety.limits import ActionKind
from valueguide.types import Float32, UInt8

#: Small pictures are enlarged by a whole number to at least this many pixels of width, so that text fits.
_WIDTH = 480
_ROW, _MARGIN, _SIZE = 20, 6, 0.45
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PANEL, _TEXT, _ALARM, _WARN = (17, 24, 39), (229, 231, 235), (248, 113, 113), (251, 191, 36)
_SAFETY = ("ok", "holding", "STOPPED")


@dataclass(frozen=True)
class Plan:
    """What was decided last. paths: K arrays (n, 3), metres, robot's frame; empty when unknown.

    values: (K,) scores, or None. chosen: index of the candidate that runs.
    """

    paths: list[Float32] = field(default_factory=list)
    values: Float32 | None = None
    chosen: int = 0
    reason: str = ""


@dataclass
class Status:
    """What the words say. safety: number of valueguide_msgs/SafetyState, -1 before it was heard."""

    instruction: str = ""
    commander: str = "unknown"
    safety: int = -1
    safety_reason: str = ""

    def lines(self, plan: Plan | None) -> list[tuple[str, tuple[int, int, int]]]:
        """Text and colour, one a row."""
        rows = [(self.instruction or "no task", _TEXT)]
        if plan is not None:
            score = "" if plan.values is None else f", score {plan.values[plan.chosen]:.3f}"
            rows.append((f"candidate {plan.chosen}: {plan.reason}{score}", _TEXT))
        rows.append((f"commands: {self.commander}", _WARN if self.commander.startswith("human") else _TEXT))
        name = _SAFETY[self.safety] if 0 <= self.safety < len(_SAFETY) else "not heard"
        color = _TEXT if self.safety == 0 else _ALARM if self.safety == 2 else _WARN
        rows.append((f"safety: {name} {self.safety_reason}".rstrip(), color))
        return rows


def hand_paths(
    actions: Float32, kind: ActionKind, start: Float32 | None, chain: UrdfChain | None
) -> list[Float32] | None:
    """Where each candidate would take the hand: K arrays (n, 3), metres, frame of `start` or of the chain.

    actions: (K, H, A). `cartesian_delta` adds up from start, (3,); `joint_position` needs the chain. None
    where these are missing. A path ends before its first step that is not finite.
    """
    if kind == "cartesian_delta":
        if start is None or not np.isfinite(start).all():
            return None
        steps = np.asarray(actions[:, :, :3], np.float64)
        paths = np.concatenate([np.zeros_like(steps[:, :1]), np.cumsum(steps, axis=1)], axis=1) + start
    elif chain is not None:
        k, horizon, size = actions.shape
        paths = chain.position(actions[:, :, :-1].reshape(-1, size - 1)).reshape(k, horizon, 3)
    else:
        return None
    return [_finite(path) for path in np.asarray(paths, np.float32)]


def _finite(path: Float32) -> Float32:
    good = np.isfinite(path).all(axis=1)
    return path if good.all() else path[: int(np.argmin(good))]


def annotate(
    frame: UInt8,
    lines: Sequence[NDArray[np.floating]] | None,
    plan: Plan | None,
    rows: Sequence[tuple[str, tuple[int, int, int]]],
) -> UInt8:
    """The frame, enlarged where it is small, with the plan drawn in and rows of text below.

    frame: uint8 (H, W, 3) RGB. lines: of each of the plan's paths, pixels (n, 2); None where they cannot be
    projected: the scores are then shown as bars. Returns a new uint8 picture, RGB.
    """
    scale = max(1, -(-_WIDTH // frame.shape[1]))
    if plan is not None and lines is None:
        picture = draw_scores(frame, plan.values, plan.chosen, scale)
    else:
        chosen, values = (plan.chosen, plan.values) if plan is not None else (0, None)
        picture = draw_candidates(frame, lines or [], values, chosen, scale)
    panel = np.full((len(rows) * _ROW + 2 * _MARGIN, picture.shape[1], 3), _PANEL, np.uint8)
    for number, (text, color) in enumerate(rows):
        place = (_MARGIN, _MARGIN + number * _ROW + 14)
        cv2.putText(panel, _cut(text, panel.shape[1]), place, _FONT, _SIZE, color, 1, cv2.LINE_AA)
    return np.vstack([picture, panel])


def _cut(text: str, width: int) -> str:
    """As much of the text as fits; OpenCV draws ASCII only."""
    text = text.encode("ascii", "replace").decode()
    while text and cv2.getTextSize(text, _FONT, _SIZE, 1)[0][0] > width - 2 * _MARGIN:
        text = text[:-1]
    return text
