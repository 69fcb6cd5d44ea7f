"""Batches that mix several datasets in stated shares, again a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.loader import ChunkLoader
from valueguide.data.prefetch import Prefetcher
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import ChunkBatch


class ChunkMixture:
    """Draws every row of a batch from one of `loaders`, whose datasets must agree in all shapes.

    weights: share of the rows that each loader gives, any scale; by default in proportion to their
        transitions, so that every transition is equally likely.
    batch_size, seed: as in `ChunkLoader`; those of the single loaders play no role.
    instructions: the union of the datasets' instructions, which the batches' `instruction` points into.
    ChunkBatch.index and next_index count on through the rows of the datasets (frames, then final
        observations), in the order of `loaders`.
    """

    def __init__(
        self,
        loaders: Sequence[ChunkLoader],
        batch_size: int = 256,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not loaders or batch_size < 1:
            raise ConfigError(
                mismatch("chunk mixture", "loaders and batch size", "1 or more", (len(loaders), batch_size))
            )
        self.loaders = list(loaders)
        self.batch_size = batch_size
        self.seed = seed
        self.instructions = list(dict.fromkeys(text for one in loaders for text in one.instructions))
        self.shares = _shares(self.loaders, weights)
        self._instruction_rows = [
            np.array([self.instructions.index(text) for text in one.instructions]) for one in loaders
        ]
        sizes = [one.dataset.rows for one in loaders]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._prefetcher = Prefetcher(lambda step: self.batch(step))
        first = _shapes(self.loaders[0])
        for one in self.loaders[1:]:
            for name, shape in _shapes(one).items():
                if first[name] != shape:
                    raise DataError(mismatch(str(one.dataset.root), name, first[name], shape))

    def batch(self, step: int) -> ChunkBatch:
        """The batch of training step `step` >= 0: the same for the same seed, in any order of calls."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.loaders), size=self.batch_size, p=self.shares)
        place = rng.random(self.batch_size)
        parts, order = [], []
        for number, loader in enumerate(self.loaders):
            rows = np.flatnonzero(chosen == number)
            if rows.size:
                starts = loader.starts[(place[rows] * len(loader.starts)).astype(np.int64)]
                parts.append(self._common(loader.at(starts), number))
                order.append(rows)
        return _interleave(parts, np.argsort(np.concatenate(order)))

    @property
    def wait_share(self) -> float:
        """Share of the time since `iterate` began that the learner spent waiting for a batch."""
        return self._prefetcher.wait_share

    def iterate(self, start_step: int = 0, prefetch: int = 2) -> Iterator[ChunkBatch]:
        """As `ChunkLoader.iterate`."""
        return self._prefetcher.iterate(start_step, prefetch)

    def _common(self, batch: ChunkBatch, number: int) -> ChunkBatch:
        return replace(
            batch,
            instruction=self._instruction_rows[number][batch.instruction],
            index=batch.index + self._offsets[number],
            next_index=None if batch.next_index is None else batch.next_index + self._offsets[number],
        )


def _shares(loaders: list[ChunkLoader], weights: Sequence[float] | None) -> NDArray[np.float64]:
    values = np.array([len(one.starts) for one in loaders] if weights is None else weights, np.float64)
    if (
        values.shape != (len(loaders),)
        or not np.isfinite(values).all()
        or values.min() < 0
        or not values.any()
    ):
        expected = f"{len(loaders)} numbers of 0 or more, not all 0"
        raise ConfigError(mismatch("chunk mixture", "weights", expected, weights))
    return values / values.sum()


def _shapes(loader: ChunkLoader) -> dict[str, Any]:
    """Field -> shape without the batch dimension, or camera -> shape; what all datasets must share."""
    batch = loader.at(loader.starts[:1])
    found: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, dict):
            found[field.name] = {name: entry.shape[1:] for name, entry in value.items()}
        else:
            found[field.name] = None if value is None else value.shape[1:]
    return found


def _interleave(parts: list[ChunkBatch], order: NDArray[np.int64]) -> ChunkBatch:
    """One batch of all rows of `parts` end to end, taken in `order`."""
    merged: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], dict):
            merged[field.name] = {
                name: np.concatenate([value[name] for value in values])[order] for name in values[0]
            }
        else:
            merged[field.name] = None if values[0] is None else np.concatenate(values)[order]
    return ChunkBatch(**merged)
