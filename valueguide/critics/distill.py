"""Teaches a critic that sees pictures to rank chunks like one that sees privileged state.

From pictures a value is hard to learn by temporal differences: success is rare, and what decides it is a
few millimetres. A teacher that learned from privileged state can score any chunk in any recorded state, so
the student gets a dense target on chunks that nobody tried, too. Only training needs the privileged state.
(Asymmetric training as in Pinto et al. 2018, arXiv 1710.06542, and Chen et al. 2020, arXiv 1912.12294.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valueguide.critics.scorer import LearnedCritic
from valueguide.critics.trainer import CriticTrainer
from valueguide.errors import CheckpointError, ConfigError, DataError, mismatch
from valueguide.types import ChunkBatch

_KINDS = 4


@dataclass(frozen=True)
class DistillConfig:
    """chunks: P, scored in each state. shift: standard deviation of what is added to all steps of a chunk,
    jitter: of what is added to each, both in normalised units. preference_weight: of the differences
    between the chunks of one state, which are all that choosing among candidates needs.
    """

    chunks: int = 8
    shift: float = 0.4
    jitter: float = 0.13
    preference_weight: float = 4.0

    def __post_init__(self) -> None:
        if self.chunks < 2:
            raise ConfigError(mismatch("distillation", "chunks", "2 or more", self.chunks))


class CriticDistiller:
    """Trains the critic of a `CriticTrainer` (algo "distill") towards a teacher's pessimistic value.

    instructions: those that `ChunkBatch.instruction` points into.
    """

    def __init__(
        self,
        student: CriticTrainer,
        teacher: LearnedCritic,
        instructions: list[str],
        config: DistillConfig | None = None,
    ) -> None:
        """Raises CheckpointError when teacher and student do not score the same chunks."""
        spec, known = student.spec, teacher.spec
        for name in ("executed_length", "action_names", "state_dim"):
            wanted, found = getattr(spec, name), getattr(known, name)
            if wanted != found:
                raise CheckpointError(mismatch(f"teacher {teacher.version}", name, wanted, found))
        self.student, self.teacher, self.instructions = student, teacher, instructions
        self.config = config or DistillConfig()

    def update(self, batch: ChunkBatch) -> dict[str, float]:
        """One gradient step. Transitions that ended early are left out: candidates are whole chunks.

        Raises DataError when the batch carries no privileged state or no whole chunk.
        """
        student = self.student
        whole = torch.from_numpy(batch.valid.all(axis=1)).to(student.device)
        if not whole.any():
            raise DataError(mismatch("distillation", "whole chunks in a batch", "1 or more", 0))
        chunks = self.alternatives(torch.from_numpy(batch.actions).to(student.device))
        target = self.target(batch, chunks)[whole]
        q = student.critic.score_many(
            student.critic.encode(student.inputs(batch, following=False)), student.normalizers.action(chunks)
        )[:, whole]
        value, preference = distillation_losses(q, target)
        student.descend("critic", value + self.config.preference_weight * preference)
        return student.finish(
            {
                "td_loss": float(value.detach()),
                "preference_loss": float(preference.detach()),
                "q_mean": float(q.detach().mean()),
            }
        )

    def target(self, batch: ChunkBatch, chunks: Tensor) -> Tensor:
        """The teacher's value (B, P) of physical chunks (B, P, E, A): the minimum over its members."""
        if batch.environment_state is None:
            raise DataError(mismatch("distillation", "environment_state", "an array", "none"))
        tasks = [self.instructions[int(i)] for i in batch.instruction]
        q = self.teacher.score_states(tasks, batch.state, batch.environment_state, chunks)
        return q.min(0).values.clone().to(self.student.device)

    def alternatives(self, actions: Tensor) -> Tensor:
        """Physical chunks (B, P, E, A): the recorded one first, then at random the same again, one shifted
        and jittered, another row's, or one with a single action dimension held at a random value.

        actions: (B, E, A), physical, on the student's device.
        """
        normalizer, device = self.student.normalizers.action, self.student.device
        offset, scale = (torch.from_numpy(a).to(device) for a in (normalizer.offset, normalizer.scale))
        random: dict[str, Any] = {"generator": self.student.generator, "device": device}
        rows, steps, size = actions.shape
        count = self.config.chunks
        recorded = ((actions - offset) / scale).unsqueeze(1).expand(-1, count, -1, -1)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, **random)

        moved = (
            recorded
            + self.config.shift * noise(rows, count, 1, size)
            + self.config.jitter * noise(rows, count, steps, size)
        )
        other = recorded[torch.randint(rows, (rows, count), **random), 0]
        held = torch.rand(rows, count, 1, 1, **random) * 2 - 1
        dimension = torch.randint(size, (rows, count, 1, 1), **random)
        fixed = torch.where(torch.arange(size, device=device) == dimension, held, moved)
        kind = torch.randint(_KINDS, (rows, count, 1, 1), **random)
        kind[:, 0] = 0
        chosen = torch.where(kind == 1, moved, recorded)
        chosen = torch.where(kind == 2, other, chosen)
        chosen = torch.where(kind == 3, fixed, chosen)
        return chosen.clamp(-1, 1) * scale + offset


def distillation_losses(q: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the values, and of their differences from the mean of each state's chunks.

    q: (M, B, P). target: (B, P).
    """
    error = q - target
    return (error**2).mean(), ((error - error.mean(-1, keepdim=True)) ** 2).mean()
