"""`valueguide replay` of a bag gives what it gives of the dataset that the bag came from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ros_episodes import PERIOD, ROBOT, START, make_episode

from valueguide.cli.main import main
from valueguide.data.writer import EpisodeWriter
from valueguide.ros.bag import BagWriter
from valueguide.ros.export import export_dataset
from valueguide.ros.recording import StoreSettings, bag_facts, spec_for


def _replay(path: Path, out: Path, code: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["replay", "--dataset", str(path), "--aggregate", "mean", "--out", str(out)])
    assert (stop.value.code or 0) == code
    return {} if code else json.loads((out / "counterfactual.json").read_text())


def test_a_bag_is_replayed_as_its_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    episodes = [
        make_episode(1, "PPPPPPPP"),
        make_episode(2, "PPPPPHHP", "failure", start=START + 50 * PERIOD),
        make_episode(3, "PPPPPP", "time_limit", start=START + 90 * PERIOD),
    ]
    with EpisodeWriter(tmp_path / "data", spec_for(ROBOT, episodes[0], StoreSettings())) as writer:
        for episode in episodes:
            writer.save(episode)
    export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)
    wanted = _replay(tmp_path / "data", tmp_path / "a")
    assert wanted["log"]["outcomes"] == {"success": 1, "failure": 1, "helped": 1}
    assert wanted["log"]["decisions"] == 8 and wanted["log"]["executed_length"] == 3
    found = _replay(tmp_path / "bag", tmp_path / "b")
    assert {**found, "settings": None} == {**wanted, "settings": None}
    alone = _replay(next(iter(sorted((tmp_path / "bag").glob("*.mcap")))), tmp_path / "c")
    assert alone["log"]["episodes"] == 1 and alone["log"]["outcomes"]["success"] == 1
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing of the import stays behind


def test_a_bag_without_episodes_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BagWriter(tmp_path / "bag", bag_facts(ROBOT, "", True)):
        pass
    _replay(tmp_path / "bag", tmp_path / "out", code=2)
    assert "finished episodes: expected one or more, found none" in capsys.readouterr().err
