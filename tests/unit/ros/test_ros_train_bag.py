"""`valueguide train critic` takes a bag for a dataset: imported once, beside the critic."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
from ros_episodes import PERIOD, ROBOT, START, make_episode

from valueguide.cli import bags, train
from valueguide.cli.bags import imported_bag, is_bag
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError
from valueguide.ros import bag_import
from valueguide.ros.bag import BagWriter
from valueguide.ros.export import export_dataset
from valueguide.ros.recording import StoreSettings, bag_facts, spec_for


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """A bag of two episodes; the dataset that it came from lies beside it, as `data`."""
    episodes = [
        make_episode(1, "PPPPPPPP"),
        make_episode(2, "PPPPPHHP", "failure", start=START + 50 * PERIOD),
    ]
    with EpisodeWriter(tmp_path / "data", spec_for(ROBOT, episodes[0], StoreSettings())) as writer:
        for episode in episodes:
            writer.save(episode)
    export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)
    return tmp_path / "bag"


def _train(dataset: Path, out: Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    words = f"critic --dataset {dataset} --encoder state --steps 2 --batch-size 4 --device cpu --out {out}"
    return train.run(parser.parse_args(words.split()))


def test_a_bag_trains_the_critic_that_its_dataset_trains_and_is_imported_once(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")  # the robot side runs these tests without it
    wanted = _train(tmp_path / "data", tmp_path / "a")
    assert _train(bag, tmp_path / "b")["version"] == wanted["version"]
    assert EpisodeDataset.open(tmp_path / "b.bag0").episodes == 2
    monkeypatch.setattr(bag_import, "import_bag", None)
    assert _train(bag, tmp_path / "b")["version"] == wanted["version"]


def test_a_dataset_is_no_bag(bag: Path, tmp_path: Path) -> None:
    file = next(bag.glob("*.mcap"))
    assert is_bag(bag) and is_bag(file) and not is_bag(tmp_path / "data") and not is_bag(tmp_path / "nowhere")
    shutil.copy(file, tmp_path / "data")
    assert not is_bag(tmp_path / "data")


def test_a_cut_off_import_starts_anew_and_another_bag_is_refused(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(bags, "write_json", dies)
        imported_bag(bag, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert EpisodeDataset.open(imported_bag(bag, tmp_path / "made")).episodes == 2
    with pytest.raises(ConfigError, match=r"made: bag: expected .*, found .*\. Use a new --out"):
        imported_bag(sorted(bag.glob("*.mcap"))[0], tmp_path / "made")


def test_a_bag_without_episodes_and_one_that_is_not_there_are_errors(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty", bag_facts(ROBOT, "", True)):
        pass
    with pytest.raises(DataError, match="finished episodes: expected one or more, found none"):
        imported_bag(tmp_path / "empty", tmp_path / "made")
    with pytest.raises(DataError, match=r"bag: expected a \.mcap file or a folder with some, found none"):
        imported_bag(tmp_path / "nowhere.mcap", tmp_path / "made")
    assert not (tmp_path / "made").exists()
