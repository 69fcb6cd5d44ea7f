"""Puts the actions already committed in front of every candidate, so that what is scored is what runs.

While a policy thinks, the arm runs the rest of the last chunk. Counted from the observation, the arm
will have executed `committed` and then the candidate's remaining steps: exactly that is scored.

A candidate of increments leads along a path from where the arm was seen. Cut off its first steps, and what
they were to correct is never corrected: with every chunk asked for ahead of time, the arm would keep the
same error for ever. So the steps that are left catch up with the candidate's own path; not in one step, or
the arm would jump from one candidate's way to another's and press hard on what it touches (docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from valueguide.errors import DataError, mismatch
from valueguide.types import Candidates, Float32


def increments(low: Float32, high: Float32, kept: Sequence[int]) -> Float32:
    """For `splice`: float32 (2, A) from limits (A,). kept: dimensions that do not add, as a gripper's."""
    limits = np.stack([low, high]).astype(np.float32)
    limits[:, list(kept)] = 0.0
    return limits


def gripper_dimensions(names: Sequence[str]) -> tuple[int, ...]:
    """`kept` for `increments`, from the actions' names: of increments a gripper's opening alone is none."""
    return tuple(i for i, name in enumerate(names) if name.startswith("grip"))


def splice(
    candidates: Candidates,
    committed: Float32,
    *,
    absolute: bool,
    blend: int = 3,
    increments: Float32 | None = None,
) -> Candidates:
    """committed: float32 (D, A), D < H, replaces the first D steps of each of the K candidates.

    absolute: the actions are positions, so a candidate is moved to start where the committed actions
    end; the shift fades evenly over `blend` steps, and is gone in the one after them.
    increments: float32 (2, A), the lowest and highest value in one step of each dimension that adds to the
    last; a dimension that does not, such as a gripper's opening, has 0 and 0. What the committed actions
    lack of the candidate's way is made up for by its next steps likewise; what these limits keep from them
    by the steps after.
    Raises DataError when sizes differ or nothing of a candidate would be left.
    """
    committed = np.asarray(committed, np.float32)
    k, horizon, dim = candidates.actions.shape
    if committed.ndim != 2 or committed.shape[1] != dim:
        raise DataError(mismatch("committed actions", "shape", f"(D, {dim})", committed.shape))
    if increments is not None and np.shape(increments) != (2, dim):
        raise DataError(mismatch("increments", "shape", f"(2, {dim})", np.shape(increments)))
    count = len(committed)
    if count == 0:
        return candidates
    if count >= horizon:
        raise DataError(mismatch("committed actions", "count", f"fewer than the horizon {horizon}", count))
    actions = candidates.actions.copy()
    if absolute and blend > 0:
        shift = committed[-1] - actions[:, count - 1]
        steps = min(blend, horizon - count)
        fade = 1 - np.arange(1, steps + 1, dtype=np.float32) / (blend + 1)
        actions[:, count : count + steps] += fade[None, :, None] * shift[:, None]
    if increments is not None:
        _catch_up(actions, committed, increments, blend)
    actions[:, :count] = committed
    return Candidates(actions)


def _catch_up(actions: Float32, committed: Float32, increments: Float32, blend: int) -> None:
    """Changes the steps of `actions` (K, H, A) after the committed ones so that they return to their path."""
    low, high = np.asarray(increments, np.float32)
    adds = low < high
    count = len(committed)
    behind = np.where(adds, actions[:, :count].sum(axis=1) - committed.sum(axis=0), 0.0)
    for step in range(count, actions.shape[1]):
        planned, share = actions[:, step].copy(), behind / max(1, blend + 1 - (step - count))
        # A step beyond the limits would be cut down to them anyway, and what is cut off be lost.
        actions[:, step] = np.where(adds, np.clip(planned + share, low, high), planned)
        behind += planned - actions[:, step]
