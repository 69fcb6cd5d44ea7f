"""Datasets to bags and back, by library and by command; and the thread that writes in the background."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import yaml
from ros_episodes import PERIOD, ROBOT, START, assert_same_episode, make_episode

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError
from valueguide.ros.background import BackgroundWriter
from valueguide.ros.bag import BagReader, BagWriter
from valueguide.ros.bag_import import import_bag
from valueguide.ros.export import episode_messages, export_dataset, serialize
from valueguide.ros.recording import DatasetRecorder, StoreSettings, bag_facts, spec_for
from valueguide.ros.topics import recorded_topics
from valueguide.types import Episode


def _dataset(root: Path, episodes: list[Episode]) -> EpisodeDataset:
    with EpisodeWriter(root, spec_for(ROBOT, episodes[0], StoreSettings())) as writer:
        for episode in episodes:
            writer.save(episode)
    return EpisodeDataset.open(root)


def _episodes() -> list[Episode]:
    return [
        make_episode(1, "PPPHH-PP"),
        make_episode(2, "PP--HHP", "failure", start=START + 50 * PERIOD),
        make_episode(3, "HHH", "time_limit", start=0),  # simulated episodes begin at time 0
    ]


def _write_messages(folder: Path, facts: dict[str, str], prefix: str = "", **settings: Any) -> None:
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    with BagWriter(folder, facts, **settings) as writer:
        for entry in episode_messages(ROBOT, make_episode(1), 4):
            topic = topics[entry.role]
            data = serialize(topic.type, entry.message)
            writer.write(f"{prefix}/{topic.name}", topic.type, data, entry.stamp)


@pytest.fixture
def robot_file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(draccus.encode(ROBOT)))
    return str(path)


def test_export_then_import_gives_the_dataset_again(tmp_path: Path) -> None:
    first = _dataset(tmp_path / "first", _episodes())
    exported = export_dataset(tmp_path / "first", tmp_path / "bag", ROBOT)
    assert exported["episodes"] == 3 and exported["lost"] == {}
    imported = import_bag(tmp_path / "bag", tmp_path / "second")
    assert imported["episodes"] == 3 and imported["dropped"] == []
    second = EpisodeDataset.open(tmp_path / "second")
    assert second.dataset_id == first.dataset_id
    assert second.metadata == first.metadata
    for name, feature in first.features.items():
        if feature["dtype"] != "image":
            np.testing.assert_array_equal(first.column(name), second.column(name))
    for number in range(3):
        assert_same_episode(first.to_episode(number), second.to_episode(number))
    export_dataset(tmp_path / "second", tmp_path / "bag2", ROBOT)
    assert [m.data for m in BagReader.open(tmp_path / "bag2")] == [
        m.data for m in BagReader.open(tmp_path / "bag")
    ]


def test_export_refuses_what_messages_cannot_carry(tmp_path: Path) -> None:
    episode = make_episode(1)
    episode.steps[2].observation.state[4] = 0.123  # the gripper's command was another
    _dataset(tmp_path / "data", [episode])
    with pytest.raises(DataError, match="episode 0: step 2: state cannot be told in messages"):
        export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)


def test_export_counts_what_is_lost(tmp_path: Path) -> None:
    episode = make_episode(1)
    episode.steps[1].reward = 0.5
    _dataset(tmp_path / "data", [episode])
    assert export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)["lost"] == {"reward": 1}


def test_export_checks_the_robot_and_the_folder(tmp_path: Path) -> None:
    _dataset(tmp_path / "data", _episodes())
    with pytest.raises(DataError, match=r"robot small: cameras: expected \['front'\], found"):
        robot = replace(ROBOT, cameras={"front": ROBOT.cameras["front"]})
        export_dataset(tmp_path / "data", tmp_path / "bag", robot)
    export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)
    with pytest.raises(DataError, match="expected a new folder"):
        export_dataset(tmp_path / "data", tmp_path / "bag", ROBOT)


def test_bags_of_other_recorders_need_a_robot(tmp_path: Path) -> None:
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    _write_messages(tmp_path / "bag", {}, "/left")
    path = next((tmp_path / "bag").glob("*.mcap"))
    foreign = BagReader([path])  # as rosbag2 would leave it: no facts, another clock for reception
    from valueguide.ros import bag as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FACTS", "another tool")
        with pytest.raises(ConfigError, match="expected a robot description in the bag or --robot"):
            import_bag(tmp_path / "bag", tmp_path / "data")
        robot = replace(ROBOT, environment_state_topic="")
        result = import_bag(tmp_path / "bag", tmp_path / "data", robot=robot)
    assert (result["episodes"], result["frames"]) == (1, 8)
    assert topics and foreign.paths == [path]
    data = EpisodeDataset.open(tmp_path / "data")
    assert data.spec is not None and data.spec.robot_type == "small"


def test_import_says_which_episodes_were_dropped(tmp_path: Path) -> None:
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    with BagWriter(tmp_path / "bag", bag_facts(ROBOT, "", True)) as writer:
        for number, gone in ((0, "pose"), (1, "")):
            episode = make_episode(number, start=START + 40 * number * PERIOD)
            for entry in episode_messages(ROBOT, episode, number):
                if entry.role != gone:
                    topic = topics[entry.role]
                    data = serialize(topic.type, entry.message)
                    writer.write("/" + topic.name, topic.type, data, entry.stamp)
    result = import_bag(tmp_path / "bag", tmp_path / "data")
    assert result["episodes"] == 1
    assert result["dropped"] == ["episode 0 dropped: observation: nothing received from pose"]


def test_sizes_come_from_settings_the_first_episode_or_defaults() -> None:
    found = spec_for(ROBOT, make_episode(1), StoreSettings())
    assert (found.horizon, found.k, found.members) == (4, 3, 2)
    human = spec_for(ROBOT, make_episode(1, "HH"), StoreSettings())
    assert (human.horizon, human.k, human.members) == (8, 16, 3)
    asked = spec_for(ROBOT, make_episode(1), StoreSettings(horizon=20, k=5, members=4))
    assert (asked.horizon, asked.k, asked.members) == (20, 5, 4)
    assert found.cameras == {"front": (6, 8), "wrist": (4, 4)} and found.fps == 10
    with pytest.raises(ConfigError, match="rate_hz: expected a whole number"):
        spec_for(replace(ROBOT, rate_hz=7.5), make_episode(1), StoreSettings())


def test_a_recording_goes_on_with_its_own_sizes_and_refuses_another_robot(tmp_path: Path) -> None:
    recorder = DatasetRecorder(tmp_path, ROBOT, StoreSettings(k=5))
    assert recorder.save(make_episode(1)) == 0
    recorder.close()
    recorder = DatasetRecorder(tmp_path, ROBOT, StoreSettings())
    assert recorder.save(make_episode(2, "HH")) == 1
    recorder.close()
    with pytest.raises(DataError, match="dataset robot_type: expected other, found small"):
        DatasetRecorder(tmp_path, replace(ROBOT, name="other"), StoreSettings())
    with pytest.raises(DataError, match="dataset k: expected 7, found 5"):
        DatasetRecorder(tmp_path, ROBOT, StoreSettings(k=7))


def test_the_commands_export_import_and_check(
    tmp_path: Path, robot_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _dataset(tmp_path / "data", _episodes())
    for arguments in (
        ["export", str(tmp_path / "data"), "--robot", robot_file, "--out", str(tmp_path / "bag")],
        ["import", str(tmp_path / "bag"), "--out", str(tmp_path / "again")],
        ["check", str(tmp_path / "bag")],
    ):
        with pytest.raises(SystemExit) as end:
            main(["bag", *arguments, "--json", str(tmp_path / f"{arguments[0]}.json")])
        assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "3 episodes, 18 frames" in printed and "/front/image" in printed
    assert json.loads((tmp_path / "import.json").read_text())["frames"] == 18
    assert json.loads((tmp_path / "check.json").read_text())["problems"] == 0
    assert EpisodeDataset.open(tmp_path / "again").episodes == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["import", "nowhere", "--out", "x"], "nowhere: bag: expected a .mcap file"),
        (["check", "nowhere"], "nowhere: bag: expected a .mcap file"),
        (["export", "nowhere", "--out", "x"], "nowhere: folder not found"),
        (["import", "nowhere", "--out", "x", "--robot", "ghost"], "robot ghost: expected one of"),
        (["import", "nowhere", "--out", "x", "--k", "-1"], "--k: value: expected 0 or more, found -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["bag", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and text in error and error.count("error:") == 1
    assert not (tmp_path / "x").exists()


def test_a_bag_without_finished_episodes_is_an_error(tmp_path: Path, capsys: Any) -> None:
    with BagWriter(tmp_path / "bag", bag_facts(ROBOT, "", True)) as writer:
        writer.write("/estop", "std_msgs/msg/Bool", bytes([0, 1, 0, 0, 1]), 1)
    with pytest.raises(SystemExit) as end:
        main(["bag", "import", str(tmp_path / "bag"), "--out", str(tmp_path / "data")])
    assert end.value.code == 2 and "expected finished episodes, found none" in capsys.readouterr().err


def test_background_writing_keeps_order_and_refuses_what_is_too_much() -> None:
    done: list[int] = []
    may = threading.Event()

    def work(item: int) -> None:
        may.wait(5)
        done.append(item)

    writer = BackgroundWriter(work, limit=10)
    assert writer.put(1, 100)  # alone, anything fits
    assert not writer.put(2, 1)
    may.set()
    while writer.waiting:
        pass
    assert all(writer.put(i, 3) for i in (3, 4, 5)) or writer.waiting
    assert writer.close() and done[0] == 1 and done == sorted(done)
    assert not writer.put(9)


def test_background_writing_hands_over_its_error_and_idles() -> None:
    idled = threading.Event()

    def work(item: int) -> None:
        raise DataError(f"disk full at {item}")

    writer = BackgroundWriter(work, limit=10, idle=idled.set, idle_s=0.01)
    assert idled.wait(5)
    assert writer.put(1)
    assert writer.close()
    assert str(writer.error) == "disk full at 1" and not writer.put(2) and writer.waiting == 0
