"""A policy and a critic that say exactly what a table says, for tests that need every number by hand.

policy = FakeTablePolicy(actions)             # proposes the first K of these chunks
critic = FakeTableCritic([[0.1, 0.9]])        # one member, which prefers candidate 1
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from valueguide.testing.fakes import FakeClock, FakeCritic, FakePolicy
from valueguide.types import Candidates, Float32, Observation, Scores


class FakeTablePolicy(FakePolicy):
    """Proposes the first K of `actions`, float32 (at least K, H, A), whatever it observes."""

    def __init__(self, actions: Float32, clock: FakeClock | None = None, takes_s: float = 0.0) -> None:
        super().__init__(actions.shape[1], actions.shape[2], clock=clock, takes_s=takes_s)
        self._actions = actions

    def sample(self, k: int, seed: int) -> Candidates:
        self.sampled.append((k, seed))
        if self._clock is not None:
            self._clock.advance(self._takes_s)
        return Candidates(self._actions[:k])


class FakeTableCritic(FakeCritic):
    """Gives the scores `q`, (M, K), whatever it is shown. `features` lists what each scoring received."""

    def __init__(
        self,
        q: ArrayLike,
        executed_length: int = 2,
        action_dim: int = 2,
        clock: FakeClock | None = None,
        takes_s: float = 0.0,
    ) -> None:
        super().__init__(executed_length, action_dim, clock=clock, takes_s=takes_s)
        self._q = np.asarray(q, np.float32)
        self.features: list[Observation] = []

    def score(self, features: Observation, actions: Float32) -> Scores:
        self.features.append(features)
        self.scored.append(actions)
        if self._clock is not None:
            self._clock.advance(self._takes_s)
        return Scores(self._q[:, : len(actions)])
