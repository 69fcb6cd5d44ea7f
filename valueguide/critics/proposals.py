"""Chunks of the policy that is steered, handed to every update of the objectives that evaluate it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueguide.critics.config import TrainConfig
from valueguide.errors import DataError, mismatch
from valueguide.types import ChunkBatch, Float32


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Chunks of the policy, physical.

    following: float32 (B, P, E, A), proposed at s'. With `aloe`, rows whose `discount` is 0 may hold
        anything, NaN included: they have no successor.
    current: float32 (B, P, E, A), proposed at s; for Cal-QL with `sampler="proposals"`, ignored by `aloe`.
    """

    following: Float32
    current: Float32 | None = None


def check_proposals(config: TrainConfig, batch: ChunkBatch, proposals: Proposals | None) -> None:
    """Raises DataError when proposals are missing, not wanted, misshapen or (`aloe`) not finite."""
    where, aloe = "critic training", config.algo == "aloe"
    wanted = aloe or (config.algo == "calql" and config.sampler == "proposals")
    if (proposals is not None) != wanted:
        found = "none" if proposals is None else "some"
        raise DataError(mismatch(where, "proposals", "some" if wanted else "none", found))
    if proposals is None:
        return
    rows, steps, size = batch.actions.shape
    used = ({} if aloe else {"current": proposals.current}) | {"following": proposals.following}
    for name, chunks in used.items():
        shape = f"({rows}, P >= 1, {steps}, {size})"
        if chunks is None:
            raise DataError(mismatch(where, f"{name} proposals", shape, "none"))
        if chunks.ndim != 4 or chunks.shape != (rows, max(chunks.shape[1], 1), steps, size):
            raise DataError(mismatch(where, f"{name} proposals", shape, chunks.shape))
    if aloe and not np.isfinite(proposals.following[batch.discount > 0]).all():
        raise DataError(mismatch(where, "following proposals", "finite numbers", "NaN or infinity"))
