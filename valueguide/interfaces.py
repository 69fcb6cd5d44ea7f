"""What each part must offer. Packages implement these protocols and never import each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from valueguide.types import Candidates, Episode, Float32, Observation, Progress, Scores


@runtime_checkable
class Policy(Protocol):
    """A frozen proposer of action chunks."""

    version: str
    action_dim: int
    horizon: int

    def reset(self) -> None:
        """Forget the observation history; call at the start of an episode."""

    def observe(self, observation: Observation) -> None:
        """Add one control step to the observation history (every step, not only at replans)."""

    def sample(self, k: int, seed: int) -> Candidates:
        """K chunks (K, H, A) for the latest observation; candidate 0 is the policy alone with this seed."""


@runtime_checkable
class BatchProposer(Protocol):
    """A policy without history, asked about many unrelated states at once (a learner's targets)."""

    version: str

    def propose(self, observations: Sequence[Observation], k: int, seeds: NDArray[np.int64]) -> Float32:
        """K chunks for each of B observations, float32 (B, K, H, A), physical.

        seeds: int64 (B,), 0 or more, one a row: row i depends only on observation i and seeds[i].
        """


@runtime_checkable
class Critic(Protocol):
    """Scores action chunks. Action-free work happens once, in `encode`."""

    version: str
    action_dim: int
    executed_length: int

    def encode(self, observation: Observation) -> Any:
        """Run image, state and language once; the result is opaque to the caller."""

    def score(self, features: Any, actions: Float32) -> Scores:
        """actions: float32 (K, H, A), H >= executed_length; the first executed_length steps are scored."""


@runtime_checkable
class BatchScorer(Protocol):
    """A critic asked about many unrelated states at once (a replay of what was logged)."""

    version: str

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        """actions: float32 (B, K, H, A), K chunks for each of B observations. q: float32 (M, B, K)."""


class ProgressEstimator(Protocol):
    """Estimates how far along the task is from frames so far."""

    def estimate(self, observations: list[Observation]) -> Progress: ...


class Robot(Protocol):
    """A robot or its stand-in. Actions are physical; the frame is the robot's base."""

    def observe(self) -> Observation: ...

    def command(self, action: Float32) -> None: ...

    def hold(self) -> None: ...


class EpisodeSink(Protocol):
    """Stores finished episodes. An episode whose `save` returned survives a crash."""

    def save(self, episode: Episode) -> int:
        """Store the episode durably; returns its index."""

    def close(self) -> None: ...
