"""The plans behind recorded steps: where they start, and what they would have done next."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.reader import EpisodeDataset
from valueguide.data.transitions import ChunkTransitions, Labels
from valueguide.errors import DataError
from valueguide.types import Float32

CHUNK_ID, CHUNK_STEP, PLANNED_CHUNK = "vg.chunk_id", "vg.chunk_step", "vg.planned_chunk"


def has_plans(dataset: EpisodeDataset) -> bool:
    """Whether any step of the dataset belongs to a plan."""
    return CHUNK_ID in dataset.features and bool((plan_column(dataset, CHUNK_ID) >= 0).any())


def plan_column(dataset: EpisodeDataset, name: str) -> NDArray[Any]:
    """Raises DataError when the dataset does not record plans."""
    if name not in dataset.features:
        raise DataError(
            f"{dataset.root}: expected the plans that valueguide records (column {name}), found none"
        )
    return np.asarray(dataset.column(name))


def plan_starts(dataset: EpisodeDataset) -> NDArray[np.bool_]:
    """bool (N,): where a plan starts, and every frame that belongs to none."""
    # With prefetch a plan's first steps were committed before it was made, so its first executed step is
    # not its step 0: a plan starts where another chunk, or another episode, ended.
    chunk_id = plan_column(dataset, CHUNK_ID)
    starts = np.ones(len(chunk_id), bool)
    starts[1:] = chunk_id[1:] != chunk_id[:-1]
    starts[np.asarray(dataset.episode_start)] = True
    return starts | (chunk_id < 0)


def planned_chunks(dataset: EpisodeDataset, executed_length: int) -> Float32:
    """float32 (N, E, A): the E steps that were planned from each frame on; NaN where they are not known.

    The rest of the frame's plan. For frames of no plan (a demonstration, a human's steps): what the same
    source went on to do in that episode, the steps after the first success included.
    """
    count = dataset.frames
    endless = Labels(*(np.full(count, value, np.float32) for value in (0.0, 1.0, 0.0)))
    recorded = ChunkTransitions.build(
        endless, dataset.episode_start, dataset.episode_end, executed_length, source=dataset.source
    )
    chunks, valid = recorded.actions(dataset.action, np.arange(count))
    planned = np.where(valid[..., None], chunks, np.float32(np.nan))
    if PLANNED_CHUNK not in dataset.features:
        return planned
    plans = plan_column(dataset, PLANNED_CHUNK).astype(np.float32)
    of_plan = plan_column(dataset, CHUNK_ID) >= 0
    steps = plan_column(dataset, CHUNK_STEP)[:, None] + np.arange(executed_length)
    rest = plans[np.arange(count)[:, None], np.clip(steps, 0, plans.shape[1] - 1)]
    known = (steps >= 0) & (steps < plans.shape[1])
    planned[of_plan] = np.where(known[..., None], rest, np.float32(np.nan))[of_plan]
    return planned
