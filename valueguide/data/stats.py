"""Per-episode statistics and their running aggregate, by the same formulas as LeRobot's compute_stats.

Quantiles of the aggregate are count-weighted means of the episodes' quantiles, as in LeRobot: cheap,
associative and approximate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.types import UInt8

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED_FRAMES = 24
SAMPLED_SIDE = 160
FeatureStats = dict[str, NDArray[Any]]
Stats = dict[str, FeatureStats]


def array_stats(values: NDArray[Any]) -> FeatureStats:
    """values (N, …, D) or (N,) -> min, max, mean, std, quantiles of shape (D,), count (1,).

    As in LeRobot, all dimensions but the last are pooled, and count is the number of frames. NaN and
    infinity are left out; where nothing else is there, the statistics are 0 and count is 0.
    """
    frames = np.asarray(values, np.float64).reshape(len(values), -1)
    matrix = frames.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    finite = np.isfinite(matrix)
    if finite.all():
        return {**_summary(matrix), "count": np.array([len(frames)])}
    columns = [matrix[finite[:, c], c] if finite[:, c].any() else np.zeros(1) for c in range(matrix.shape[1])]
    parts = [_summary(column[:, None]) for column in columns]
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**pooled, "count": np.array([int(np.isfinite(frames).any(1).sum())])}


def _summary(matrix: NDArray[np.float64]) -> FeatureStats:
    quantiles = np.quantile(matrix, list(QUANTILES.values()), axis=0)
    return {
        "min": matrix.min(0),
        "max": matrix.max(0),
        "mean": matrix.mean(0),
        "std": matrix.std(0),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def image_stats(images: list[UInt8]) -> FeatureStats:
    """Per-channel statistics in [0, 1], shape (3, 1, 1), over a sample of frames and pixels."""
    chosen = np.unique(np.linspace(0, len(images) - 1, SAMPLED_FRAMES).astype(int))
    height, width = images[0].shape[:2]
    stride = max(1, min(height, width) // SAMPLED_SIDE)
    pixels = np.stack([images[i][::stride, ::stride] for i in chosen]).reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
    levels = np.arange(256) / 255.0
    total = len(pixels)
    mean = counts @ levels / total
    cumulative = counts.cumsum(1)
    values = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0.0)),
        **{name: levels[(cumulative >= q * total).argmax(1)] for name, q in QUANTILES.items()},
    }
    shaped: FeatureStats = {name: value.reshape(3, 1, 1) for name, value in values.items()}
    return {**shaped, "count": np.array([len(chosen)])}


def merge(total: Stats, episode: Stats) -> Stats:
    """The statistics of both together; `total` may be empty."""
    return {
        name: _merge_feature(total[name], episode[name])
        if name in total and name in episode
        else total.get(name) or episode[name]
        for name in {**total, **episode}
    }


def _merge_feature(a: FeatureStats, b: FeatureStats) -> FeatureStats:
    count = a["count"] + b["count"]
    if not (a["count"][0] and b["count"][0]):
        return a if a["count"][0] else b
    weight_a, weight_b = a["count"][0] / count[0], b["count"][0] / count[0]
    mean = weight_a * a["mean"] + weight_b * b["mean"]
    variance = weight_a * (a["std"] ** 2 + (a["mean"] - mean) ** 2)
    variance = variance + weight_b * (b["std"] ** 2 + (b["mean"] - mean) ** 2)
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": count,
        **{q: weight_a * a[q] + weight_b * b[q] for q in QUANTILES},
    }


def to_json(stats: Stats) -> dict[str, dict[str, Any]]:
    return {name: {key: value.tolist() for key, value in entry.items()} for name, entry in stats.items()}


def from_json(values: dict[str, dict[str, Any]]) -> Stats:
    """Inverse of `to_json`. LeRobot's own statistics of columns with gaps are NaN: they count as none."""
    stats: Stats = {}
    for name, entry in values.items():
        known = {key: np.array(value) for key, value in entry.items()}
        gaps = not all(np.isfinite(value).all() for value in known.values())
        stats[name] = {key: np.zeros_like(value) for key, value in known.items()} if gaps else known
    return stats


def of_row(row: dict[str, Any]) -> Stats:
    """The statistics in a row of meta/episodes, whose columns are named stats/<feature>/<statistic>."""
    episode: dict[str, dict[str, Any]] = {}
    for key, value in row.items():
        if key.startswith("stats/"):
            name, statistic = key.removeprefix("stats/").rsplit("/", 1)
            episode.setdefault(name, {})[statistic] = value
    return from_json(episode)
