"""Distillation: its losses by hand, the chunks it asks about, and a student that ranks like its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from critics_batches import INSTRUCTIONS, PRIVILEGED, make_batch, make_trainer
from scipy.stats import spearmanr
from torch._subclasses.fake_tensor import FakeTensorMode

from valueguide.critics.checkpoint import save_critic
from valueguide.critics.distill import CriticDistiller, DistillConfig, distillation_losses
from valueguide.critics.scorer import LearnedCritic
from valueguide.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def teacher(tmp_path: Path) -> LearnedCritic:
    save_critic(tmp_path / "teacher", make_trainer("iql", "state", seed=3), INSTRUCTIONS, {})
    return LearnedCritic.load(tmp_path / "teacher")


def _batch(size: int = 32, seed: int = 0):
    """Features that tell the privileged state, which is all that the student may look at."""
    batch = make_batch(size, kind="state", seed=seed)
    return replace(
        batch,
        features=np.concatenate([batch.environment_state, batch.environment_state[:, :2]], axis=1),
    )


def test_losses_by_hand() -> None:
    target = torch.tensor([[0.0, 4.0]])
    # Errors of 1 and -1, then of 2 and 2: the second is wrong by a constant, which changes no choice.
    value, preference = distillation_losses(torch.tensor([[[1.0, 3.0]]]), target)
    assert (float(value), float(preference)) == (1.0, 1.0)
    value, preference = distillation_losses(torch.tensor([[[2.0, 6.0]]]), target)
    assert (float(value), float(preference)) == (4.0, 0.0)


def test_the_chunks_start_with_the_recorded_one_and_stay_in_range(teacher: LearnedCritic) -> None:
    student = make_trainer("distill", "frozen_clip")
    distiller = CriticDistiller(student, teacher, INSTRUCTIONS, DistillConfig(chunks=64))
    actions = torch.from_numpy(_batch().actions)
    chunks = distiller.alternatives(actions)
    assert chunks.shape == (32, 64, 2, 3)
    torch.testing.assert_close(chunks[:, 0], actions)
    assert chunks.abs().max() <= 0.1 + 1e-6  # the range of the actions seen
    same = torch.isclose(chunks, chunks[:, :1]).flatten(2).all(-1)
    assert 0.15 < same.float().mean() < 0.35
    other = torch.isclose(chunks[:, :, None], actions[None, None], atol=1e-6).flatten(3).all(-1).any(-1)
    assert 0.4 < other.float().mean() < 0.6  # the recorded one again, or another row's
    held = torch.isclose(chunks[..., 0, :], chunks[..., 1, :]).any(-1) & ~other
    assert 0.15 < held.float().mean() < 0.4  # one dimension held at one value


def test_a_student_on_a_gpu_asks_about_chunks_there(teacher: LearnedCritic) -> None:
    """Fake tensors have a device and no content, and refuse to be mixed across devices."""
    distiller = CriticDistiller(make_trainer("distill", "frozen_clip"), teacher, INSTRUCTIONS)
    distiller.student.device, distiller.student.generator = torch.device("cuda"), None  # type: ignore[assignment]
    with FakeTensorMode():
        chunks = distiller.alternatives(torch.zeros(4, 2, 3, device="cuda"))
    assert chunks.device.type == "cuda" and chunks.shape == (4, 8, 2, 3)


def test_the_student_learns_to_rank_chunks_like_its_teacher(teacher: LearnedCritic) -> None:
    student = make_trainer(
        "distill", "frozen_clip", network={"hidden": 64}, critic_rate=3e-3, warmup_steps=10, polyak=0.1
    )
    distiller = CriticDistiller(student, teacher, INSTRUCTIONS)
    test = _batch(64, seed=10_000)
    chunks = distiller.alternatives(torch.from_numpy(test.actions))
    wanted = distiller.target(test, chunks)

    def agreement() -> float:
        with torch.no_grad():
            features = student.target.encode(student.inputs(test, following=False))
            q = student.target.score_many(features, student.normalizers.action(chunks)).min(0).values
        return float(np.mean([spearmanr(a, b).statistic for a, b in zip(q, wanted, strict=True)]))

    before = agreement()
    for step in range(400):
        metrics = distiller.update(_batch(seed=step))
    assert before < 0.4 and agreement() > 0.75
    assert student.step == 400 and metrics["preference_loss"] >= 0


def test_shortened_chunks_are_left_out(teacher: LearnedCritic) -> None:
    batch = _batch()
    valid = batch.valid.copy()
    valid[1:, 1] = False
    losses = []
    for actions in (batch.actions, np.concatenate([batch.actions[:1], batch.actions[1:] * 0])):
        distiller = CriticDistiller(make_trainer("distill", "frozen_clip"), teacher, INSTRUCTIONS)
        distiller.config = replace(distiller.config, shift=0.0, jitter=0.0)
        distiller.alternatives = lambda a: a.unsqueeze(1).expand(-1, 2, -1, -1)  # type: ignore[method-assign]
        losses.append(distiller.update(replace(batch, actions=actions, valid=valid))["td_loss"])
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(DataError, match="whole chunks"):
        distiller.update(replace(batch, valid=valid & False))


def test_what_does_not_fit_is_refused(teacher: LearnedCritic, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="executed_length: expected 3, found 2"):
        CriticDistiller(make_trainer("distill", "frozen_clip", steps=3), teacher, INSTRUCTIONS)
    distiller = CriticDistiller(make_trainer("distill", "frozen_clip"), teacher, INSTRUCTIONS)
    with pytest.raises(DataError, match="environment_state"):
        distiller.update(replace(_batch(), environment_state=None))
    with pytest.raises(ConfigError, match="CriticDistiller"):
        distiller.student.update(_batch())
    with pytest.raises(ConfigError, match="chunks"):
        DistillConfig(chunks=1)
    save_critic(tmp_path / "seeing", make_trainer("distill", "small_film_cnn"), INSTRUCTIONS, {})
    seeing = LearnedCritic.load(tmp_path / "seeing")
    with pytest.raises(ConfigError, match="encoder: expected state"):
        seeing.score_states([INSTRUCTIONS[0]], np.zeros((1, 4), np.float32),
                            np.zeros((1, PRIVILEGED), np.float32), torch.zeros(1, 2, 2, 3))  # fmt: skip
