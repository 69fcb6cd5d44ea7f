"""`valueguide replay` with the shipped checkpoints: the same rule changes nothing, errors are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.cli.common import shipped
from valueguide.cli.main import main
from valueguide.critics.checkpoint import LoadedCritic, save_critic
from valueguide.critics.config import NetworkConfig, TrainConfig
from valueguide.critics.trainer import CriticTrainer
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import CheckpointError, ConfigError
from valueguide.evaluation.counterfactual import Rule, load_critic, read_log, rescore

pytestmark = pytest.mark.slow
_CRITIC = shipped("wxai-state", "critic")


def _main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes, guided by the shipped critic among four proposals."""
    root = tmp_path_factory.mktemp("replay") / "data"
    assert not _main(
        "collect", "--suite", "wxai-state", "--tasks", "press_button,close_drawer", "--episodes", "1",
        "--policy", shipped("wxai-state", "policy"), "--critic", _CRITIC, "--k", "4", "--seed", "61000",
        "--workers", "1", "--device", "cpu", "--out", str(root),
    )  # fmt: skip
    return root


def _untrained(folder: Path) -> Path:
    """Another critic for the same robot."""
    loaded = LoadedCritic(Path(_CRITIC))
    network = NetworkConfig(language_dim=loaded.embeddings.shape[1])
    trainer = CriticTrainer(loaded.spec, network, TrainConfig(), loaded.normalizers, loaded.embeddings)
    save_critic(folder, trainer, loaded.instructions, {})
    return folder


def test_the_critic_of_the_log_changes_nothing(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not _main(
        "replay", "--dataset", str(recorded), "--critic", _CRITIC, "--device", "cpu", "--out", str(out)
    )
    results = json.loads((out / "counterfactual.json").read_text())
    decisions = results["log"]["decisions"]
    assert results["log"]["episodes"] == 2 and decisions >= 4 and results["log"]["k"] == [4, 4]
    for entry in results["critics"].values():
        assert entry["changed"]["all"]["successes"] == 0 and entry["changed"]["all"]["n"] == decisions
        assert entry["against_logged_critic"]["successes"] == 0 and entry["regret"]["value"] == 0.0
        assert entry["changed"]["on_path"] == {"decisions": decisions, "n": decisions}
    assert list(results["critics"]) == ["critic", "logged critic"]
    assert results["critics"]["critic"]["same_version"]["decisions"] == decisions
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in out.iterdir()) == ["counterfactual.json", "report.html"]

    dataset = EpisodeDataset.open(recorded)
    log = read_log(dataset)
    made = rescore(dataset, log, {"c": load_critic(_CRITIC, dataset, log)}, Rule())["c"]
    for logged, again in zip(log.decisions, made, strict=True):
        assert (again.index, again.reason, again.preferred) == (
            logged.decision.index,
            logged.decision.reason,
            logged.decision.preferred,
        )
        assert again.scores is not None and logged.decision.scores is not None
        np.testing.assert_allclose(again.scores.q, logged.decision.scores.q, rtol=1e-5)
        np.testing.assert_allclose(again.values, logged.decision.values, rtol=1e-5)


def test_several_critics_and_another_rule(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = _untrained(tmp_path / "untrained")
    assert not _main(
        "replay", "--dataset", str(recorded), "--critic", str(other), "--critic", _CRITIC, "--device", "cpu",
        "--beta", "0.5", "--aggregate", "mean", "--seed", "3", "--out", str(tmp_path / "out"), "--json", "-",
    )  # fmt: skip
    shown = capsys.readouterr()
    results = json.loads(shown.out)
    assert results == json.loads((tmp_path / "out" / "counterfactual.json").read_text())
    assert list(results["critics"]) == ["untrained", "critic", "logged critic"]
    assert list(results["between"]) == ["untrained_vs_critic"] and list(results["versus_logged"]) == [
        "untrained",
        "critic",
    ]
    assert (
        results["critics"]["critic"]["changed"]["all"]
        == results["critics"]["logged critic"]["changed"]["all"]
    )
    assert results["critics"]["untrained"]["changed"]["all"]["successes"] > 0
    assert results["settings"]["beta"] == 0.5 and results["settings"]["seed"] == 3
    assert "changed most by untrained" in shown.err


def test_without_a_critic_the_logged_scores_are_used(recorded: Path, tmp_path: Path) -> None:
    assert not _main(
        "replay", "--dataset", str(recorded), "--aggregate", "lcb", "--out", str(tmp_path / "out")
    )
    results = json.loads((tmp_path / "out" / "counterfactual.json").read_text())
    assert list(results["critics"]) == ["logged critic"] and results["settings"]["critics"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta", "-1"], "steering: beta: expected a finite number >= 0, found -1.0"),
        (["--aggregate", "max"], "--aggregate: value: expected min, mean, lcb, found 'max'"),
        (["--gamma", "1"], "--gamma: value: expected 0 to below 1, found 1.0"),
        (["--seed", "-1"], "--seed: value: expected 0 or more, found -1"),
        (["--critic", "nowhere"], "nowhere: expected a critic folder, found none"),
        (["--critic", _CRITIC, "--critic", _CRITIC], "--critic: folders: expected different ones"),
        (
            ["--critic", shipped("wxai", "critic")],
            "camera 'front': expected (128, 128), found no such camera",
        ),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _main("replay", "--dataset", str(recorded), "--device", "cpu", *arguments, "--out", str(out)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_a_log_without_scores_needs_a_critic(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = EpisodeDataset.open(recorded)
    assert dataset.spec is not None
    with EpisodeWriter(tmp_path / "data", dataset.spec) as writer:
        episode = dataset.to_episode(0)
        for step in episode.steps:
            if step.decision is not None:
                object.__setattr__(step.decision, "scores", None)
                object.__setattr__(step.decision, "values", None)
        writer.save(episode)
    assert _main("replay", "--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "out")) == 2
    assert "no scores are logged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"executed_length": 2}, "executed steps: expected 4, as in the log, found 2"),
        (
            {"action_names": ("a", "b", "c", "d", "e")},
            "action names: expected ('a', 'b', 'c', 'd', 'e'), found ('dx'",
        ),
        ({"environment_state_dim": 7}, "environment state: expected 7 values, found 51"),
        ({"state_dim": 3, "state_names": ()}, "state size: expected 3, found 6"),
    ],
)
def test_a_critic_for_something_else_is_refused(
    change: dict[str, Any], message: str, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedCritic(Path(_CRITIC))
    for name, value in change.items():
        object.__setattr__(loaded.spec, name, value)
    monkeypatch.setattr("valueguide.critics.scorer.LoadedCritic", lambda path: loaded)
    dataset = EpisodeDataset.open(recorded)
    with pytest.raises(CheckpointError) as error:
        load_critic(_CRITIC, dataset, read_log(dataset))
    assert message in str(error.value)


def test_a_foreign_instruction_is_refused(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "data")
    dataset = EpisodeDataset.open(tmp_path / "data")
    dataset.instructions[dataset.instruction[0]] = "file the tax return"
    with pytest.raises(ConfigError, match="critic .*: instruction: expected one of .* 'file the tax return'"):
        load_critic(_CRITIC, dataset, read_log(dataset))


def test_an_empty_folder_is_no_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("replay", "--dataset", str(tmp_path), "--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")
    assert _main("replay", "--dataset", str(tmp_path / "no.mcap"), "--out", str(tmp_path / "out")) == 2
    assert "no.mcap" in capsys.readouterr().err
