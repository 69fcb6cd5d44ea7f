"""`valueguide progress score` of a bag gives what it gives of the dataset that the bag came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ros_episodes import PERIOD, ROBOT, START, make_episode

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.progress.columns import read_progress
from valueguide.ros.export import export_dataset
from valueguide.ros.recording import StoreSettings, spec_for
from valueguide.testing.fake_openai_server import FakeOpenAiServer


def _score(server: FakeOpenAiServer, data: Path, out: Path) -> list[dict[str, Any]]:
    options = ["--backend", "openai", "--url", server.url, "--model", "m", "--frames", "4", "--cache", ""]
    with pytest.raises(SystemExit) as stop:
        main(["progress", "score", "--dataset", str(data), "--out", str(out), *options])
    assert not stop.value.code
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_bag_is_scored_as_its_dataset(tmp_path: Path) -> None:
    episodes = [make_episode(1, "PPPPPPPP"), make_episode(2, "PPPPP", "failure", start=START + 50 * PERIOD)]
    with EpisodeWriter(tmp_path / "data", spec_for(ROBOT, episodes[0], StoreSettings())) as writer:
        for episode in episodes:
            writer.save(episode)
    export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)
    with FakeOpenAiServer() as server:
        wanted = _score(server, tmp_path / "data", tmp_path / "a.jsonl")
        found = _score(server, tmp_path / "bag", tmp_path / "b.jsonl")
        again = _score(server, tmp_path / "bag", tmp_path / "b.jsonl")  # imported once
    assert len(wanted) == 2 * 5 and found == wanted == again
    imported = EpisodeDataset.open(tmp_path / "b.jsonl.dataset")
    assert read_progress(imported).value.shape == (13,)
