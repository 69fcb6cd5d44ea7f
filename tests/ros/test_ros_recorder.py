"""The recorder as a real process: live and bag agree; kill -9 and full disks lose little and say so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import yaml

from valueguide.data.reader import EpisodeDataset
from valueguide.ros.bag import BagReader, BagWriter
from valueguide.ros.bag_check import check_bag
from valueguide.ros.bag_import import import_bag
from valueguide.ros.export import Outgoing, episode_messages, serialize
from valueguide.ros.recording import bag_facts
from valueguide.ros.topics import recorded_topics, resolve
from valueguide.testing.waiting import until
from valueguide.types import Episode

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ros"))
from ros_episodes import PERIOD, ROBOT, START, assert_same_episode, make_episode

_until = partial(until, wait_s=120.0)

pytestmark = [pytest.mark.ros, pytest.mark.timeout(600)]


@pytest.fixture
def robot_file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(draccus.encode(ROBOT)))
    return str(path)


def _script(folder: Path, episodes: list[Episode], skip: tuple[tuple[int, str], ...] = ()) -> str:
    """What is to be published, as a bag. skip: (episode, role) that is left out."""
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    start = episodes[0].steps[0].observation.stamp_ns - 3 * PERIOD
    before = Outgoing("environment_state", {"data": [0.0, 0.0]}, start)
    with BagWriter(folder, bag_facts(ROBOT, "", True), session="script") as writer:
        for number, episode in enumerate(episodes):
            for entry in [before] * (number == 0) + episode_messages(ROBOT, episode, number):
                if (number, entry.role) in skip:
                    continue
                topic = topics[entry.role]
                data = serialize(topic.type, entry.message)
                writer.write(resolve(topic.name, ""), topic.type, data, entry.stamp)
    return str(folder)


def _play(
    script: str,
    namespace: str = "",
    rate: float = 1.0,
    progress: str = "",
    stored: int = -1,
    pause: str = "",
) -> dict[str, str]:
    """Publish the script's bytes at its pace with /clock, to a recorder that is active.

    progress: a file that gets each stamp. stored: wait until so many episodes are stored or dropped.
    pause: after 5 s simulated time stands still until this file exists, and the end is an error state.
    Returns the recorder's last diagnostics.
    """
    import importlib

    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client
    from rosgraph_msgs.msg import Clock

    messages = list(BagReader.open(script))
    facts: dict[str, str] = {}

    def note(array: Any) -> None:
        for status in array.status:
            if status.name.endswith("/recorder"):
                facts.clear()
                facts.update({value.key: value.value for value in status.values}, message=status.message)

    with Client(namespace) as client:
        client.active("recorder")
        client.node.create_subscription(DiagnosticArray, "/diagnostics", note, 10)
        out = {}
        for message in messages:
            if message.topic not in out:
                package, _, name = message.type.split("/")
                kind = getattr(importlib.import_module(f"{package}.msg"), name)
                out[message.topic] = client.publisher(message.topic[1:], kind)
        clock = client.publisher("/clock", Clock)
        first, began = messages[0].log_ns, time.monotonic()
        for message in messages:
            if pause and message.log_ns > first + 5_000_000_000 and not Path(pause).exists():
                client.until(Path(pause).exists, f"file {pause}", timeout=120.0)
                began = time.monotonic() - (message.log_ns - first) / 1e9 / rate
            while (now := first + (time.monotonic() - began) * 1e9 * rate) < message.log_ns:
                tick = Clock()
                tick.clock.sec, tick.clock.nanosec = divmod(int(now), 1_000_000_000)
                clock.publish(tick)
                client.spin(0.005)
            out[message.topic].publish(message.data)
            if progress:
                with open(progress, "a") as file:
                    file.write(f"{message.log_ns}\n")
        if stored >= 0:
            client.until(
                lambda: int(facts.get("episodes", 0)) + int(facts.get("dropped", 0)) >= stored,
                f"{stored} episodes in {facts}",
            )
        if pause:
            client.until(lambda: "No space" in facts.get("message", ""), f"error in {facts}")
    return facts


def _unprivileged(episode: Episode) -> Episode:
    """Without the simulator's state, which carries no stamp: which one is matched depends on its delay."""
    for step in episode.steps:
        step.observation = replace(step.observation, environment_state=None)
    final = replace(episode.final_observation, environment_state=None)
    return replace(episode, final_observation=final)


def _same_datasets(a: EpisodeDataset, b: EpisodeDataset) -> None:
    assert a.dataset_id == b.dataset_id
    assert a.metadata == b.metadata
    for name, feature in a.features.items():
        if feature["dtype"] != "image":
            np.testing.assert_array_equal(a.column(name), b.column(name))
    for camera in a.cameras:
        rows = np.arange(a.rows)
        np.testing.assert_array_equal(a.images(rows, camera), b.images(rows, camera))


def _episodes() -> list[Episode]:
    # Simulated time and pauses that let an episode settle before the next begins.
    return [
        make_episode(1, "PPPHH-PPPP"),
        make_episode(2, "PP--HHPPP", "failure", start=START + 35 * PERIOD),
        make_episode(3, "PPPPHPPP", "time_limit", start=START + 70 * PERIOD),
    ]


@pytest.mark.slow
def test_live_dataset_is_that_of_the_bag(
    node: Callable[..., Any], in_ros: Any, tmp_path: Path, robot_file: str
) -> None:
    """Takeovers, holds, three ends and a namespace; an episode whose camera is dead is dropped by both."""
    episodes = [*_episodes(), make_episode(4, "PPP", start=START + 105 * PERIOD)]
    script = _script(tmp_path / "script", episodes, skip=((3, "camera/wrist"),))
    recorder = node(
        "recorder", robot=robot_file, out=str(tmp_path / "out"), use_sim_time=True, _namespace="left"
    )
    facts = in_ros(_play, script=script, namespace="left", stored=4)
    recorder.stop()
    assert (facts["episodes"], facts["dropped"]) == ("3", "1")
    line = "episode 3 dropped: observation: camera/wrist"
    assert line in facts["message"] and line in recorder.log("recorder-1")
    live = EpisodeDataset.open(tmp_path / "out" / "dataset")
    for number, episode in enumerate(_episodes()):
        assert_same_episode(_unprivileged(live.to_episode(number)), _unprivileged(episode))
    result = import_bag(tmp_path / "out" / "bag", tmp_path / "imported")
    assert result["episodes"] == 3 and len(result["dropped"]) == 1
    _same_datasets(live, EpisodeDataset.open(tmp_path / "imported"))
    report = check_bag(tmp_path / "out" / "bag")
    assert report["truncated"] == [] and report["missing"] == []
    assert report["topics"]["/left/command"]["count"] > 20


@pytest.mark.slow
@pytest.mark.faults
def test_kill_9_keeps_all_but_the_last_second(
    node: Callable[..., Any], in_ros: Any, tmp_path: Path, robot_file: str
) -> None:
    episodes = [make_episode(1, "PPPHP"), make_episode(2, "P" * 400, start=START + 25 * PERIOD)]
    script = _script(tmp_path / "script", episodes)
    out = tmp_path / "out"
    settings = {"robot": robot_file, "out": str(out), "use_sim_time": True}
    recorder = node("recorder", **settings)
    progress = tmp_path / "progress"
    player = in_ros.start(_play, script=script, rate=0.5, progress=str(progress))

    def published() -> int:
        """Stamp of the last message that the player sent."""
        lines = progress.read_text().split("\n") if progress.exists() else []
        return int(lines[-2]) if len(lines) > 1 else 0

    _until(lambda: published() > START + 40 * PERIOD and _count(out / "dataset"), "second episode")
    recorder.named("recorder").kill()
    recorder.named("recorder").wait(10)
    killed = published()
    player.process.kill()
    stamps = [message.log_ns for message in BagReader.open(out / "bag")]
    assert killed - max(stamps) < 1_000_000_000
    assert check_bag(out / "bag")["truncated"]
    stored = EpisodeDataset.open(out / "dataset")
    assert stored.episodes == 1
    assert_same_episode(_unprivileged(stored.to_episode(0)), _unprivileged(episodes[0]))
    result = import_bag(out / "bag", tmp_path / "imported")
    assert result["episodes"] == 1 and "the recording ended before" in result["dropped"][0]
    # The next recorder goes on in the same folder.
    node("recorder", **settings)
    script = _script(tmp_path / "more", [make_episode(3, "PPPP", start=START + 500 * PERIOD)])
    assert in_ros(_play, script=script, stored=1)["episodes"] == "1"
    assert EpisodeDataset.open(out / "dataset").episodes == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("what", ["bag", "dataset"])
def test_a_full_disk_fails_the_episode_and_spares_those_before(
    node: Callable[..., Any], in_ros: Any, small_disk: Path, tmp_path: Path, robot_file: str, what: str
) -> None:
    """The node goes to its error state with one line that names file and cause."""
    episodes = [make_episode(1, "PPP"), make_episode(2, "P" * 30, start=START + 60 * PERIOD)]
    script = _script(tmp_path / "script", episodes)
    dataset = small_disk / "dataset"
    if what == "bag":  # then only the bag lies on the small disk
        dataset = tmp_path / "dataset"
        dataset.mkdir()
        (small_disk / "dataset").symlink_to(dataset)
    settings = {"robot": robot_file, "out": str(small_disk), "use_sim_time": True}
    recorder = node("recorder", bag=what == "bag", **settings)
    full = tmp_path / "full"
    player = in_ros.start(_play, script=script, pause=str(full))
    _until(lambda: (dataset / "meta" / "info.json").exists() and _count(dataset) == 1, "first episode")
    free = os.statvfs(small_disk)
    with open(small_disk / "filler", "wb") as filler, contextlib.suppress(OSError):
        filler.write(bytes(free.f_bavail * free.f_frsize))
    full.touch()
    player.result(240)
    name = r"_0000.mcap: bag not written" if what == "bag" else f"{dataset}: episode not stored"
    _until(lambda: name in recorder.log("recorder-1"), "line about the full disk")
    log = recorder.log("recorder-1")
    assert "No space left on device" in log
    assert in_ros(_silent)
    assert recorder.named("recorder").poll() is None
    (small_disk / "filler").unlink()
    in_ros(_recover)
    recorder.stop()
    kept = EpisodeDataset.open(dataset)
    assert kept.episodes == 1
    assert_same_episode(_unprivileged(kept.to_episode(0)), _unprivileged(episodes[0]))
    if what == "bag":
        assert "episode 1 dropped: writing failed" in log
        assert import_bag(small_disk / "bag", tmp_path / "imported")["episodes"] == 1


def _silent() -> bool:
    """The recorder no longer beats and says why on /diagnostics."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    from ros_client import Client
    from valueguide_msgs.msg import Heartbeat

    with Client() as client:
        beats = client.listen("heartbeat", Heartbeat)
        arrays = client.listen("/diagnostics", DiagnosticArray)

        def complains() -> bool:
            states = [s for array in arrays for s in array.status if s.name == "/recorder"]
            return (
                bool(states)
                and states[-1].level == DiagnosticStatus.ERROR
                and "No space" in states[-1].message
            )

        client.until(complains, "an error in the recorder's diagnostics")
        return not [beat for beat in beats if beat.node == "/recorder"]


def _recover() -> None:
    """With room again, configuring and activating is all that it takes."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from ros_client import Client

    with Client() as client:
        for number in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=number))
            assert client.call("recorder/change_state", ChangeState, request).success
        client.active("recorder")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"out": ""}, "out: expected a folder, found nothing"),
        ({"out": "/proc/nowhere"}, "/proc/nowhere"),
        ({"out": "x", "image_format": "bmp"}, "image_format: expected"),
        ({"out": "x", "robot": "ghost"}, "robot ghost"),
    ],
)
def test_wrong_settings_are_one_line_and_no_recording(
    node: Callable[..., Any], tmp_path: Path, robot_file: str, settings: dict[str, str], text: str
) -> None:
    settings = {key: str(tmp_path / value) if value == "x" else value for key, value in settings.items()}
    recorder = node("recorder", **{"robot": robot_file, **settings})
    _until(lambda: text in recorder.log("recorder-1"), f"{text} in the log")
    assert not (tmp_path / "x").exists()


def _count(dataset: Path) -> int:
    with contextlib.suppress(Exception):
        return EpisodeDataset.open(dataset).episodes
    return 0
