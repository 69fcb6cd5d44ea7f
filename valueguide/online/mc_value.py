"""A state value regressed on the returns that episodes had, and the advantage that follows: the rival of TD.

As in RECAP and advantage-weighted regression (Peng et al. 2019): A(s, a) = G - V(s), where G is the
discounted return of the episode from s on, whoever commanded it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from valueguide.critics.networks import ValueNetwork
from valueguide.critics.trainer import CriticTrainer
from valueguide.errors import DataError, mismatch
from valueguide.online.advantage import FeaturesOf, ObservationInputs
from valueguide.online.examples import PolicyExamples
from valueguide.types import Float32

_ROWS = 1024


@dataclass(frozen=True)
class ValueSettings:
    """Of the regression: AdamW with a constant rate."""

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    seed: int = 0


class MonteCarloValue:
    """V(s, instruction), fitted to the returns of examples; a `Judge` of them.

    like: gives sizes, normalisers and the embeddings of `instructions`; its weights are not used.
    features: as in `ObservationInputs`.
    """

    def __init__(
        self,
        like: CriticTrainer,
        instructions: list[str],
        settings: ValueSettings | None = None,
        features: FeaturesOf | None = None,
    ) -> None:
        self.settings = settings or ValueSettings()
        self._device = like.device
        self._inputs = ObservationInputs(like, instructions, features)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self._network = ValueNetwork(like.spec, like.network).to(like.device)

    def fit(self, examples: PolicyExamples) -> Iterator[tuple[int, float]]:
        """Yields (step, squared error) after each update. Raises DataError when no return is known."""
        settings, known = self.settings, np.flatnonzero(np.isfinite(examples.mc_return))
        if not len(known):
            raise DataError(mismatch("Monte-Carlo value", "examples with a known return", "1 or more", 0))
        # An untrained network says 0; it would take long to learn the mean return, which may be -50.
        middle = float(examples.mc_return[known].mean())
        with torch.no_grad():
            self._network.layers[-1].bias.fill_(middle)
        optimiser = torch.optim.AdamW(
            self._network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for step in range(settings.steps):
                rng = np.random.default_rng([settings.seed, step])
                rows = known[rng.integers(len(known), size=settings.batch_size)]
                target = torch.from_numpy(examples.mc_return[rows]).to(self._device)
                loss = F.mse_loss(self._network(self._inputs(examples.observations(rows))), target)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                yield step, float(loss.detach())

    @torch.no_grad()
    def values(self, examples: PolicyExamples) -> Float32:
        """V of each example's state, float32 (N,)."""
        self._network.eval()
        parts = [np.zeros(0, np.float32)]
        for first in range(0, len(examples), _ROWS):
            rows = np.arange(first, min(first + _ROWS, len(examples)))
            parts.append(self._network(self._inputs(examples.observations(rows))).cpu().numpy())
        return np.concatenate(parts)

    def advantages(self, examples: PolicyExamples) -> Float32:
        """G - V, float32 (N,); 0 where the return is unknown."""
        gap = examples.mc_return - self.values(examples)
        return np.where(np.isfinite(gap), gap, np.float32(0.0)).astype(np.float32)
