"""How much better an action was than what the policy would do, and the weight that this gives a sample.

ALOE (arXiv 2602.12691): A(s, a) = min over members of Q(s, a) - mean over a' ~ pi(s) of min over members of
Q(s, a'), weight exp(clip(A / beta, -epsilon, epsilon)). No gradient passes to the critic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from valueguide.critics.encoders import Inputs
from valueguide.critics.trainer import CriticTrainer, build_inputs
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.interfaces import BatchProposer
from valueguide.online.examples import PolicyExamples
from valueguide.types import Float32, Observation

#: B observations -> float32 (B, F), the outputs of a frozen vision tower.
FeaturesOf = Callable[[list[Observation]], Float32]
CORRECTIONS = ("advantage", "at_least_one", "one")
_ROWS = 64


@dataclass(frozen=True)
class WeightSettings:
    """beta: an advantage of so much multiplies the weight by e; in units of the standard deviation of all
    advantages, so that it does not depend on the scale of the reward. epsilon: the exponent's bound, so
    weights lie in [exp(-epsilon), exp(epsilon)].
    corrections: weight of a human's steps. "advantage": as all others; "at_least_one": never below 1 (a
        person took over for a reason, as RECAP's rule holds them good); "one": always 1.
    """

    beta: float = 1.0
    epsilon: float = 2.0
    corrections: str = "at_least_one"

    def __post_init__(self) -> None:
        for name in ("beta", "epsilon"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(mismatch("advantage weights", name, "above 0", getattr(self, name)))
        if self.corrections not in CORRECTIONS:
            raise ConfigError(
                mismatch("advantage weights", "corrections", CORRECTIONS, repr(self.corrections))
            )


def advantage_weights(advantage: Float32, correction: NDArray[np.bool_], settings: WeightSettings) -> Float32:
    """float32 (N,). advantage: float32 (N,). correction: bool (N,), a human's steps in a policy's episode.

    Raises DataError for advantages that are not finite.
    """
    if not np.isfinite(advantage).all():
        raise DataError(mismatch("advantage weights", "advantages", "finite numbers", "NaN or infinity"))
    scale = float(advantage.std())
    exponent = advantage / (settings.beta * scale) if scale > 0 else np.zeros_like(advantage)
    weights = np.exp(np.clip(exponent, -settings.epsilon, settings.epsilon)).astype(np.float32)
    if settings.corrections == "one":
        weights[correction] = 1.0
    elif settings.corrections == "at_least_one":
        weights[correction] = np.maximum(weights[correction], 1.0)
    return weights


def effective_sample_size(weights: Float32) -> float:
    """(sum w)^2 / sum w^2 (Kish 1965), in [1, N]: how many equally weighted samples these are worth."""
    total = np.asarray(weights, np.float64)
    return float(total.sum() ** 2 / (total**2).sum())


class Judge(Protocol):
    """Says how good the chunks of examples are in their states, compared with the policy's own."""

    def advantages(self, examples: PolicyExamples) -> Float32: ...


class ObservationInputs:
    """Turns observations into the network inputs of a critic.

    trainer: its normalisers and the embeddings of `instructions`. features: for critics that read pictures
    through a frozen tower, (observations) -> float32 (B, F).
    """

    def __init__(
        self, trainer: CriticTrainer, instructions: list[str], features: FeaturesOf | None = None
    ) -> None:
        self._trainer, self._features = trainer, features
        self._row = {sentence: i for i, sentence in enumerate(instructions)}

    def __call__(self, seen: list[Observation]) -> Inputs:
        """Raises DataError for a sentence without an embedding."""
        trainer = self._trainer
        unknown = next((o.task for o in seen if o.task not in self._row), None)
        if unknown is not None:
            raise DataError(mismatch("critic input", "instruction", "one of the replay's", repr(unknown)))
        numbers = torch.tensor([self._row[o.task] for o in seen], device=trainer.device)
        extra = [o.environment_state for o in seen if o.environment_state is not None]
        return build_inputs(
            trainer.network.encoder,
            trainer.normalizers,
            language=trainer.embeddings[numbers],
            state=np.stack([o.state for o in seen]),
            environment_state=np.stack(extra) if extra else None,
            features=self._features(seen) if self._features is not None else None,
            images={c: np.stack([o.images[c] for o in seen]) for c in trainer.spec.cameras},
        )


class PolicyJudge:
    """ALOE's advantage: Q of what was done, less the mean Q of chunks that the current policy proposes.

    trainer: its target network judges. k: proposals a state. features: as in `ObservationInputs`.
    """

    def __init__(
        self,
        trainer: CriticTrainer,
        instructions: list[str],
        proposer: BatchProposer,
        k: int = 4,
        seed: int = 0,
        features: FeaturesOf | None = None,
    ) -> None:
        self._trainer, self._proposer, self._k, self._seed = trainer, proposer, k, seed
        self._inputs = ObservationInputs(trainer, instructions, features)

    @torch.no_grad()
    def advantages(self, examples: PolicyExamples) -> Float32:
        """float32 (N,). Only the first E steps of a chunk count, and of those the known ones."""
        steps = self._trainer.spec.executed_length
        out = np.empty(len(examples), np.float32)
        for first in range(0, len(examples), _ROWS):
            rows = np.arange(first, min(first + _ROWS, len(examples)))
            seen = examples.observations(rows)
            seeds = np.random.SeedSequence([self._seed, first]).generate_state(len(rows)).astype(np.int64)
            own = self._proposer.propose(seen, self._k, seeds)[:, :, :steps]
            out[rows] = self._judge(seen, examples.chunks[rows, :steps], examples.known[rows, :steps], own)
        return out

    def _judge(
        self, seen: list[Observation], done: Float32, known: NDArray[np.bool_], own: Float32
    ) -> Float32:
        trainer, device = self._trainer, self._trainer.device
        network, normalize = trainer.target, trainer.normalizers.action
        encoded = network.encode(self._inputs(seen))
        valid = torch.from_numpy(known).to(device)
        q = network(encoded, normalize(torch.from_numpy(done).to(device), valid), valid).min(0).values
        value = network.score_many(encoded, normalize(torch.from_numpy(own).to(device))).min(0).values.mean(1)
        return (q - value).cpu().numpy()
