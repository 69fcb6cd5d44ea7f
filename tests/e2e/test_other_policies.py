"""A second base policy, trained by LeRobot's own command on our dataset, under a critic that never saw it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sim.wordings import corpus
from valueguide.cli.main import main
from valueguide.policies.clip_assets import build_clip_folder
from valueguide.testing.tiny_models import build_smolvlm_folder

TASK = "press_button"


def _run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


def _lerobot_train(dataset: Path, out: Path, *policy: str) -> Path:
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", "--dataset.repo_id=local/demos",
               f"--dataset.root={dataset}", "--policy.device=cpu", "--policy.push_to_hub=false",
               "--batch_size=8", "--steps=12", "--save_freq=12", "--num_workers=0", f"--output_dir={out}",
               *policy]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / "checkpoints" / "last" / "pretrained_model"


def _evaluate(root: Path, suite: str, policy: Path, critic: Path) -> dict:
    out = root / f"eval-{policy.parents[2].name}"
    _run("eval", "--suite", suite, "--tasks", TASK, "--policy", str(policy), "--critic", str(critic), "--k",
         "3", "--arms", "base,guided", "--episodes", "1", "--seed", "70", "--videos", "0", "--workers", "1",
         "--out", str(out))  # fmt: skip
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_a_tiny_smolvla_is_trained_by_lerobot_and_guided(tmp_path: Path) -> None:
    dataset, critic = tmp_path / "demos", tmp_path / "critic"
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 128, "patch_size": 32}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 32}  # fmt: skip
    build_clip_folder(tmp_path / "backbone" / "clip", corpus()[:300], vision, text, vocab_size=400, seed=0)
    _run("collect", "--suite", "wxai", "--tasks", TASK, "--episodes", "2", "--workers", "1",
         "--out", str(dataset))  # fmt: skip
    _run("train", "critic", "--dataset", str(dataset), "--backbone", str(tmp_path / "backbone"), "--steps",
         "10", "--batch-size", "16", "--out", str(critic))  # fmt: skip
    policy = _lerobot_train(
        dataset, tmp_path / "smolvla", "--policy.type=smolvla",
        f"--policy.vlm_model_name={build_smolvlm_folder(tmp_path / 'smolvlm')}",
        "--policy.load_vlm_weights=false", "--policy.num_vlm_layers=4", "--policy.chunk_size=8",
        "--policy.n_action_steps=8", "--policy.max_state_dim=8", "--policy.max_action_dim=8",
        "--policy.resize_imgs_with_padding=[64,64]", "--policy.tokenizer_max_length=24",
    )  # fmt: skip
    results = _evaluate(tmp_path, "wxai", policy, critic)
    assert {name: arm["n"] for name, arm in results["arms"].items()} == {"base": 1, "guided": 1}
    assert results["reasons"]["guided"].get("argmax", 0) > 0


@pytest.mark.slow
def test_a_diffusion_policy_is_trained_by_lerobot_and_guided(tmp_path: Path) -> None:
    dataset, critic = tmp_path / "demos", tmp_path / "critic"
    _run("collect", "--suite", "wxai-state", "--tasks", TASK, "--episodes", "3", "--workers", "1",
         "--out", str(dataset))  # fmt: skip
    _run("train", "critic", "--dataset", str(dataset), "--steps", "10", "--batch-size", "16",
         "--out", str(critic))  # fmt: skip
    policy = _lerobot_train(
        dataset, tmp_path / "diffusion", "--policy.type=diffusion", "--policy.n_obs_steps=1",
        "--policy.horizon=8", "--policy.n_action_steps=8", "--policy.down_dims=[32,64]",
        "--policy.drop_n_last_frames=0", "--policy.num_inference_steps=4",
        "--policy.noise_scheduler_type=DDIM",
    )  # fmt: skip
    results = _evaluate(tmp_path, "wxai-state", policy, critic)
    assert results["reasons"]["guided"].get("argmax", 0) > 0
