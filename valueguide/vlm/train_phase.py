"""How the small vision-language model is trained: settings, and what its two phases share.

First it learns to see (train_sight.py), then to answer (train_answers.py). Both resume exactly.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WARM_UP, _LAST_RATE = 100, 0.02


@dataclass(frozen=True)
class VlmTrainSettings:
    """sight_steps, steps: updates of seeing and of answering. read_steps: of those, the first, in which
    nothing is answered yet and only the read-out of each picture taught. sight_batch: episodes, batch:
    questions an update. sight_rate, rate: highest learning rates; connector_rate: the connector's while
    answering is learned. frames: fewest and most in a question."""

    sight_steps: int = 1000
    read_steps: int = 1000
    steps: int = 4000
    sight_batch: int = 32
    batch: int = 16
    sight_rate: float = 1e-3
    rate: float = 2e-3
    connector_rate: float = 1e-4
    frames: tuple[int, int] = (3, 16)
    dropout: float = 0.1
    weight_decay: float = 0.05
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {**asdict(self), "frames": list(self.frames)}


class Phase:
    """One optimiser over some modules, with warm-up and cosine decay. Everything that is drawn in update
    `step` follows from the seed and `step`, so that a resumed run goes on bit for bit."""

    name = ""

    def __init__(
        self, modules: dict[str, nn.Module], steps: int, rates: dict[str, float], decay: float, seed: int
    ) -> None:
        """rates: the highest learning rate of each module."""
        self.modules, self.steps, self.step = modules, steps, 0
        self._seed = seed
        groups: list[dict[str, Any]] = [
            {"params": [p for p in module.parameters() if p.requires_grad], "highest": rates[name]}
            for name, module in modules.items()
        ]
        self._parameters = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.98))

    def rng(self) -> np.random.Generator:
        """This update's; torch's stream begins anew with it."""
        torch.manual_seed(hash_seed(self._seed, self.name, self.step))
        return np.random.default_rng(hash_seed(self._seed, self.name, self.step))

    def descend(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / min(_WARM_UP, 1 + self.steps // 10))
        decay = _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest"] * warm * decay
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimiser.step()
        self.step += 1


def hash_seed(*parts: object) -> int:
    """63 bits that differ between any two different sequences, on every machine the same."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
