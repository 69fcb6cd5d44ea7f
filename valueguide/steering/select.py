"""Choices that need no critic: the controls that a critic has to beat."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from valueguide.types import Candidates, Float32


class Selector(Protocol):
    """Picks an index without scores."""

    name: str

    def __call__(self, candidates: Candidates, execute: int, seed: int) -> int: ...


class RandomSelector:
    """A uniformly random candidate: any gain of a guided arm over this one is the critic's."""

    name = "random"

    def __call__(self, candidates: Candidates, execute: int, seed: int) -> int:
        return int(np.random.default_rng([1, seed]).integers(candidates.k))


class MedoidSelector:
    """The candidate nearest to all others over the executed steps: what the policy means on average.

    scale: float32 (A,), the size of each action dimension, so that metres and radians compare.
    """

    name = "medoid"

    def __init__(self, scale: Float32) -> None:
        self._scale = np.asarray(scale, np.float32)

    def __call__(self, candidates: Candidates, execute: int, seed: int) -> int:
        flat = (candidates.actions[:, :execute] / self._scale).reshape(candidates.k, -1)
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
        return int(distances.sum(axis=1).argmin())
