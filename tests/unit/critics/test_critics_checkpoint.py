"""Checkpoints: exact round trips, exact resume, and one clear error for anything damaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from critics_batches import EMBEDDINGS, INSTRUCTIONS, PRIVILEGED, STATE, make_batch, make_trainer
from safetensors.torch import load_file, save_file

from valueguide.critics.checkpoint import (
    CONFIG,
    MANIFEST,
    TRAINING_STATE,
    TRAINING_TENSORS,
    WEIGHTS,
    LoadedCritic,
    resume_training,
    save_critic,
    save_training,
)
from valueguide.critics.scorer import LearnedCritic
from valueguide.errors import CheckpointError
from valueguide.types import Observation


def _train(trainer, start, stop):
    return [trainer.update(make_batch(seed=step)) for step in range(start, stop)]


def _weights(trainer):
    parts = {**trainer.modules, "target": trainer.target}
    return {f"{n}.{k}": v for n, module in parts.items() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("algo", ["iql", "calql"])
def test_an_interrupted_run_continues_bit_for_bit(algo, tmp_path):
    options = {"network": {"dropout": 0.2}, "negative_share": 0.5, "gradient_clip": 1.0, "weight_decay": 0.01}
    whole = make_trainer(algo, **options)
    metrics = _train(whole, 0, 6)
    half = make_trainer(algo, **options)
    _train(half, 0, 3)
    save_training(tmp_path / "run", half)
    torch.manual_seed(99)
    again = make_trainer(algo, **options)
    _train(again, 7, 9)  # whatever it did before is forgotten
    resume_training(tmp_path / "run", again)
    assert again.step == 3
    assert _train(again, 3, 6) == metrics[3:]
    expected = _weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in _weights(again).items())
    assert not torch.equal(expected["critic.head.out.weight"], half.critic.head.out.weight)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"algo": "calql"}, "train"),
        ({"gamma": 0.9}, "train"),
        ({"steps": 3}, "spec"),
        ({"network": {"members": 3}}, "network"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(other, field, tmp_path):
    save_training(tmp_path / "run", make_trainer())
    with pytest.raises(
        CheckpointError, match=f"{TRAINING_STATE}: {field} settings: expected .*Use a new --out"
    ):
        resume_training(tmp_path / "run", make_trainer(**other))


def test_a_run_on_other_data_is_not_resumed(tmp_path):
    save_training(tmp_path / "run", make_trainer())
    for change in ("scale", "embeddings"):
        other = make_trainer()
        if change == "scale":
            other.normalizers.action.scale = other.normalizers.action.scale * 2
        else:
            other.embeddings = other.embeddings.flip(0)
        with pytest.raises(CheckpointError, match="other normalisers or instructions"):
            resume_training(tmp_path / "run", other)


def test_a_run_is_resumed_on_its_own_kind_of_device_only(tmp_path):
    save_training(tmp_path / "run", make_trainer())
    state = json.loads((tmp_path / "run" / TRAINING_STATE).read_text())
    assert state["device"] == "cpu"
    (tmp_path / "run" / TRAINING_STATE).write_text(json.dumps(state | {"device": "cuda"}))
    with pytest.raises(
        CheckpointError, match="device: expected cuda, found cpu. Continue with --device cuda"
    ):
        resume_training(tmp_path / "run", make_trainer())
    del state["device"]  # as older versions wrote it, which knew the CPU only
    (tmp_path / "run" / TRAINING_STATE).write_text(json.dumps(state))
    resume_training(tmp_path / "run", make_trainer())


def test_a_damaged_training_state_is_refused(tmp_path):
    folder = tmp_path / "run"
    save_training(folder, make_trainer())
    content = (folder / TRAINING_TENSORS).read_bytes()
    (folder / TRAINING_TENSORS).write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=f"{TRAINING_TENSORS}: the content does not match"):
        resume_training(folder, make_trainer())
    state = json.loads((folder / TRAINING_STATE).read_text())
    del state["counts"]
    (folder / TRAINING_STATE).write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=f"{TRAINING_STATE}: field 'counts' is missing"):
        resume_training(folder, make_trainer())
    (folder / TRAINING_STATE).unlink()
    with pytest.raises(CheckpointError, match=TRAINING_STATE):
        resume_training(folder, make_trainer())


@pytest.fixture
def saved(tmp_path):
    """A critic whose target differs from its online network, in `critic`."""
    trainer = make_trainer(polyak=0.5)
    _train(trainer, 0, 2)
    folder = tmp_path / "critic"
    version = save_critic(folder, trainer, INSTRUCTIONS, {"spread_limit": 1.5, "dataset_id": "abc"})
    return trainer, folder, version


def _observation():
    rng = np.random.default_rng(5)
    return Observation(
        images={},
        state=rng.normal(size=STATE).astype(np.float32),
        task=INSTRUCTIONS[1],
        environment_state=rng.normal(size=PRIVILEGED).astype(np.float32),
    )


def test_a_loaded_critic_scores_exactly_like_the_target_network(saved):
    trainer, folder, version = saved
    critic = LearnedCritic.load(folder)
    assert (critic.version, critic.spread_limit, critic.manifest["dataset_id"]) == (version, 1.5, "abc")
    assert (critic.action_dim, critic.executed_length) == (3, 2)
    observation = _observation()
    actions = np.random.default_rng(1).uniform(-0.2, 0.2, (5, 4, 3)).astype(np.float32)
    found = critic.score(critic.encode(observation), actions).q
    batch = replace(
        make_batch(5),
        state=np.tile(observation.state, (5, 1)),
        environment_state=np.tile(observation.environment_state, (5, 1)),
        instruction=np.full(5, 1),
    )
    chunk = trainer.normalizers.action(torch.from_numpy(actions[:, :2]))
    with torch.no_grad():
        inputs = trainer.inputs(batch, following=False)
        valid = torch.ones(5, 2, dtype=torch.bool)
        expected = trainer.target(trainer.target.encode(inputs), chunk, valid).numpy()
        online = trainer.critic(trainer.critic.encode(inputs), chunk, valid).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - online).max() > 1e-4


def test_half_the_size_scores_almost_the_same(saved, tmp_path):
    trainer, folder, _ = saved
    save_critic(tmp_path / "half", trainer, INSTRUCTIONS, {}, half=True)
    sizes = [(place / WEIGHTS).stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    actions = np.random.default_rng(1).uniform(-0.2, 0.2, (5, 4, 3)).astype(np.float32)
    whole, half = (LearnedCritic.load(place) for place in (folder, tmp_path / "half"))
    expected, found = (c.score(c.encode(_observation()), actions).q for c in (whole, half))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert np.abs(found - expected).max() > 0


def test_saving_twice_gives_one_version_and_leaves_one_folder(saved):
    trainer, folder, version = saved
    assert save_critic(folder, trainer, INSTRUCTIONS, {}) == version
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    _train(trainer, 2, 3)
    assert save_critic(folder, trainer, INSTRUCTIONS, {}) != version


def test_a_truncated_weights_file_is_refused(saved):
    _, folder, _ = saved
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: sha256: expected"):
        LearnedCritic.load(folder)
    _record_hashes(folder)  # even when the hash was "repaired"
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: expected complete safetensors"):
        LearnedCritic.load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
def test_a_missing_file_is_named(saved, name):
    _, folder, _ = saved
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        LearnedCritic.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: expected a critic folder"):
        LearnedCritic.load(tmp_path / "nowhere")


def test_an_edited_configuration_is_refused(saved):
    _, folder, _ = saved
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace("executed_length: 2", "executed_length: 3"))
    with pytest.raises(CheckpointError, match=f"{CONFIG}: sha256"):
        LearnedCritic.load(folder)
    _record_hashes(folder)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: shape of head.first.weight"):
        LearnedCritic.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "valueguide-critic-0"),
        ("version", "0123456789ab"),
        ("files", {}),
        ("files", {WEIGHTS: "0" * 64, CONFIG: "0" * 64}),
        ("normalizers", {}),
        ("instructions", ["open the drawer"]),
    ],
)
def test_an_edited_manifest_is_refused(saved, field, value):
    _, folder, _ = saved
    _edit(folder, lambda manifest: manifest.update({field: value}))
    with pytest.raises(CheckpointError, match=f"{MANIFEST}|{WEIGHTS}: sha256"):
        LearnedCritic.load(folder)


def test_an_edited_action_scale_is_refused(saved):
    _, folder, _ = saved
    _edit(folder, lambda manifest: manifest["normalizers"]["action"]["scale"].__setitem__(0, 1.0))
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: normalizers or instructions were changed"):
        LearnedCritic.load(folder)


@pytest.mark.parametrize("field", ["version", "files", "normalizers", "instructions", "format"])
def test_a_missing_manifest_field_is_named(saved, field):
    _, folder, _ = saved
    _edit(folder, lambda manifest: manifest.pop(field))
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: (field )?'?{field}"):
        LearnedCritic.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_an_unreadable_manifest_is_refused(saved, content):
    _, folder, _ = saved
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: expected a JSON"):
        LearnedCritic.load(folder)


def test_manifests_from_before_the_inputs_were_hashed_still_load(saved):
    _, folder, _ = saved
    _edit(folder, lambda manifest: manifest.pop("inputs_sha256"))
    LearnedCritic.load(folder)
    for change, message in (
        (lambda m: m.update(normalizers={}), f"{MANIFEST}: normalizers: .*action"),
        (lambda m: m.update(instructions=["one"]), "one embedding for each instruction"),
    ):
        _edit(folder, change)
        with pytest.raises(CheckpointError, match=message):
            LoadedCritic(folder)
        trainer = make_trainer()
        save_critic(folder, trainer, INSTRUCTIONS, {})
        _edit(folder, lambda manifest: manifest.pop("inputs_sha256"))


def test_missing_and_extra_tensors_are_named(saved):
    _, folder, _ = saved
    tensors = load_file(folder / WEIGHTS)
    tensors["critic.surplus"] = tensors.pop("critic.head.out.bias")
    save_file(tensors, folder / WEIGHTS)
    _record_hashes(folder)
    with pytest.raises(CheckpointError, match=r"missing tensors \['head.out.bias'\].*\['surplus'\]"):
        LearnedCritic.load(folder)


def test_the_folder_holds_nothing_pickled_and_plain_settings(saved):
    _, folder, _ = saved
    assert sorted(p.name for p in folder.iterdir()) == sorted([WEIGHTS, CONFIG, MANIFEST])
    config = yaml.safe_load((folder / CONFIG).read_text())
    assert config["spec"]["action_names"] == ["x", "y", "grip"] and config["train"]["algo"] == "iql"
    assert np.array_equal(load_file(folder / WEIGHTS)["instructions"].numpy(), EMBEDDINGS)


def _edit(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _record_hashes(folder):
    """What somebody would do who edits a checkpoint on purpose."""
    from valueguide.critics.manifest import digest, sha256

    files = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
    _edit(folder, lambda manifest: manifest.update(files=files, version=digest(files)[:12]))
