"""CriticTrainer: what one update does, for every encoder, objective and head."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from critics_batches import make_batch, make_trainer

from valueguide.critics.config import TrainConfig
from valueguide.critics.trainer import CriticTrainer
from valueguide.errors import ConfigError, DataError

KINDS = ("state", "frozen_clip", "small_film_cnn", "resnet34_film")


def _flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("algo", "kind"), [("calql", kind) for kind in KINDS[:3]] + [("iql", kind) for kind in KINDS]
)
def test_one_step_moves_every_network_and_stays_finite(algo, kind):
    trainer = make_trainer(algo, kind, warmup_steps=1)
    before = {name: _flat(module) for name, module in trainer.modules.items()}
    metrics = trainer.update(make_batch(2, kind=kind))
    assert all(math.isfinite(value) for value in metrics.values())
    for name, module in trainer.modules.items():
        assert not torch.equal(_flat(module), before[name]), name
    assert trainer.step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_what_the_encoder_reads_is_refused(kind):
    bare = replace(make_batch(2), environment_state=None, next_environment_state=None)
    wanted = {"state": "environment_state", "frozen_clip": "features"}.get(kind, "images")
    with pytest.raises(DataError, match=f"critic input: {wanted}: expected"):
        make_trainer(kind=kind).update(bare)


@pytest.mark.parametrize("algo", ["iql", "calql"])
def test_what_follows_a_terminal_step_changes_nothing(algo):
    batch = make_batch(6)
    batch = replace(batch, discount=np.zeros(6, np.float32), reward=np.zeros(6, np.float32))
    other = replace(batch, next_environment_state=batch.next_environment_state + 100)
    trainers = [make_trainer(algo, conservative_weight=0.0) for _ in range(2)]
    for trainer, data in zip(trainers, (batch, other), strict=True):
        assert trainer.update(data)["target_mean"] == 0.0
    assert torch.equal(_flat(trainers[0].critic), _flat(trainers[1].critic))


def test_the_backup_reaches_neither_the_target_nor_the_actor():
    trainer = make_trainer("calql")
    seen = {}
    descend = trainer.descend

    def watch(name, loss):
        trainer.modules["actor"].zero_grad(set_to_none=True)
        descend(name, loss)
        seen[name] = [p.grad is not None for p in trainer.modules["actor"].parameters()]

    trainer.descend = watch
    trainer.update(make_batch(4))
    assert not any(seen["critic"]) and not any(seen["temperature"]) and all(seen["actor"])
    assert all(p.grad is None and not p.requires_grad for p in trainer.target.parameters())


def test_the_actor_step_does_not_move_the_critic():
    trainer = make_trainer("calql")
    trainer.update(make_batch(4))
    before = _flat(trainer.critic)
    now = trainer.inputs(make_batch(4), following=False)
    trainer._improve_actor(trainer.critic.encode(now), trainer.actor.gaussian(now))
    assert torch.equal(_flat(trainer.critic), before)


def test_the_iql_value_is_regressed_on_the_minimum_over_the_target_members():
    trainer = make_trainer("iql", warmup_steps=1, critic_rate=1e-2)
    with torch.no_grad():
        trainer.target.head.second.bias[0] += 30.0  # member 0 of the target is wildly different
    batch = make_batch(6)
    inputs = trainer.inputs(batch, following=False)
    with torch.no_grad():
        actions, valid = trainer.normalizers.action(torch.from_numpy(batch.actions)), torch.ones(6, 2).bool()
        q = trainer.target(trainer.target.encode(inputs), actions, valid)
        gap = q.min(0).values - trainer.value(inputs)
    assert (q[0] - q[1]).abs().min() > 1
    expected = (torch.where(gap < 0, 0.3, 0.7) * gap**2).mean()
    assert trainer.update(batch)["value_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_polyak_averaging_moves_the_target_by_its_share():
    trainer = make_trainer(polyak=0.25, warmup_steps=1)
    before = _flat(trainer.target)
    trainer.update(make_batch(4))
    torch.testing.assert_close(_flat(trainer.target), 0.75 * before + 0.25 * _flat(trainer.critic))


def test_warm_up_is_linear_for_critic_and_actor_and_absent_for_the_temperature():
    trainer = make_trainer("calql", warmup_steps=4)
    rates = []
    for step in range(6):
        trainer.update(make_batch(2, seed=step))
        rates.append(
            [trainer.optimisers[n].param_groups[0]["lr"] for n in ("critic", "actor", "temperature")]
        )
    share = np.array([0.25, 0.5, 0.75, 1, 1, 1])
    expected = np.stack([3e-4 * share, 1e-4 * share, np.full(6, 3e-4)], axis=1)
    np.testing.assert_allclose(rates, expected)


def test_gradients_are_clipped_to_their_norm():
    trainer = make_trainer(gradient_clip=0.1)
    trainer.update(make_batch(4))
    norm = torch.cat([p.grad.flatten() for p in trainer.critic.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-3)


def test_swapped_instructions_lead_nowhere():
    trainer = make_trainer("calql", negative_share=1.0, gamma=0.9)
    assert trainer.config.failure_value == pytest.approx(-10)
    batch, zero = make_batch(200), torch.zeros(200)
    now = trainer.inputs(batch, following=False)
    own = now.language
    reward, discount, returns = trainer._negative_instructions(now, batch, zero - 1, zero + 0.9, zero - 2)
    swapped = (now.language != own).any(1)
    assert 0.5 < swapped.float().mean() < 0.85  # a third of the draws hit the same task
    for values, failed, kept in ((reward, -10, -1), (discount, 0, 0.9), (returns, -10, -2)):
        torch.testing.assert_close(values, torch.where(swapped, float(failed), float(kept)))


def test_paraphrases_of_one_task_are_no_negatives():
    trainer = make_trainer(negative_share=1.0)
    trainer.task_of = torch.tensor([0, 0, 0])
    batch = make_batch(50)
    now, zero = trainer.inputs(batch, following=False), torch.zeros(50)
    own = now.language.clone()
    reward, *_ = trainer._negative_instructions(now, batch, zero, zero, zero)
    assert torch.equal(now.language, own) and (reward == 0).all()


def test_negative_instructions_change_the_trained_value_of_a_foreign_task():
    """On trained weights, swapping the instruction must change Q (V-GPS plots this)."""
    trainer = make_trainer(negative_share=0.5, critic_rate=3e-3, warmup_steps=1, polyak=0.2)
    batch = make_batch(64)
    zero = np.zeros(64, np.float32)
    batch = replace(batch, instruction=np.zeros(64, int), discount=zero, reward=zero)
    for _ in range(60):
        trainer.update(batch)
    actions, valid = trainer.normalizers.action(torch.from_numpy(batch.actions)), torch.ones(64, 2).bool()
    with torch.no_grad():
        own, other = (
            trainer.target(trainer.target.encode(trainer.inputs(b, following=False)), actions, valid).mean()
            for b in (batch, replace(batch, instruction=np.ones(64, int)))
        )
    assert own > -15 and other < -25


def test_a_histogram_head_learns_the_reward_of_terminal_steps():
    trainer = make_trainer(network={"bins": 21}, critic_rate=1e-2, warmup_steps=1)
    batch = replace(make_batch(8), discount=np.zeros(8, np.float32), reward=np.full(8, -20, np.float32))
    for _ in range(60):
        metrics = trainer.update(batch)
    assert metrics["q_mean"] == pytest.approx(-20, abs=1)


def test_batches_are_counted_by_the_normaliser_that_serves():
    trainer = make_trainer()
    batch = make_batch(4)
    batch.actions[0, 0, 0] = 0.5  # the range is 0.1
    assert trainer.update(batch)["action_clip_rate"] == pytest.approx(1 / 24)


def test_dropout_leaves_the_target_network_alone():
    trainer = make_trainer(network={"dropout": 0.5})
    trainer.update(make_batch(4))
    inputs = trainer.inputs(make_batch(4), following=False)
    actions, valid = torch.zeros(4, 2, 3), torch.ones(4, 2).bool()
    for network, same in ((trainer.target, True), (trainer.critic, False)):
        first, second = (network(network.encode(inputs), actions, valid) for _ in range(2))
        assert torch.equal(first, second) is same


def test_two_trainers_with_one_seed_are_identical():
    first, second = make_trainer("calql", seed=3), make_trainer("calql", seed=3)
    assert first.update(make_batch(4)) == second.update(make_batch(4))
    assert isinstance(first, CriticTrainer)
    assert make_trainer("calql", seed=4).update(make_batch(4)) != second.update(make_batch(4))


@pytest.mark.parametrize("wrong", [{"algo": "ppo"}, {"gamma": 1.0}, {"gamma": 0.0}])
def test_impossible_training_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="critic: (algo|gamma): expected"):
        TrainConfig(**wrong)


def test_dropout_does_not_reach_the_targets_of_iql():
    targets = []
    for seed in (1, 2):
        trainer = make_trainer("iql", network={"dropout": 0.5})
        torch.manual_seed(seed)
        targets.append(trainer.update(make_batch(4))["target_mean"])
        assert trainer.value.training
    assert targets[0] == targets[1]
