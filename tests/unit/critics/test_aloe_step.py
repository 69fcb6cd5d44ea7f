"""One update of the chunked TD objective: its target by hand, what must not leak in, and its checks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from critics_batches import make_batch, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.critics import losses
from valueguide.critics.config import TrainConfig
from valueguide.critics.hl_gauss import HLGauss
from valueguide.critics.proposals import Proposals
from valueguide.errors import ConfigError, DataError

# Two members, two transitions, two proposals: minima over members are [-3, -4] and [-1, -6].
NEXT_Q = torch.tensor([[[-3.0, -2.0], [-1.0, -5.0]], [[-2.0, -4.0], [-0.5, -6.0]]])


def _proposals(rows=4, count=3, steps=2, seed=0):
    chunks = np.random.default_rng(seed).uniform(-0.1, 0.1, (rows, count, steps, 3))
    return Proposals(following=chunks.astype(np.float32))


def _flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("backup", "values"), [("policy", [-3.5, -3.5]), ("best_of_n", [-3.0, -1.0])])
def test_the_target_by_hand(backup, values):
    reward, discount = torch.tensor([-1.0, -2.0]), torch.tensor([0.98, 0.5])
    target = losses.policy_target(reward, discount, NEXT_Q.clone().requires_grad_(), backup)
    assert target.tolist() == pytest.approx([-1 + 0.98 * values[0], -2 + 0.5 * values[1]])
    assert not target.requires_grad


@given(st.sampled_from(["policy", "best_of_n"]), st.sampled_from([0.0, 1e30, math.inf, -math.inf, math.nan]))
@settings(deadline=None, max_examples=20)
def test_a_terminal_target_is_the_reward_whatever_follows(backup, following):
    reward = torch.tensor([0.0, -50.0])
    target = losses.policy_target(reward, torch.zeros(2), torch.full((2, 2, 3), following), backup)
    assert target.tolist() == [0.0, -50.0]


@pytest.mark.parametrize("backup", ["policy", "best_of_n"])
def test_the_update_regresses_on_the_target_networks_value_of_the_proposals(backup):
    trainer, batch, proposals = make_trainer("aloe", backup=backup), make_batch(4), _proposals()
    with torch.no_grad():
        trainer.target.head.first.bias.add_(0.3)  # unlike the network that learns
        features = trainer.target.encode(trainer.inputs(batch, following=True))
        q = trainer.target.score_many(
            features, trainer.normalizers.action(torch.from_numpy(proposals.following))
        )
        mine = trainer.critic(
            trainer.critic.encode(trainer.inputs(batch, following=False)),
            trainer.normalizers.action(torch.from_numpy(batch.actions)),
            torch.from_numpy(batch.valid),
        )
    pessimistic = q.min(0).values
    value = pessimistic.mean(1) if backup == "policy" else pessimistic.max(1).values
    target = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * value
    metrics = trainer.update(batch, proposals)
    assert metrics["target_mean"] == pytest.approx(target.mean().item(), abs=1e-5)
    assert metrics["td_loss"] == pytest.approx(((mine - target) ** 2).mean().item(), rel=1e-4)


@pytest.mark.parametrize("bins", [0, 21])
def test_proposals_of_terminal_rows_leak_nowhere(bins):
    batch, clean = make_batch(4), _proposals()  # the last row is terminal
    results = []
    for junk in (clean.following[-1], np.nan, np.inf, 1e30):
        following = clean.following.copy()
        following[-1] = junk
        trainer = make_trainer("aloe", network={"bins": bins}, warmup_steps=1)
        results.append((trainer.update(batch, Proposals(following=following)), _flat(trainer.critic)))
    for metrics, weights in results[1:]:
        assert metrics == results[0][0] and torch.equal(weights, results[0][1])
    assert torch.isfinite(results[0][1]).all()


def test_a_batch_of_terminal_rows_needs_no_proposals_at_all():
    batch = replace(make_batch(4), discount=np.zeros(4, np.float32))
    nothing = Proposals(following=np.full((4, 1, 2, 3), np.nan, np.float32))
    assert make_trainer("aloe").update(batch, nothing)["target_mean"] == pytest.approx(batch.reward.mean())


def test_swapped_instructions_lead_nowhere_in_aloe_too():
    trainer = make_trainer("aloe", negative_share=1.0, gamma=0.9)
    trainer.task_of = torch.tensor([0, 1, 2])
    target = trainer.update(make_batch(200), _proposals(200))["target_mean"]
    assert target < -0.5 * 10  # two thirds of the rows are worth -1 / (1 - 0.9)


def test_dropout_does_not_touch_the_targets():
    targets = []
    for seed in (1, 2):
        trainer = make_trainer("aloe", network={"dropout": 0.5})
        torch.manual_seed(seed)
        targets.append(trainer.update(make_batch(4), _proposals())["target_mean"])
        assert trainer.critic.training and not trainer.target.training
    assert targets[0] == targets[1]


def test_aloe_trains_the_critic_alone():
    trainer = make_trainer("aloe", warmup_steps=1)
    before, target = _flat(trainer.critic), _flat(trainer.target)
    trainer.update(make_batch(4), _proposals())
    assert set(trainer.modules) == {"critic"} and not torch.equal(_flat(trainer.critic), before)
    torch.testing.assert_close(_flat(trainer.target), target.lerp(_flat(trainer.critic), 0.005))


def test_each_member_regresses_on_one_shared_target():
    trainer = make_trainer(
        "aloe", network={"own_encoders": True, "shared_output": False}, warmup_steps=1, critic_rate=1e-2
    )
    batch, proposals = make_batch(8), _proposals(8)
    for _ in range(300):
        metrics = trainer.update(batch, proposals)
    assert metrics["member_spread"] < 0.05 and metrics["td_loss"] < 0.05


@pytest.mark.parametrize(
    ("proposals", "message"),
    [
        (None, "proposals: expected some, found none"),
        (_proposals(3), r"following proposals: expected \(4, P >= 1, 2, 3\), found \(3"),
        (_proposals(count=0), r"following proposals: .*found \(4, 0, 2, 3\)"),
        (_proposals(steps=1), r"following proposals: .*found \(4, 3, 1, 3\)"),
        (
            Proposals(following=np.full((4, 1, 2, 3), np.nan, np.float32)),
            "following proposals: expected finite",
        ),
    ],
)
def test_proposals_that_do_not_fit_are_refused_before_anything_moves(proposals, message):
    trainer = make_trainer("aloe")
    with pytest.raises(DataError, match=f"critic training: {message}"):
        trainer.update(make_batch(4), proposals)
    assert trainer.step == 0


def test_calql_still_asks_for_proposals_at_the_state_itself():
    with pytest.raises(DataError, match="current proposals: expected .*found none"):
        make_trainer("calql", sampler="proposals").update(make_batch(4), _proposals())


def test_an_unknown_backup_names_itself():
    with pytest.raises(ConfigError, match="critic: backup: expected"):
        TrainConfig("aloe", backup="max")


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 201), st.floats(-1e6, 1e6, width=32), st.sampled_from([-20.0, -50.0, -100.0]))
def test_histogram_targets_are_clamped_and_never_lose_their_mass(bins, value, low):
    """At the very end of the range and far beyond it: a target is a distribution whose mean is the clamped
    value (without padding its mean is 0.69 bins off at the end, and no number 5 bins beyond)."""
    head = HLGauss(bins, low, 0.0)
    for y in (value, low, 0.0):
        mass = head.target(torch.tensor(y))
        assert mass.sum().item() == pytest.approx(1, abs=1e-5)
        width = float(head.edges[1] - head.edges[0])
        assert float(head.edges[-1]) >= 3 * head.sigma - 1e-3 and head.sigma == pytest.approx(
            0.75 * width, rel=1e-4
        )
        assert (mass * head.centres).sum().item() == pytest.approx(min(max(y, low), 0.0), abs=0.02 * width)
