"""How each frame of a dataset ended: read from the recorder's columns, or derived by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.types import SOURCES, Float32

RULE_ALL_SUCCEED = (
    "no outcome columns: every episode counts as a success at its last frame; pass success=… to say otherwise"
)
RULE_COLUMN = (
    "no next.terminated column: episodes whose last next.success is true succeeded, the others were truncated"
)
RULE_ARGUMENT = (
    "no next.terminated column: the success argument says which episodes succeeded, the others were truncated"
)


@dataclass(frozen=True)
class Outcomes:
    """Per-frame arrays (N,), and the rule that was applied ("" when nothing was derived)."""

    reward: Float32
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    source: NDArray[np.int64]
    rule: str


def derive_outcomes(
    columns: dict[str, Any],
    episode_start: NDArray[np.int64],
    episode_end: NDArray[np.int64],
    verdicts: bool | Sequence[bool] | None,
    where: str,
) -> Outcomes:
    """columns: what the dataset has of next.*, intervention and vg.source.

    A plain dataset's last frame ends in success (terminated) or not (truncated: nobody said that
    the episode could not go on). A missing reward is 1 on a successful last frame and 0 elsewhere.
    Without vg.source, intervention frames are "human" and the others "policy"; without either
    column all frames are "expert".
    """
    count = int(episode_end[-1])
    source = _source(columns, count)
    if {"next.terminated", "next.truncated", "next.success"} <= set(columns):
        if verdicts is not None:
            raise DataError(f"{where}: success=… given, but the dataset records outcomes; leave it out")
        terminated, truncated, success = (
            np.asarray(columns[f"next.{name}"], bool) for name in ("terminated", "truncated", "success")
        )
        return Outcomes(_reward(columns, success), terminated, truncated, success, source, "")
    last = episode_end - 1
    if verdicts is not None:
        if np.ndim(verdicts) and np.shape(verdicts) != last.shape:
            expected = f"one value, or one for each of {len(last)} episodes"
            raise DataError(mismatch(where, "success", expected, np.shape(verdicts)))
        won, rule = np.broadcast_to(np.asarray(verdicts, bool), last.shape), RULE_ARGUMENT
    elif "next.success" in columns:
        won, rule = np.asarray(columns["next.success"], bool)[last], RULE_COLUMN
    else:
        won, rule = np.ones(len(last), bool), RULE_ALL_SUCCEED
    terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
    terminated[last], truncated[last] = won, ~won
    success = terminated.copy()
    return Outcomes(_reward(columns, success), terminated, truncated, success, source, rule)


def _reward(columns: dict[str, Any], success: NDArray[np.bool_]) -> Float32:
    values = columns.get("next.reward", success)
    return np.asarray(values, np.float32)


def _source(columns: dict[str, Any], count: int) -> NDArray[np.int64]:
    if "vg.source" in columns:
        return np.asarray(columns["vg.source"], np.int64)
    for name in ("intervention", "complementary_info.is_intervention"):
        if name in columns:
            human = np.asarray(columns[name]).astype(bool)
            return np.where(human, SOURCES.index("human"), SOURCES.index("policy")).astype(np.int64)
    return np.full(count, SOURCES.index("expert"), np.int64)
