"""Policies without a network."""

from __future__ import annotations

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Candidates, Float32, Observation


class UniformRandomPolicy:
    """Chunks drawn uniformly within the action limits: what a critic can do with no proposer.

    Implements `valueguide.interfaces.Policy`. low, high: float32 (A,), physical limits.
    """

    def __init__(self, low: Float32, high: Float32, horizon: int) -> None:
        self._low, self._high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if self._low.ndim != 1 or self._low.shape != self._high.shape:
            raise ConfigError(
                mismatch(
                    "UniformRandomPolicy",
                    "low and high",
                    "two vectors of one length",
                    (self._low.shape, self._high.shape),
                )
            )
        if not (
            np.isfinite(self._low).all() and np.isfinite(self._high).all() and (self._low <= self._high).all()
        ):
            raise ConfigError(mismatch("UniformRandomPolicy", "limits", "finite, low <= high", (low, high)))
        if horizon < 1:
            raise ConfigError(mismatch("UniformRandomPolicy", "horizon", "at least 1", horizon))
        self.horizon, self.action_dim = horizon, len(self._low)
        self.version = "uniform"

    def reset(self) -> None:
        """Nothing to forget."""

    def observe(self, observation: Observation) -> None:
        """The observation does not matter."""

    def sample(self, k: int, seed: int) -> Candidates:
        """float32 (K, H, A). Candidate i depends on the seed and i, not on K."""
        if k < 1:
            raise ConfigError(mismatch("sample", "K", "at least 1 candidate", k))
        unit = np.random.default_rng(seed).random((k, self.horizon, self.action_dim), dtype=np.float32)
        return Candidates(self._low + unit * (self._high - self._low))
