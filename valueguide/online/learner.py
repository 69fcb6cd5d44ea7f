"""The critic's learner: chunked TD on a growing replay, with proposals of the current policy as targets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from valueguide.critics.checkpoint import save_critic
from valueguide.critics.config import TrainConfig
from valueguide.critics.trainer import CriticTrainer
from valueguide.data.loader import ObservationKind
from valueguide.errors import ConfigError, mismatch
from valueguide.interfaces import BatchProposer
from valueguide.online.learner_state import resume_learner, save_learner
from valueguide.online.replay import ReplayReader
from valueguide.online.replay_draw import DEFAULT_RATIOS, checked_ratios
from valueguide.online.replay_loader import FeatureSource, Labelling, ReplayLoader
from valueguide.online.segments import Store, TakeoverRule
from valueguide.online.targets import PolicyTargets, TargetBatches
from valueguide.online.vision import FrozenTower
from valueguide.types import ChunkBatch, Float32, Observation

#: The spread limit is this many times the 99.9th percentile of the spread in the replay.
_SPREAD_MARGIN = 2.0
#: Sentences -> float32 (n, L), for instructions that the warm start did not know.
Embed = Callable[[list[str]], Float32]


@dataclass(frozen=True)
class LearnerSettings:
    """proposals: P, chunks of the policy at each successor state. ratios: store -> share of a batch.

    takeover: the reward rule of `segment_transitions`. half_life: segments of rollouts after which one is
    half as likely to be drawn, 0 for uniform. capacity: successor states whose proposals are kept.
    """

    batch_size: int = 256
    proposals: int = 4
    ratios: Mapping[Store, float] = field(default_factory=lambda: dict(DEFAULT_RATIOS))
    takeover: TakeoverRule = "failure"
    half_life: float = 0.0
    capacity: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "proposals": 1, "capacity": 1, "half_life": 0}.items():
            if not getattr(self, name) >= least:
                raise ConfigError(mismatch("learner", name, f"{least} or more", getattr(self, name)))
        checked_ratios(self.ratios)


def online_training(gamma: float, critic_rate: float, backup: str, seed: int) -> TrainConfig:
    """Of a critic that learns while it works: it starts warm, so the rate is reached after 200 steps."""
    return TrainConfig(
        "aloe",
        gamma,
        critic_rate=critic_rate,
        backup=backup,
        weight_decay=1e-2,
        warmup_steps=200,
        seed=seed,
    )


class CriticLearner:
    """Learns from the replay in `root` for as long as it is asked to, and can be stopped at any step.

    Of several processes (`trainer.processes`) each makes a learner with the same arguments and its own
    `journal`; they learn in step, and the one that leads saves and publishes.

    trainer: of algorithm `aloe`, fresh or warm. instructions: what `trainer.embeddings` stand for, extended
    by `embed` when the replay brings new sentences. features: for critics of `frozen_clip`.
    journal: see `ReplayLoader`.
    """

    def __init__(
        self,
        root: str | Path,
        trainer: CriticTrainer,
        instructions: list[str],
        proposer: BatchProposer,
        settings: LearnerSettings,
        *,
        embed: Embed | None = None,
        features: FeatureSource | None = None,
        journal: str | Path | None = None,
    ) -> None:
        if trainer.config.algo != "aloe":
            raise ConfigError(mismatch("learner", "algo", "aloe", trainer.config.algo))
        kind: ObservationKind = {"state": "state", "frozen_clip": "features"}.get(  # type: ignore[assignment]
            trainer.network.encoder, "images"
        )
        self.trainer, self.settings = trainer, settings
        self.reader = ReplayReader(root)
        labelling = Labelling(trainer.spec.executed_length, trainer.config.gamma, takeover=settings.takeover)
        self.loader = ReplayLoader(
            self.reader,
            labelling,
            settings.batch_size,
            settings.seed,
            kind,
            ratios=settings.ratios,
            half_life={"rollout": settings.half_life},
            features=features,
            cameras=tuple(trainer.spec.cameras) or None,
            journal=journal,
            instructions=instructions,
            rows=trainer.processes.share(settings.batch_size),
        )
        self.targets = PolicyTargets(proposer, settings.proposals, settings.seed, capacity=settings.capacity)
        self._embed = embed
        self.seconds = 0.0

    def learn(self, steps: int) -> Generator[dict[str, float]]:
        """Up to the trainer's step `steps`; yields each step's metrics. DataError for an empty replay."""
        self.trainer.check_alike()
        batches = TargetBatches(self.loader.batch, self.targets, self._observe)
        with contextlib.closing(batches.iterate(self.trainer.step)) as items:
            while self.trainer.step < steps:
                began = time.perf_counter()
                batch, proposals = next(items)
                self.set_instructions()
                metrics = self.trainer.update(batch, proposals)
                self.seconds += time.perf_counter() - began
                yield metrics | {"data_wait_share": batches.wait_share}

    def save(self, folder: str | Path) -> None:
        """Everything that `resume` needs to go on bit for bit, what is known of the policy included."""
        save_learner(Path(folder), self)

    def resume(self, folder: str | Path) -> bool:
        """Whether there was something to go on from. Raises CheckpointError when it is not this run's."""
        return resume_learner(Path(folder), self)

    def publish(
        self, folder: str | Path, facts: dict[str, Any] | None = None, tower: FrozenTower | None = None
    ) -> str:
        """Write the critic as it is now, in one step; returns its version.

        tower: what a critic of `frozen_clip` sees with; without it the folder cannot score pictures.
        """
        facts = {
            "gamma": self.trainer.config.gamma,
            "spread_limit": self.spread() * _SPREAD_MARGIN,
            "policy_version": self.targets.proposer.version,
            **(facts or {}),
        }
        sight = (None, None) if tower is None else (tower.module, tower.config)
        return save_critic(Path(folder), self.trainer, self.loader.instructions, facts, *sight)

    @torch.no_grad()
    def spread(self) -> float:
        """99.9th percentile of the ensemble's spread over chunks in the replay."""
        batch, trainer = self.loader.batch(self.trainer.step), self.trainer
        self.set_instructions()
        encoded = trainer.target.encode(trainer.inputs(batch, following=False))
        actions, valid = (torch.from_numpy(a).to(trainer.device) for a in (batch.actions, batch.valid))
        q = trainer.target(encoded, trainer.normalizers.action(actions), valid)
        return float(np.quantile((q.max(0).values - q.min(0).values).cpu().numpy(), 0.999))

    def _observe(self, batch: ChunkBatch, rows: Any) -> list[Observation]:
        assert batch.next_index is not None
        return [self.reader.observation(int(number)) for number in batch.next_index[rows]]

    def set_instructions(self, count: int | None = None) -> None:
        """Give the trainer embeddings of the first `count` of the loader's instructions, by default of all.

        Call it from the thread that learns.
        """
        count = len(self.loader.instructions) if count is None else count
        new = self.loader.instructions[len(self.trainer.embeddings) : count]
        if not new:
            self.trainer.embeddings = self.trainer.embeddings[:count]
            return
        if self._embed is None:
            raise ConfigError(mismatch("learner", "instructions", "known ones, or embed=…", repr(new[0])))
        added = torch.from_numpy(self._embed(new)).to(self.trainer.device)
        self.trainer.embeddings = torch.cat([self.trainer.embeddings, added])
