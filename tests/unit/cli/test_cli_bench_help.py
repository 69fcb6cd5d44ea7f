"""`valueguide bench help` on the shipped checkpoints: settings that load, figures that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli.main import main
from valueguide.execution.help_calibration import load_help

_SMALL = ("--tasks", "close_drawer,open_drawer", "--per-task", "3", "--k", "2", "--workers", "1")


def _bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "help", "--device", "cpu", *_SMALL, *arguments])
    return int(stop.value.code or 0)


def test_it_calibrates_on_one_set_and_reports_on_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured() -> dict[str, Any]:
        assert _bench("--out", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")) == 0
        return json.loads((tmp_path / "r.json").read_text())

    found = measured()
    shown = capsys.readouterr().out
    assert "test: 6 episodes" in shown and "value -> both: right in " in shown
    for part in ("calibration", "test"):
        assert set(found[part]["rules"]) == {"both", "value", "progress", "clock"}
        for rule in found[part]["rules"].values():
            assert rule["episodes"] == 6
    for rule in found["calibration"]["rules"].values():
        assert rule["false_alarm_rate"]["value"] <= 0.1
    settings = load_help(tmp_path / "out" / "help.json")
    assert settings.critic_version == found["settings"]["critic_version"]
    assert settings.value_margin == found["chosen"]["both"]["value_margin"]
    assert set(settings.instructions.values()) == {"close_drawer", "open_drawer"}
    assert load_help(tmp_path / "out" / "help-value.json").rule == "value"
    monkeypatch.setattr("sim.env.TabletopEnv.step", None)  # nothing is simulated any more
    again = measured()
    assert (again["test"], again["calibration"]) == (found["test"], found["calibration"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-task", "0"], "help: episodes: expected 1 or more, found 0"),
        (["--test-seed", "60001"], "seeds: expected no seed in both sets"),
        (["--budget", "2"], "--budget: value: expected 0 to 1, found 2.0"),
        (["--decisions", "0"], "help: decisions: expected 1 or more, found 0"),
        (["--workers", "0"], "--workers: value: expected 1 or more, found 0"),
        (["--critic", "a", "--critic", "b"], "--critic: folders: expected one, found 2"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(*arguments, "--out", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
