"""Puts the actions already committed in front of every candidate, so that what is scored is what runs.

While a policy thinks, the arm runs the rest of the last chunk. Counted from the observation, the arm
will have executed `committed` and then the candidate's remaining steps: exactly that is scored.
"""

from __future__ import annotations

import numpy as np

from valueguide.errors import DataError, mismatch
from valueguide.types import Candidates, Float32


def splice(candidates: Candidates, committed: Float32, *, absolute: bool, blend: int = 3) -> Candidates:
    """committed: float32 (D, A), D < H, replaces the first D steps of each of the K candidates.

    absolute: the actions are positions, so a candidate is moved to start where the committed actions
    end; the shift fades over `blend` steps. Deltas need none: they start wherever the arm is.
    Raises DataError when sizes differ or nothing of a candidate would be left.
    """
    committed = np.asarray(committed, np.float32)
    k, horizon, dim = candidates.actions.shape
    if committed.ndim != 2 or committed.shape[1] != dim:
        raise DataError(mismatch("committed actions", "shape", f"(D, {dim})", committed.shape))
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
    actions[:, :count] = committed
    return Candidates(actions)
