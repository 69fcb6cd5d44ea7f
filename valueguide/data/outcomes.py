"""How each frame of a dataset ended: read from the recorder's columns, or derived by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.types import Float32

RULE_ALL_SUCCEED = (
    "no outcome columns: every episode counts as a success at its last frame; pass success=… to say otherwise"
)
RULE_COLUMN = (
    "no next.terminated column: episodes whose last next.success is true succeeded, the others were truncated"
)
RULE_ARGUMENT = (
    "no next.terminated column: the success argument says which episodes succeeded, the others were truncated"
)
RULE_REWARD = (
    "no outcome columns: as in LeRobot's RL, episodes whose last next.reward is positive succeeded; of the "
    "others, those of an online buffer that are next.done failed and the rest were truncated"
)
RULE_DAGGER = (
    "no outcome columns: LeRobot's DAgger recorder cuts episodes by time, so each counts as truncated; "
    "pass success=… to say otherwise"
)
#: Rules by which nothing that was recorded says how an episode ended.
GUESSES = (RULE_ALL_SUCCEED, RULE_DAGGER)


@dataclass(frozen=True)
class Outcomes:
    """Per-frame arrays (N,), and the rule that was applied ("" when nothing was derived)."""

    reward: Float32
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    rule: str


def derive_outcomes(
    columns: dict[str, Any],
    episode_start: NDArray[np.int64],
    episode_end: NDArray[np.int64],
    verdicts: bool | Sequence[bool] | None,
    where: str,
    convention: str | None = None,
) -> Outcomes:
    """columns: what the dataset has of next.*. convention: see `interventions.convention_of`.

    A plain dataset's last frame ends in success (terminated) or not (truncated: nobody said that
    the episode could not go on). A missing reward is 1 on a successful last frame and 0 elsewhere.

    LeRobot's RL programs reward success only (`InterventionActionProcessorStep` in
    processor/hil_processor.py: reward = float(success)). next.done means terminated in an online buffer
    (`ReplayBuffer.to_lerobot_dataset`), and the end for whatever reason in `gym_manipulator`.
    """
    count = int(episode_end[-1])
    if {"next.terminated", "next.truncated", "next.success"} <= set(columns):
        if verdicts is not None:
            raise DataError(f"{where}: success=… given, but the dataset records outcomes; leave it out")
        terminated, truncated, success = (
            np.asarray(columns[f"next.{name}"], bool) for name in ("terminated", "truncated", "success")
        )
        return Outcomes(_reward(columns, success), terminated, truncated, success, "")
    last = episode_end - 1
    if verdicts is not None:
        if np.ndim(verdicts) and np.shape(verdicts) != last.shape:
            expected = f"one value, or one for each of {len(last)} episodes"
            raise DataError(mismatch(where, "success", expected, np.shape(verdicts)))
        won, rule = np.broadcast_to(np.asarray(verdicts, bool), last.shape), RULE_ARGUMENT
    elif "next.success" in columns:
        won, rule = np.asarray(columns["next.success"], bool)[last], RULE_COLUMN
    elif convention in ("hil_serl", "gym_record") and "next.reward" in columns:
        won, rule = np.asarray(columns["next.reward"])[last] > 0, RULE_REWARD
    elif convention == "dagger":
        won, rule = np.zeros(len(last), bool), RULE_DAGGER
    else:
        won, rule = np.ones(len(last), bool), RULE_ALL_SUCCEED
    terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
    success = np.zeros(count, bool)
    ended = won
    if rule == RULE_REWARD and convention == "hil_serl" and "next.done" in columns:
        ended = won | np.asarray(columns["next.done"], bool)[last]
    success[last], terminated[last], truncated[last] = won, ended, ~ended
    return Outcomes(_reward(columns, success), terminated, truncated, success, rule)


def _reward(columns: dict[str, Any], success: NDArray[np.bool_]) -> Float32:
    values = columns.get("next.reward", success)
    return np.asarray(values, np.float32)
