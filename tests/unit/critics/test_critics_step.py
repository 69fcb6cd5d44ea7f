"""One step of the learner: many chunks scored from one encoding, and losses that stay apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from critics_batches import batch_inputs, make_batch, make_trainer

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.networks import CriticNetwork
from valueguide.errors import DataError


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("options", [{}, {"shared_output": False, "layer_norm": True}, {"bins": 11}])
def test_many_chunks_of_one_encoding_score_as_each_alone(steps, options):
    spec = CriticSpec(steps, ("x", "y", "grip"), 4, 5)
    network = CriticNetwork(spec, NetworkConfig(hidden=16, language_dim=6, members=3, **options))
    features, actions = network.encode(batch_inputs(4)), torch.rand(4, 5, steps, 3) * 2 - 1
    q = network.score_many(features, actions)
    assert q.shape == (3, 4, 5)
    valid = torch.ones(20, steps, dtype=torch.bool)
    alone = network(features.repeat_interleave(5, 0), actions.flatten(0, 1), valid)
    torch.testing.assert_close(q.flatten(1), alone, atol=1e-5, rtol=1e-5)
    (q.square().sum() - alone.square().sum()).backward()  # and so do their gradients
    assert all(p.grad is None or p.grad.abs().max() < 1e-2 for p in network.parameters())


def test_actor_and_critic_learn_from_the_same_weights_of_the_critic():
    trainer = make_trainer("calql", warmup_steps=1)
    order, critic = [], []
    descend = trainer.descend

    def watch(name, loss):
        order.append(name)
        critic.append(trainer.critic.head.first.weight.detach().clone())
        descend(name, loss)

    trainer.descend = watch
    trainer.update(make_batch(4))
    assert order[0] == "actor"
    assert all(torch.equal(weight, critic[0]) for weight in critic)
    assert not torch.equal(trainer.critic.head.first.weight, critic[0])


@pytest.mark.parametrize("algo", ["iql", "calql"])
def test_each_loss_gives_gradients_to_its_own_network_only(algo):
    trainer = make_trainer(algo)
    trainer.update(make_batch(4))
    for module in trainer.modules.values():
        module.zero_grad(set_to_none=True)
    touched = {}
    for name, optimiser in trainer.optimisers.items():
        optimiser.step = lambda *, _name=name, **_: touched.update(
            {_name: {n for n, m in trainer.modules.items() for p in m.parameters() if p.grad is not None}}
        )
        optimiser.zero_grad = lambda **_: [m.zero_grad(set_to_none=True) for m in trainer.modules.values()]
    trainer.update(make_batch(4))
    assert touched == {name: {name} for name in trainer.modules}


@pytest.mark.parametrize("algo", ["iql", "calql"])
@pytest.mark.parametrize("field", ["state", "reward"])
def test_a_loss_that_is_no_number_stops_training_with_its_step(algo, field):
    trainer = make_trainer(algo)
    trainer.update(make_batch(4))
    batch = make_batch(4)
    broken = getattr(batch, field).copy()
    broken[0] = np.nan
    with pytest.raises(DataError, match=r"critic training, step 1: \w+: expected a finite number, found nan"):
        trainer.update(replace(batch, **{field: broken}))


def test_one_member_and_one_transition_are_enough():
    metrics = make_trainer(network={"members": 1}).update(make_batch(1))
    assert metrics["q_std"] == 0 and metrics["member_spread"] == 0


def test_padding_is_no_clipped_action():
    trainer = make_trainer()
    trainer.normalizers.action.offset += np.float32(0.5)  # zeros, the padding, are far outside
    batch = make_batch(2)
    batch.actions[:, 0], batch.actions[:, 1], batch.valid[:, 1] = 0.5, 0.0, False
    assert trainer.update(batch)["action_clip_rate"] == 0


def test_the_backup_of_cal_ql_asks_the_target_network():
    trainer = make_trainer("calql")
    with torch.no_grad():
        trainer.target.head.out.weight.zero_()
        trainer.target.head.out.bias.fill_(-7.0)
    batch = make_batch(4)
    expected = (batch.reward + batch.discount * -7).mean()
    assert trainer.update(batch)["target_mean"] == pytest.approx(expected, abs=1e-5)


def test_uniform_and_policy_samples_are_told_apart(monkeypatch):
    trainer = make_trainer("calql", policy_samples=4)
    with torch.no_grad():
        trainer.actor.mean.bias.fill_(40.0)  # every action of the policy is 1
    # A critic whose value is the mean of the action, so that it shows which samples it was given.
    monkeypatch.setattr(
        trainer.critic, "score_many", lambda _, actions, valid=None: actions.mean((2, 3)).expand(2, -1, -1)
    )
    seen = {}

    def watch(q_data, q_uniform, q_policy, log_density_policy, mc_return, chunk_size):
        seen.update(uniform=q_uniform, policy=q_policy, density=log_density_policy, size=chunk_size)
        return q_data.mean()

    monkeypatch.setattr("valueguide.critics.trainer.losses.conservative_loss", watch)
    trainer.update(make_batch(3))
    assert seen["uniform"].shape == (2, 3, 4) and seen["policy"].shape == (2, 3, 8)
    assert (seen["policy"] > 0.999).all() and (seen["uniform"] < 0.99).all()
    assert seen["density"].shape == (3, 8) and seen["size"].tolist() == [2 * 3] * 3
