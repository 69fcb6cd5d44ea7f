"""A policy and a critic that say exactly what a table says, for tests that need every number by hand.

policy = FakeTablePolicy(actions)             # proposes the first K of these chunks
critic = FakeTableCritic([[0.1, 0.9]])        # one member, which prefers candidate 1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


class FakeTableProposer:
    """Proposes in state s the first K of `plans[s]`, float32 (states, at least K, H, A), whatever the seeds.

    The state is the first number of the proprioception. Listing a chunk twice doubles its probability, so
    that the mean over all of them is an exact expectation.
    """

    def __init__(self, plans: Float32, version: str = "table-1") -> None:
        self.plans, self.version = plans, version

    def propose(self, observations: Sequence[Observation], k: int, seeds: NDArray[np.int64]) -> Float32:
        return self.plans[[int(observation.state[0]) for observation in observations], :k]


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
