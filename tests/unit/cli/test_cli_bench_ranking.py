"""`valueguide bench ranking` on the shipped checkpoints: a small truth, kept and used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli.bench_ranking import named, table
from valueguide.cli.common import shipped
from valueguide.cli.main import main
from valueguide.errors import ConfigError

_SMALL = ("--tasks", "press_button,close_drawer", "--k", "2", "--seed", "50000", "--workers", "1")


def _bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "ranking", "--device", "cpu", *_SMALL, *arguments])
    return int(stop.value.code or 0)


def _measured(folder: Path, *arguments: str) -> dict[str, Any]:
    assert _bench("--out", str(folder / "truth"), "--json", str(folder / "r.json"), *arguments) == 0
    return json.loads((folder / "r.json").read_text())


def test_the_truth_is_measured_once_and_serves_another_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _measured(tmp_path, "--states", "3")
    assert (first["states"], first["k"], first["settings"]["seed"]) == (3, 2, 50000)
    assert list(first["critics"]) == ["critic"] and set(first["regret"]) == {
        "random",
        "candidate_0",
        "critic",
    }
    shown = capsys.readouterr().out
    assert shown.startswith("3 states, K = 2, 1 rollouts a candidate") and "candidate_0 -> critic: " in shown
    other = tmp_path / "copy"
    other.symlink_to(shipped("wxai-state", "critic"))
    monkeypatch.setattr("sim.env.TabletopEnv.step", None)  # nothing is simulated any more
    again = _measured(
        tmp_path, "--states", "3", "--critic", shipped("wxai-state", "critic"), "--critic", str(other)
    )
    assert again["critics"]["critic"] == first["critics"]["critic"] == again["critics"]["copy"]
    assert again["paired"]["critic_vs_copy"]["success"]["delta"] == 0.0
    assert again["regret"]["random"] == first["regret"]["random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--states", "0"], "ranking: states: expected 1 or more, found 0"),
        (["--gamma", "1"], "--gamma: value: expected 0 to below 1, found 1.0"),
        (["--workers", "0"], "--workers: value: expected 1 or more, found 0"),
        (["--execute", "2"], "critic critic: --execute: expected 4, found 2"),
        (["--tasks", "juggle"], "--tasks: expected names from"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(*arguments, "--out", str(tmp_path / "truth")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "truth").exists()


def test_critics_are_named_by_what_tells_them_apart() -> None:
    assert named(["runs/a/critic"]) == {"critic": "runs/a/critic"}
    assert list(named(["runs/a/critic", "runs/b/critic"])) == ["a/critic", "b/critic"]
    with pytest.raises(ConfigError, match="different ones"):
        named(["x", "x"])


def test_what_is_undefined_is_said_so() -> None:
    undefined = {"mean": None, "ci95": None, "states": 0, "tasks": {"t": {"value": None, "ci95": None}}}
    figures = {"mean": 0.25, "ci95": [0.0, 0.5], "value": 0.5}
    text = table(
        {
            "settings": {"rollouts": 2},
            "states": 4,
            "k": 8,
            "informative": 0,
            "critics": {"c": {"spearman": undefined, "kendall": undefined, "within_state": undefined}},
            "regret": {"random": {"success": figures, "return": figures}},
            "paired": {
                "random_vs_c": {
                    "success": {"delta": 0.1, "ci95": [-0.1, 0.3], "better": 3, "worse": 1, "n": 4}
                }
            },
        }
    )
    assert "t                         undefined" in text and "25.0 (0.0 to 50.0)" in text
    assert (
        "random -> c: +10.0 (-10.0 to +30.0) points of success, better in 3, worse in 1 of 4 states" in text
    )
