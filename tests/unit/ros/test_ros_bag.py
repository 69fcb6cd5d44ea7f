"""MCAP bags: what is written reads back, also after kill -9, a full disk, and through other tools."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from ros_episodes import ROBOT, START, make_episode

from valueguide.errors import DataError
from valueguide.ros.bag import BagReader, BagWriter
from valueguide.ros.bag_check import check_bag
from valueguide.ros.definitions import definition
from valueguide.ros.export import episode_messages, serialize
from valueguide.ros.recording import bag_facts, graph_of
from valueguide.ros.topics import match_topics, recorded_topics, resolve

BOOL = "std_msgs/msg/Bool"


def write_episode(writer: BagWriter, seed: int = 1, namespace: str = "") -> int:
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    messages = episode_messages(ROBOT, make_episode(seed), 0)
    for entry in messages:
        topic = topics[entry.role]
        data = serialize(topic.type, entry.message)
        writer.write(resolve(topic.name, namespace), topic.type, data, entry.stamp)
    return len(messages)


def _truth(value: bool) -> bytes:
    return bytes([0, 1, 0, 0, value])


def test_messages_read_back_in_order_with_facts(tmp_path: Path) -> None:
    with BagWriter(tmp_path, bag_facts(ROBOT, "/left", True)) as writer:
        count = write_episode(writer, namespace="/left")
    (session,) = BagReader.open(tmp_path).sessions()
    graph = graph_of(session)
    assert graph.robot == ROBOT and graph.namespace == "/left" and graph.privileged
    messages = list(session)
    assert len(messages) == count and not session.truncated
    assert [m.log_ns for m in messages] == sorted(m.log_ns for m in messages)
    image = next(m for m in messages if m.topic == "/left/front/image")
    decoded = session.decode(image)
    expected = make_episode(1).steps[0].observation.images["front"]
    assert (decoded.height, decoded.width, decoded.encoding) == (6, 8, "rgb8")
    assert bytes(decoded.data) == expected.tobytes()


def test_others_can_read_our_bags(tmp_path: Path) -> None:
    """The MCAP library's own indexed reader, with nothing of ours registered."""
    with BagWriter(tmp_path, bag_facts(ROBOT, "", True)) as writer:
        count = write_episode(writer)
    with open(writer.path, "rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        assert summary is not None and summary.statistics is not None
        assert summary.statistics.message_count == count
        decoded = list(reader.iter_decoded_messages(topics=["/decision"]))
    assert decoded and decoded[0][3].reason == "argmax" and decoded[0][3].scores.members == 2


def test_definitions_are_complete() -> None:
    text = definition("valueguide_msgs/msg/Decision")
    for inner in ("std_msgs/Header", "builtin_interfaces/Time", "valueguide_msgs/Scores"):
        assert f"\nMSG: {inner}\n" in text
    for topic in recorded_topics(ROBOT):
        assert definition(topic.type)


@pytest.mark.parametrize("by", ["bytes", "seconds"])
def test_files_are_split_and_read_as_one(tmp_path: Path, by: str) -> None:
    limits: dict[str, Any] = {"split_bytes": 20_000} if by == "bytes" else {"split_s": 1.0}
    with BagWriter(tmp_path, {}, flush_s=0.0, **limits) as writer:
        for i in range(60):
            writer.write("/a", "std_msgs/msg/String", os.urandom(1000), START + i * 100_000_000)
    reader = BagReader.open(tmp_path)
    assert len(reader.paths) >= 3
    (session,) = reader.sessions()
    assert [m.log_ns for m in session] == [START + i * 100_000_000 for i in range(60)]
    if by == "seconds":
        assert len(reader.paths) == 6


def test_recordings_in_one_folder_stay_apart(tmp_path: Path) -> None:
    for session in ("a", "b"):
        with BagWriter(tmp_path, {}, session=session) as writer:
            writer.write("/estop", BOOL, _truth(True), 5)
    first, second = BagReader.open(tmp_path).sessions()
    assert (first.facts["session"], second.facts["session"]) == ("a", "b")
    with pytest.raises(DataError, match="a_0000.mcap: bag not written: .*exists"):
        BagWriter(tmp_path, {}, session="a")


_RECORDER = """
import sys, time
from pathlib import Path
from valueguide.ros.bag import BagWriter
sys.path.insert(0, {tests!r})
from test_ros_bag import BOOL, _truth
writer = BagWriter(Path({folder!r}), {{}})
while True:
    now = time.time_ns()
    writer.write("/estop", BOOL, _truth(True), now)
    writer.tick()
    print(now, flush=True)
    time.sleep(0.002)
"""


@pytest.mark.faults
def test_kill_9_loses_at_most_the_last_second(tmp_path: Path) -> None:
    code = textwrap.dedent(_RECORDER).format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = int(process.stdout.readline())
        while int(process.stdout.readline()) < first + 2_000_000_000:
            pass
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    last = int(rest[-1]) if rest else first + 2_000_000_000
    reader = BagReader.open(tmp_path)
    stamps = [m.log_ns for m in reader]
    assert reader.truncated
    assert stamps[0] == first and stamps == sorted(stamps)
    assert last - stamps[-1] < 1_000_000_000
    assert check_bag(tmp_path)["truncated"]


@given(cut=st.integers(0, 100_000), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_file_cut_anywhere_gives_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, cut: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with BagWriter(folder, {}, flush_s=0.0) as writer:
        for i in range(20):
            writer.write("/a", "std_msgs/msg/String", os.urandom(200), i)
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[: cut % len(content)])
    stamps = [m.log_ns for m in BagReader.open(folder)]
    assert stamps == list(range(len(stamps)))


def test_damage_in_the_middle_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    with BagWriter(tmp_path, {}, flush_s=0.0) as writer:
        for i in range(50):
            writer.write("/a", "std_msgs/msg/String", os.urandom(500), i)
    content = bytearray(writer.path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = bytes(200)
    writer.path.write_bytes(content)
    with pytest.raises(DataError, match=r"_0000\.mcap: damaged before byte \d+"):
        list(BagReader.open(tmp_path))


def test_one_wrong_byte_in_a_payload_is_noticed(tmp_path: Path) -> None:
    payload = os.urandom(500)
    with BagWriter(tmp_path, {}, flush_s=0.0) as writer:
        for i in range(5):
            writer.write("/a", "std_msgs/msg/String", payload if i == 2 else os.urandom(500), i)
    content = bytearray(writer.path.read_bytes())
    content[content.index(payload[100:150])] ^= 0xFF
    writer.path.write_bytes(content)
    with pytest.raises(DataError, match=r"_0000\.mcap: damaged before byte \d+: crc"):
        list(BagReader.open(tmp_path))


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a .mcap file or a folder with some, found none"):
        BagReader.open(tmp_path)
    (tmp_path / "x.mcap").write_text("this is no bag, but long enough")
    with pytest.raises(DataError, match="x.mcap: expected an MCAP file"):
        list(BagReader.open(tmp_path))


@pytest.mark.faults
def test_a_full_disk_names_the_file_and_keeps_what_came_before(tmp_path: Path) -> None:
    """The limit on file size stands in for a disk that fills up; it bites in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = BagWriter(tmp_path, {}, flush_s=0.0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(DataError, match=r"_0000\.mcap: bag not written: .*too large"):
            for i in range(1000):
                writer.write("/a", "std_msgs/msg/String", os.urandom(1000), i)
        with pytest.raises(DataError, match="the bag is closed"):
            writer.write("/a", "std_msgs/msg/String", b"1234", 0)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    reader = BagReader.open(tmp_path)
    stamps = [m.log_ns for m in reader]
    assert reader.truncated and len(stamps) > 40 and stamps == list(range(len(stamps)))


def test_check_finds_gaps_backward_stamps_and_missing_topics(tmp_path: Path) -> None:
    topics = {topic.role: topic for topic in recorded_topics(ROBOT) if topic.role}
    with BagWriter(tmp_path, bag_facts(ROBOT, "", True)) as writer:
        messages = episode_messages(ROBOT, make_episode(1, "P" * 12), 0)
        received = 0
        for entry in messages:
            late = entry.role == "joints" and entry.stamp >= START + 600_000_000
            received = entry.stamp
            if entry.role == "camera/wrist" or entry.role == "joints" and entry.stamp > START and not late:
                continue
            if late:
                entry.message.header.stamp.sec -= 3
            data = serialize(topics[entry.role].type, entry.message)
            writer.write("/" + topics[entry.role].name, topics[entry.role].type, data, received)
    found = check_bag(tmp_path)
    assert found["missing"] == ["/wrist/image"]
    joints = found["topics"]["/joint_states"]
    assert joints["gaps"] == 1 and joints["longest_gap_s"] == 0.6 and joints["backwards"] == 1
    assert found["topics"]["/front/image"]["rate_hz"] == 10.0
    text = " | ".join(found["problems"])
    for part in ("/wrist/image: nothing recorded", "/joint_states: 1 gaps", "1 stamps go backwards"):
        assert part in text
    json.dumps(found)


def test_a_sound_bag_has_no_problems(tmp_path: Path) -> None:
    with BagWriter(tmp_path, bag_facts(ROBOT, "", True)) as writer:
        count = write_episode(writer)
    found = check_bag(tmp_path)
    assert found["problems"] == [] and found["messages"] == count and found["sessions"][0]["robot"] == "small"


def test_a_bag_without_privileged_state_need_not_hold_any(tmp_path: Path) -> None:
    for privileged in (True, False):
        with BagWriter(tmp_path / str(privileged), bag_facts(ROBOT, "", privileged)) as writer:
            writer.write("/estop", BOOL, _truth(True), 1)
    assert "/environment_state" in check_bag(tmp_path / "True")["missing"]
    assert "/environment_state" not in check_bag(tmp_path / "False")["missing"]


def test_topics_are_found_under_a_namespace_that_nobody_told() -> None:
    topics = [topic for topic in recorded_topics(ROBOT) if topic.role]
    found = match_topics(topics, ["/arm/command", "/arm/task", "/arm/front/image", "/other"], None)
    assert {name: topic.role for name, topic in found.items()} == {
        "/arm/command": "command",
        "/arm/task": "task",
        "/arm/front/image": "camera/front",
    }
    with pytest.raises(DataError, match="topic task: expected one, found /left/task, /right/task"):
        match_topics(topics, ["/left/task", "/right/task"], None)


def test_ticks_flush_what_was_written_last(tmp_path: Path) -> None:
    now = [0.0]
    writer = BagWriter(tmp_path, {}, clock=lambda: now[0])
    writer.write("/estop", BOOL, _truth(True), 1)
    assert not list(BagReader.open(tmp_path))
    now[0] = 0.6
    writer.tick()
    assert len(list(BagReader.open(tmp_path))) == 1
    writer.close()
