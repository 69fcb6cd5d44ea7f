"""What a checkpoint says about itself beyond its weights, and checkpoints of older versions."""

import json

import pytest
import torch
import yaml
from critics_batches import INSTRUCTIONS, make_trainer

from valueguide.critics import scorer
from valueguide.critics.checkpoint import (
    CONFIG,
    MANIFEST,
    TRAINING_STATE,
    _read_config,
    resume_training,
    save_critic,
    save_training,
)
from valueguide.critics.config import CriticSpec
from valueguide.critics.scorer import LearnedCritic
from valueguide.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest") / "critic"
    trainer = make_trainer()
    trainer.spec = CriticSpec(**(vars(trainer.spec) | {"state_names": ("a", "b", "c", "d")}))
    save_critic(folder, trainer, INSTRUCTIONS, {})
    return folder


def test_other_state_names_are_refused_and_unnamed_states_pass(folder):
    critic = LearnedCritic.load(folder)
    assert critic.spec.state_names == ("a", "b", "c", "d")
    critic.check_compatible(state_names=("a", "b", "c", "d"))
    critic.check_compatible(state_names=())
    with pytest.raises(CheckpointError, match="state names: expected .*'a'.* found .*'d'"):
        critic.check_compatible(state_names=("d", "c", "b", "a"))


def test_the_manifest_says_what_made_it(folder):
    assert (
        json.loads((folder / MANIFEST).read_text())["made_with"]["torch"] == torch.__version__.split("+")[0]
    )


def test_instructions_can_be_checked_before_an_episode(folder):
    critic = LearnedCritic.load(folder)
    critic.check_instruction(INSTRUCTIONS[0])

    class FakeEncoder:
        dim = 6

        def encode(self, sentences):
            return torch.eye(6)[[5] * len(sentences)].numpy()

    critic._instructions._encoder = FakeEncoder()
    with pytest.raises(ConfigError, match="'fly'"):
        critic.check_instruction("fly")


def test_vision_features_need_a_tower(folder):
    with pytest.raises(ConfigError, match="vision features: expected frozen_clip, found state"):
        LearnedCritic.load(folder).vision_features({})


def test_a_device_this_machine_lacks_is_refused(folder, monkeypatch):
    monkeypatch.setattr(scorer.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: expected cpu on this machine.*found cuda:1"):
        LearnedCritic.load(folder, device="cuda:1")
    with pytest.raises(ConfigError, match="device: expected cpu or cuda, found 'tpu'"):
        LearnedCritic.load(folder, device="tpu")


def test_configurations_without_newer_fields_are_read(folder, tmp_path):
    raw = yaml.safe_load((folder / CONFIG).read_text())
    del raw["spec"]["state_names"], raw["network"]["dropout"]
    (tmp_path / CONFIG).write_text(yaml.safe_dump(raw))
    spec, network, _ = _read_config(tmp_path / CONFIG)
    assert spec.state_names == () and network.dropout == 0


@pytest.mark.parametrize("change", [{"encoder": "vit"}, {"members": 0}, {"wings": 2}])
def test_impossible_settings_in_a_checkpoint_name_its_file(folder, tmp_path, change):
    raw = yaml.safe_load((folder / CONFIG).read_text())
    raw["network"] |= change
    (tmp_path / CONFIG).write_text(yaml.safe_dump(raw))
    with pytest.raises(CheckpointError, match=f"{CONFIG}: expected a critic configuration"):
        _read_config(tmp_path / CONFIG)


def test_a_run_that_an_older_version_interrupted_is_resumed(tmp_path):
    save_training(tmp_path / "run", make_trainer())
    path = tmp_path / "run" / TRAINING_STATE
    state = json.loads(path.read_text())
    del state["spec"]["state_names"], state["network"]["dropout"]
    path.write_text(json.dumps(state))
    resume_training(tmp_path / "run", make_trainer())
    with pytest.raises(CheckpointError, match="network settings"):
        resume_training(tmp_path / "run", make_trainer(network={"dropout": 0.1}))


@pytest.mark.parametrize("wrong", [{"executed_length": 0}, {"state_names": ("a",)}])
def test_impossible_inputs_are_refused(wrong):
    with pytest.raises(ConfigError, match="critic: (executed steps|state names): expected"):
        CriticSpec(**({"executed_length": 1, "action_names": ("x",), "state_dim": 2} | wrong))
