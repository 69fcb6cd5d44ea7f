"""Checkpoints: relocatable, hashed, and never loaded with a tensor missing or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from valueguide.errors import CheckpointError
from valueguide.policies.checkpoint import MANIFEST, WEIGHTS
from valueguide.policies.load import load_policy, save_policy
from valueguide.testing.tiny_models import (
    POLICY_TYPES,
    TinyPolicy,
    make_tiny_policy,
    shrunken_pi,
    tiny_observation,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    make_tiny_policy("multi_task_dit", root / "assets").save(root / "policy", metadata={"suite": "wxai"})
    return root / "policy"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def sample(policy: Any) -> np.ndarray:
    for seed in range(policy.history):
        policy.observe(tiny_observation(seed))
    return policy.sample(3, 1).actions


@pytest.mark.parametrize("policy_type", POLICY_TYPES)
def test_a_moved_checkpoint_samples_the_same(policy_type: str, tmp_path: Path) -> None:
    tiny = make_tiny_policy(policy_type, tmp_path / "assets")
    expected = sample(tiny.adapter())
    version = tiny.save(tmp_path / "first" / "policy", metadata={"actions": ["dx", "grip"]})
    shutil.move(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "assets", ignore_errors=True)
    with shrunken_pi():
        loaded = load_policy(tmp_path / "second" / "policy")
    np.testing.assert_array_equal(sample(loaded), expected)
    assert loaded.version == version
    assert loaded.metadata == {"actions": ["dx", "grip"]}
    assert not any(p.requires_grad for p in loaded.policy.parameters())
    for file in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), f"{file.name} names a machine path"


def test_backbone_weights_are_stored_once(saved: Path) -> None:
    assert [p.name for p in saved.rglob("*.safetensors") if p.parent.name == "clip"] == []
    assert (saved / "clip" / "tokenizer.json").exists()


def test_a_plain_lerobot_checkpoint_loads(tmp_path: Path) -> None:
    tiny = make_tiny_policy("act", tmp_path / "assets")
    tiny.policy.save_pretrained(tmp_path / "plain")
    tiny.preprocessor.save_pretrained(tmp_path / "plain")
    tiny.postprocessor.save_pretrained(tmp_path / "plain")
    loaded = load_policy(tmp_path / "plain")
    np.testing.assert_array_equal(sample(loaded), sample(tiny.adapter()))
    assert len(loaded.version) == 12 and loaded.metadata == {}


def test_a_saved_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    first = make_tiny_policy("multi_task_dit", tmp_path / "assets")
    old = first.save(tmp_path / "policy")
    (tmp_path / "policy" / "leftover").write_text("")
    new = make_tiny_policy("multi_task_dit", tmp_path / "assets", seed=1).save(tmp_path / "policy")
    assert old != new == load_policy(tmp_path / "policy").version
    assert not (tmp_path / "policy" / "leftover").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["assets", "policy"]


def test_a_failed_save_leaves_the_old_checkpoint(copy: Path, tmp_path: Path) -> None:
    tiny = make_tiny_policy("multi_task_dit", tmp_path / "assets")
    with pytest.raises(TypeError):
        save_policy(*vars(tiny).values(), copy, metadata={"bad": object()})
    load_policy(copy)


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    tiny = make_tiny_policy("multi_task_dit", tmp_path / "assets")
    assert tiny.save(tmp_path / "a") == tiny.save(
        tmp_path / "b", metadata={"note": "metadata is not content"}
    )


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors and drop the manifest, as a foreign tool would."""
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)
    (folder / MANIFEST).unlink()


NAME = "noise_predictor.input_proj.bias"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda s: s.pop(NAME), f"no {NAME}"),
    "unexpected": (lambda s: s.update(other=s[NAME].clone()), "also other"),
    "shape": (lambda s: s.update({NAME: s[NAME][:-1].clone()}), r"expected \(32,\), found \(31,\)"),
    "nan": (lambda s: s[NAME].fill_(float("nan")), "NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_tensors_are_refused(damage: str, copy: Path) -> None:
    edit, message = DAMAGES[damage]
    edit_weights(copy, edit)
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(copy)
    assert str(copy / WEIGHTS) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("policy_type", ["pi0", "pi05", "act"])
def test_missing_and_truncated_weights_are_refused(policy_type: str, tmp_path: Path) -> None:
    """LeRobot returns a randomly initialised pi0 here."""
    make_tiny_policy(policy_type, tmp_path / "assets").save(tmp_path / "policy")
    weights = tmp_path / "policy" / WEIGHTS
    content = weights.read_bytes()
    for manifest in (True, False):
        if not manifest:
            (tmp_path / "policy" / MANIFEST).unlink()
        weights.write_bytes(content[: len(content) // 2])
        with shrunken_pi(), pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_policy(tmp_path / "policy")
        weights.unlink()
        with shrunken_pi(), pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_policy(tmp_path / "policy")


@pytest.mark.parametrize("name", ["config.json", "policy_preprocessor.json", "clip/tokenizer.json"])
def test_edited_and_missing_files_are_refused(name: str, copy: Path) -> None:
    (copy / name).write_text((copy / name).read_text() + " ")
    with pytest.raises(CheckpointError, match=f"{name}.*sha256"):
        load_policy(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*found none"):
        load_policy(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "expected JSON"),
        ("config.json", "[]", "JSON object"),
        ("config.json", '{"type": "no_such_policy"}', "no_such_policy"),
        ("config.json", '{"type": "act", "use_peft": true}', "PEFT"),
        ("policy_postprocessor.json", '{"name": "x", "steps": [{"registry_name": "none"}]}', "processors"),
        ("manifest.json", '{"format": 99}', "format"),
    ],
)
def test_wrong_json_is_refused(name: str, content: str, message: str, copy: Path) -> None:
    (copy / MANIFEST).unlink()
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(copy)
    assert "\n" not in str(error.value)


def test_missing_processor_files_are_refused(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    for file in copy.glob("policy_preprocessor_step*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="processors"):
        load_policy(copy)
    (copy / "policy_preprocessor.json").unlink()
    with pytest.raises(CheckpointError, match="policy_preprocessor.json"):
        load_policy(copy)


@pytest.mark.parametrize("name", ["/no/such/folder", "typo", "a/b/c", "./outputs/policy"])
def test_a_wrong_path_is_one_line(name: str) -> None:
    with pytest.raises(CheckpointError, match="found neither"):
        load_policy(name)


def test_a_hub_id_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="owner/policy: .*reachable Hub repository") as error:
        load_policy("owner/policy")
    assert "\n" not in str(error.value)


def test_a_hub_id_loads_what_the_hub_gives(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        return str(saved)

    monkeypatch.setattr("valueguide.policies.load.snapshot_download", download)
    assert load_policy("owner/policy").metadata == {"suite": "wxai"}
    assert asked == ["owner/policy"]


def test_a_policy_whose_backbone_is_unreachable_is_one_line(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree(copy / "clip")
    (copy / MANIFEST).unlink()
    config = json.loads((copy / "config.json").read_text())
    config["text_encoder_name"] = config["vision_encoder_name"] = "nobody/no-clip-here"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot build a multi_task_dit policy") as error:
        load_policy(copy)
    assert "\n" not in str(error.value)


def test_tiny_policy_is_a_real_lerobot_policy(tmp_path: Path) -> None:
    from lerobot.policies.pretrained import PreTrainedPolicy

    tiny = make_tiny_policy("multi_task_dit", tmp_path)
    assert isinstance(tiny, TinyPolicy) and isinstance(tiny.policy, PreTrainedPolicy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", None), ("version", "zzz"), ("files", None), ("files", ["config.json"]), ("metadata", [1])],
)
def test_a_manifest_of_the_wrong_form_is_refused(field: str, value: Any, copy: Path) -> None:
    """A manifest without hashes would otherwise switch the check off."""
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest[field] = value
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"manifest.json: {field}: expected") as error:
        load_policy(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [None, ["normalizer"], {}])
def test_processor_steps_of_the_wrong_form_are_refused(steps: Any, copy: Path) -> None:
    (copy / MANIFEST).unlink()
    (copy / "policy_preprocessor.json").write_text(json.dumps({"name": "x", "steps": steps}))
    with pytest.raises(CheckpointError, match="policy_preprocessor.json: steps: expected a list"):
        load_policy(copy)
