"""A warm start begins where the critic stood, whatever trained it."""

import dataclasses

import numpy as np
import pytest
import torch
from critics_batches import INSTRUCTIONS, make_batch, make_trainer

from valueguide.critics.checkpoint import LoadedCritic, save_critic
from valueguide.critics.config import TrainConfig
from valueguide.critics.proposals import Proposals
from valueguide.critics.warm_start import check_spec, keep_instructions, trainer_from
from valueguide.errors import ConfigError


def test_values_instructions_and_normalisers_carry_over_and_learning_goes_on(tmp_path):
    old = make_trainer("iql")
    for step in range(3):
        old.update(make_batch(seed=step))
    save_critic(tmp_path / "critic", old, INSTRUCTIONS, {})
    loaded = LoadedCritic(tmp_path / "critic")
    new = trainer_from(loaded, TrainConfig(algo="aloe", warmup_steps=1))
    batch = make_batch(seed=9)
    actions, valid = torch.from_numpy(batch.actions), torch.from_numpy(batch.valid)

    def q(trainer, network):
        encoded = network.encode(trainer.inputs(batch, following=False))
        return network(encoded, trainer.normalizers.action(actions), valid)

    expected = q(old, old.target)
    assert torch.equal(q(new, new.critic.eval()), expected) and torch.equal(q(new, new.target), expected)
    assert new.step == 0 and torch.equal(new.embeddings, old.embeddings)
    proposals = np.zeros((len(batch.reward), 2, *batch.actions.shape[1:]), np.float32)
    new.critic.train()
    new.update(batch, Proposals(following=proposals))
    assert not torch.equal(q(new, new.critic.eval()), expected)
    # The loaded critic is a copy of its own: training does not change it.
    assert torch.equal(loaded.network.state_dict()["head.first.weight"], old.target.head.first.weight)


def _loaded(tmp_path, **facts):
    save_critic(tmp_path / "critic", make_trainer("iql"), INSTRUCTIONS, facts)
    return LoadedCritic(tmp_path / "critic")


def test_known_instructions_keep_their_embeddings_in_any_order_and_new_ones_are_embedded(tmp_path):
    loaded = _loaded(tmp_path)
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.full((len(texts), loaded.embeddings.shape[1]), 7.0, np.float32)

    config, wanted = TrainConfig(algo="iql"), [INSTRUCTIONS[1], "wave", INSTRUCTIONS[0], "wave"]
    trainer = trainer_from(loaded, config, instructions=wanted, embed=embed, task_of=np.array([3, 1, 3, 1]))
    assert asked == ["wave"] and trainer.task_of.tolist() == [3, 1, 3, 1]
    np.testing.assert_array_equal(trainer.embeddings[0], loaded.embeddings[1])
    np.testing.assert_array_equal(trainer.embeddings[2], loaded.embeddings[0])
    assert (trainer.embeddings[[1, 3]] == 7.0).all()

    known = trainer_from(loaded, config, instructions=[INSTRUCTIONS[1]])
    assert keep_instructions(known, [INSTRUCTIONS[1]], loaded) == [
        INSTRUCTIONS[1],
        *INSTRUCTIONS[:1],
        *INSTRUCTIONS[2:],
    ]
    np.testing.assert_array_equal(known.embeddings[0], loaded.embeddings[1])
    np.testing.assert_array_equal(known.embeddings[1], loaded.embeddings[0])
    assert len(known.embeddings) == len(loaded.embeddings)


def test_an_instruction_nobody_can_embed_is_refused_and_so_are_embeddings_of_another_length(tmp_path):
    loaded, config = _loaded(tmp_path), TrainConfig(algo="iql")
    with pytest.raises(ConfigError, match=r"instructions: expected known ones, or embed=…, found 'wave'"):
        trainer_from(loaded, config, instructions=["wave"])
    with pytest.raises(ConfigError, match=r"embeddings: expected \(1, \d+\), found \(1, 3\)"):
        trainer_from(loaded, config, instructions=["wave"], embed=lambda texts: np.zeros((1, 3), np.float32))


def test_two_trainers_of_one_critic_count_their_clipped_actions_apart(tmp_path):
    loaded = _loaded(tmp_path)
    first, second = (trainer_from(loaded, TrainConfig(algo="iql")) for _ in range(2))
    first.normalizers.action(torch.full((4, first.spec.action_dim), 99.0))
    assert first.normalizers.action.clip_rate == 1.0
    assert second.normalizers.action.seen == loaded.normalizers.action.seen == 0


@pytest.mark.parametrize("algo", ["iql", "calql", "aloe", "distill"])
def test_every_algorithm_can_start_from_it(tmp_path, algo):
    loaded = _loaded(tmp_path)
    trainer = trainer_from(loaded, TrainConfig(algo=algo))
    for network in (trainer.critic, trainer.target):
        for name, value in loaded.network.state_dict().items():
            assert torch.equal(network.state_dict()[name], value)


@pytest.mark.parametrize(
    "change",
    [
        {"executed_length": 3},
        {"action_names": ("other",)},
        {"state_dim": 9, "state_names": ()},
        {"environment_state_dim": 9},
        {"cameras": {"front": (8, 8)}},
        {"state_names": ("other",) * make_trainer("iql").spec.state_dim},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_inputs_are_refused_by_name(tmp_path, change):
    loaded = _loaded(tmp_path)
    names = tuple(f"s{i}" for i in range(loaded.spec.state_dim))
    loaded.spec = dataclasses.replace(loaded.spec, state_names=names)
    check_spec(loaded, loaded.spec, "--init")
    check_spec(loaded, dataclasses.replace(loaded.spec, state_names=()), "--init")
    with pytest.raises(
        ConfigError, match=f"^--init: {next(iter(change))}: expected .*, as in the data, found"
    ):
        check_spec(loaded, dataclasses.replace(loaded.spec, **change), "--init")
