"""Cal-QL's samples: chunks as long as the data's, and chunks that the steered policy proposed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from critics_batches import make_batch, make_trainer

from valueguide.critics import losses
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.networks import CriticNetwork
from valueguide.critics.proposals import Proposals
from valueguide.errors import ConfigError, DataError


def _proposals(rows=4, count=3, steps=2, seed=0):
    rng = np.random.default_rng(seed)
    current, following = rng.uniform(-0.1, 0.1, (2, rows, count, steps, 3)).astype(np.float32)
    return Proposals(current=current, following=following)


def test_chunks_that_ended_early_have_the_uniform_density_of_their_own_length():
    q = torch.zeros(1, 2, 1)
    returns, nothing = torch.full((2,), -math.inf), torch.full((2, 1), math.inf)  # no policy sample counts
    loss = losses.conservative_loss(torch.zeros(1, 2), q, q, nothing, returns, torch.tensor([3, 6]))
    # log exp(0 - 3 ln 1/2) = 3 ln 2 for the first, 6 ln 2 for the second
    assert loss.item() == pytest.approx((3 + 6) / 2 * math.log(2), rel=1e-6)


def test_what_lies_beyond_an_early_end_changes_no_loss():
    """Samples compete with the data over the same steps: the masked steps of neither are seen."""
    batch = make_batch(4)
    batch.valid[:2, 1] = False
    proposals = _proposals()
    other = replace(proposals, current=proposals.current.copy())
    other.current[:2, :, 1] = 0.07
    results = [make_trainer("calql", sampler="proposals").update(batch, p) for p in (proposals, other)]
    assert results[0]["conservative_loss"] == results[1]["conservative_loss"]
    other.current[2:, :, 1] = 0.07
    seen = make_trainer("calql", sampler="proposals").update(batch, other)
    assert seen["conservative_loss"] != results[0]["conservative_loss"]


def test_the_actors_density_covers_only_the_steps_of_the_data():
    batch = make_batch(2)
    batch.valid[0, 1] = False
    densities = []
    for bias in (-1.0, 0.5):
        trainer = make_trainer("calql")
        with torch.no_grad():
            trainer.actor.log_std.bias[3:] = bias  # how far the second of two steps is spread
            gaussian = trainer.actor.gaussian(trainer.inputs(batch, following=False))
            after = trainer.inputs(batch, following=True)
            *_, density = trainer._policy_chunks(gaussian, after, torch.from_numpy(batch.valid), None)
        densities.append(density)
    assert densities[0].shape == (2, 8)
    assert torch.equal(densities[0][0], densities[1][0])
    assert (densities[0][1] != densities[1][1]).all()


@pytest.mark.parametrize("sampler", ["actor", "proposals"])
def test_the_conservative_loss_is_that_of_the_formula(sampler, monkeypatch):
    """Recomputed from the samples and densities that the trainer handed over, chunk by chunk."""
    trainer, batch = make_trainer("calql", sampler=sampler), make_batch(3)
    batch.valid[0, 1] = False
    given = {}
    original = losses.conservative_loss

    def spy(q_data, q_uniform, q_policy, density, returns, sizes):
        values = {"data": q_data, "uniform": q_uniform, "policy": q_policy}
        given.update({n: q.detach() for n, q in values.items()}, density=density, sizes=sizes)
        return original(q_data, q_uniform, q_policy, density, returns, sizes)

    monkeypatch.setattr(losses, "conservative_loss", spy)
    count = 4 if sampler == "actor" else 3
    metrics = trainer.update(batch, _proposals(3, count) if sampler == "proposals" else None)
    assert given["sizes"].tolist() == [3, 6, 6]
    assert given["uniform"].shape == (2, 3, 4) and given["policy"].shape == (2, 3, 2 * count)
    assert given["density"].shape == (3, 2 * count)
    if sampler == "proposals":
        expected = (given["sizes"] * math.log(0.5))[:, None].expand(3, 2 * count)
        torch.testing.assert_close(given["density"], expected)
    returns, total = batch.mc_return, 0.0
    for member in range(2):
        for row in range(3):
            size = float(given["sizes"][row])
            terms = [float(q) + size * math.log(2) for q in given["uniform"][member, row]]
            terms += [
                max(float(q), float(returns[row])) - float(density)
                for q, density in zip(given["policy"][member, row], given["density"][row], strict=True)
            ]
            total += math.log(sum(map(math.exp, terms))) - float(given["data"][member, row])
    assert metrics["conservative_loss"] == pytest.approx(total / 6, rel=1e-4)


def test_the_backup_takes_the_best_proposal_at_the_successor():
    trainer, batch = make_trainer("calql", sampler="proposals"), make_batch(4)
    proposals = _proposals()
    with torch.no_grad():
        features = trainer.target.encode(trainer.inputs(batch, following=True))
        chunks = trainer.normalizers.action(torch.from_numpy(proposals.following))
        best = trainer.target.score_many(features, chunks).min(0).values.max(1).values
    expected = torch.from_numpy(batch.reward) + torch.from_numpy(batch.discount) * best
    assert trainer.update(batch, proposals)["target_mean"] == pytest.approx(expected.mean().item(), abs=1e-5)


def test_proposals_need_no_actor():
    trainer = make_trainer("calql", sampler="proposals")
    assert set(trainer.modules) == {"critic"}
    metrics = trainer.update(make_batch(4), _proposals())
    assert "actor_loss" not in metrics and all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize(
    ("algo", "sampler", "proposals", "message"),
    [
        ("calql", "proposals", None, "proposals: expected some, found none"),
        ("calql", "actor", _proposals(), "proposals: expected none, found some"),
        ("iql", "actor", _proposals(), "proposals: expected none, found some"),
        ("calql", "proposals", _proposals(3), r"current proposals: expected \(4, P >= 1, 2, 3\), found \(3"),
        ("calql", "proposals", _proposals(count=0), r"current proposals: .*found \(4, 0, 2, 3\)"),
        ("calql", "proposals", replace(_proposals(), following=np.zeros((4, 2, 3))), "following proposals"),
    ],
)
def test_proposals_that_do_not_fit_are_refused_before_anything_moves(algo, sampler, proposals, message):
    trainer = make_trainer(algo, sampler=sampler)
    with pytest.raises(DataError, match=f"critic training: {message}"):
        trainer.update(make_batch(4), proposals)
    assert trainer.step == 0


def test_masked_chunks_score_as_the_network_scores_them_one_by_one():
    network = CriticNetwork(CriticSpec(3, ("x", "y"), 4, 5), NetworkConfig(hidden=16, language_dim=6))
    features, actions = torch.randn(2, network.encoders[0].dim), torch.rand(2, 4, 3, 2) * 2 - 1
    valid = torch.tensor([[True, False, False], [True, True, True]])
    q = network.score_many(features, actions, valid)
    for p in range(4):
        torch.testing.assert_close(q[:, :, p], network(features, actions[:, p], valid))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sampler", "policy"),
        ("expectile", 1.0),
        ("polyak", 0.0),
        ("negative_share", -0.1),
        ("policy_samples", 0),
    ],
)
def test_impossible_settings_name_themselves(setting, value):
    with pytest.raises(ConfigError, match=f"critic: {setting}: expected"):
        TrainConfig(**{setting: value})


@pytest.mark.parametrize(
    ("kind", "message"), [("state", "inputs of state"), ("resnet34_film", "cameras of resnet34_film")]
)
def test_an_encoder_with_nothing_to_see_is_refused(kind, message):
    with pytest.raises(ConfigError, match=f"critic: {message}: expected"):
        CriticNetwork(CriticSpec(1, ("x",), 4), NetworkConfig(kind, use_state=False))
