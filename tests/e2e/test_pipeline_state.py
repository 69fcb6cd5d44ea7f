"""Collect, train, guide, evaluate: the whole loop on the state suite, small but real."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from sim.wordings import corpus
from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.policies.clip_assets import build_clip_folder

_TASKS = "press_button,close_drawer"


def _run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 128, "patch_size": 32}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 32}  # fmt: skip
    build_clip_folder(root / "backbone" / "clip", corpus()[:500], vision, text, vocab_size=400, seed=0)
    for suite in ("wxai-state", "wxai"):
        _run("collect", "--suite", suite, "--tasks", _TASKS, "--episodes", "4", "--skill", "0.7",
             "--workers", "1", "--out", str(root / suite))  # fmt: skip
        common = ("--dataset", str(root / suite), "--backbone", str(root / "backbone"))
        _run("train", "policy", *common, "--steps", "30", "--batch-size", "32", "--hidden-dim", "32",
             "--layers", "1", "--out", str(root / f"{suite}-policy"))  # fmt: skip
        _run("train", "critic", *common, "--steps", "40", "--batch-size", "32", "--checkpoint-every", "20",
             "--out", str(root / f"{suite}-critic"))  # fmt: skip
    return root


@pytest.mark.parametrize("suite", ["wxai-state", "wxai"])
def test_all_arms_run_on_the_same_episodes_and_resume(workspace: Path, suite: str) -> None:
    out = workspace / f"eval-{suite}"
    arguments = ["eval", "--suite", suite, "--policy", str(workspace / f"{suite}-policy"),
                 "--critic", str(workspace / f"{suite}-critic"), "--tasks", _TASKS, "--k", "4",
                 "--episodes", "1", "--seed", "77", "--videos", "0", "--workers", "1",
                 "--k-sweep", "2", "--out", str(out)]  # fmt: skip
    _run(*arguments)
    first = json.loads((out / "results.json").read_text())
    assert list(first["arms"]) == ["base", "guided", "random", "medoid", "qonly", "guided@2"]
    assert {arm["n"] for arm in first["arms"].values()} == {2}
    assert first["paired"]["base_vs_guided"]["n"] == 2
    assert (out / "report.html").read_text().lower().startswith("<!doctype html>")
    rows = (out / "episodes.jsonl").read_text().splitlines()
    # A crash in the middle of a line: the half line is dropped and its episode run again, to the same end.
    (out / "episodes.jsonl").write_text("\n".join(rows[:-1]) + "\n" + rows[-1][:20])
    _run(*arguments)
    again = json.loads((out / "results.json").read_text())
    assert again["arms"] == first["arms"]


def test_a_policy_of_states_learns_the_same_where_there_are_pictures_too(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("collect", "--suite", "wxai-both", "--tasks", _TASKS, "--episodes", "4", "--skill", "0.7",
         "--workers", "1", "--out", str(workspace / "both"))  # fmt: skip
    training = ["train", "policy", "--backbone", str(workspace / "backbone"), "--steps", "30", "--batch-size",
                "32", "--hidden-dim", "32", "--layers", "1", "--state-only"]  # fmt: skip
    _run(*training, "--dataset", str(workspace / "both"), "--out", str(workspace / "blind"))
    weights = [
        (workspace / name / "model.safetensors").read_bytes() for name in ("wxai-state-policy", "blind")
    ]
    assert weights[0] == weights[1]
    with pytest.raises(SystemExit) as stop:
        main([*training, "--dataset", str(workspace / "wxai"), "--out", str(workspace / "nothing")])
    assert stop.value.code == 2 and "--state-only" in capsys.readouterr().err


def test_an_evaluation_with_other_settings_is_not_mixed_in(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = workspace / "eval-mixed"
    policy = str(workspace / "wxai-state-policy")
    base = ["eval", "--suite", "wxai-state", "--policy", policy, "--arms", "base", "--tasks", "press_button",
            "--episodes", "1", "--videos", "0", "--workers", "1", "--out", str(out)]  # fmt: skip
    _run(*base)
    with pytest.raises(SystemExit) as stop:
        main([*base, "--seed", "5"])
    assert stop.value.code == 2
    assert "other settings (seed)" in capsys.readouterr().err


def test_collecting_again_adds_only_what_is_missing(workspace: Path) -> None:
    before = EpisodeDataset.open(workspace / "wxai-state").episodes
    _run("collect", "--suite", "wxai-state", "--tasks", _TASKS, "--episodes", "5", "--skill", "0.7",
         "--workers", "1", "--out", str(workspace / "wxai-state"))  # fmt: skip
    dataset = EpisodeDataset.open(workspace / "wxai-state")
    assert dataset.episodes == before + 2
    assert len({(m["task_name"], m["seed"]) for m in dataset.metadata}) == dataset.episodes


def test_rollouts_are_recorded_with_candidates_and_scores(workspace: Path) -> None:
    out = workspace / "rollouts"
    _run("collect", "--suite", "wxai-state", "--tasks", "press_button", "--episodes", "1", "--workers", "1",
         "--policy", str(workspace / "wxai-state-policy"), "--critic", str(workspace / "wxai-state-critic"),
         "--k", "3", "--out", str(out))  # fmt: skip
    episode = EpisodeDataset.open(out).to_episode(0)
    replans = [s for s in episode.steps if s.candidates is not None]
    assert replans and all(s.candidates is not None and s.candidates.k == 3 for s in replans)
    assert all(s.decision is not None and s.decision.scores is not None for s in replans)
    assert replans[0].decision.scores.q.shape == (3, 3)  # type: ignore[union-attr]  # members, candidates
    assert all(s.source == "policy" and s.critic_version for s in episode.steps)
    chosen = replans[0]
    assert chosen.decision is not None and chosen.candidates is not None and chosen.planned_chunk is not None
    np.testing.assert_array_equal(chosen.planned_chunk, chosen.candidates.actions[chosen.decision.index])


def test_a_finished_critic_training_is_not_repeated(workspace: Path) -> None:
    from valueguide.cli import train

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(
        ["critic", "--dataset", str(workspace / "wxai"), "--backbone", str(workspace / "backbone"),
         "--steps", "40", "--batch-size", "32", "--checkpoint-every", "20",
         "--out", str(workspace / "wxai-critic")]
    )  # fmt: skip
    before = json.loads((workspace / "wxai-critic" / "manifest.json").read_text())
    assert train.run(args)["version"] == before["version"]


def test_a_critic_of_pictures_is_taught_by_one_of_states(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos, teacher, out = workspace / "both", workspace / "teacher", workspace / "student"
    _run("collect", "--suite", "wxai-both", "--tasks", _TASKS, "--episodes", "2", "--workers", "2",
         "--out", str(demos))  # fmt: skip
    apart = {s: EpisodeDataset.open(workspace / s) for s in ("wxai", "wxai-state")}
    both = EpisodeDataset.open(demos)
    assert both.environment_state is not None and both.environment_state.shape[1] == 51
    assert both.cameras == apart["wxai"].cameras
    common = ("train", "critic", "--dataset", str(demos), "--steps", "6", "--batch-size", "32")
    _run(*common, "--encoder", "state", "--out", str(teacher))
    student = (*common, "--backbone", str(workspace / "backbone"), "--algo", "distill", "--out", str(out))
    with pytest.raises(SystemExit) as stop:
        main(list(student))
    assert stop.value.code == 2
    assert "--teacher: expected a critic folder" in capsys.readouterr().err
    _run(*student, "--teacher", str(teacher))
    facts = json.loads((out / "manifest.json").read_text())
    assert facts["teacher"] == json.loads((teacher / "manifest.json").read_text())["version"]
    _run("eval", "--suite", "wxai", "--tasks", "press_button", "--policy", str(workspace / "wxai-policy"),
         "--critic", str(out), "--arms", "guided", "--k", "2", "--episodes", "1", "--videos", "0",
         "--workers", "1", "--out", str(workspace / "eval-student"))  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main([*student[:3], str(workspace / "wxai"), *student[4:], "--teacher", str(teacher)])
    assert stop.value.code == 2
    assert "environment state" in capsys.readouterr().err
