"""A bag replayed: what the policy heard, in order and in time, and nothing that it said itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros

START_NS = 1_700_000_000_000_000_000
STEPS, PERIOD_NS = 30, 50_000_000
REQUESTED = {5: 1, 15: 2, 25: 3}  # step -> request


def _write_bag(folder: str, namespace: str, other_version: bool) -> None:
    """1.5 s of a small recording of the robot `sim`."""
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState
    from valueguide_msgs.msg import Candidates, ChunkRequest, Command, Task

    from valueguide.config.robot import load_robot
    from valueguide.ros import bag
    from valueguide.ros.recording import bag_facts
    from valueguide.ros.topics import resolve

    if other_version:
        text = bag.definition("valueguide_msgs/msg/Task")
        bag.definition = lambda name: text + "\nint32 more" if name.endswith("Task") else ""
    with bag.BagWriter(folder, bag_facts(load_robot("sim"), namespace, True)) as writer:

        def write(topic: str, kind: str, message: Any, ns: int) -> None:
            writer.write(resolve(topic, namespace), kind, serialize_message(message), ns)

        write("task", "valueguide_msgs/msg/Task", Task(active=True, instruction="push"), START_NS)
        for step in range(STEPS):
            now = START_NS + step * PERIOD_NS
            joints = JointState(name=[f"joint_{i}" for i in range(6)], position=[float(step)] * 6)
            joints.header.stamp.sec, joints.header.stamp.nanosec = divmod(now, 10**9)
            write("joint_states", "sensor_msgs/msg/JointState", joints, now)
            write("command", "valueguide_msgs/msg/Command", Command(sequence=step), now)
            write("candidates", "valueguide_msgs/msg/Candidates", Candidates(k=4), now)
            if step in REQUESTED:
                request = ChunkRequest(request_id=REQUESTED[step], instruction="push")
                write("chunk_request", "valueguide_msgs/msg/ChunkRequest", request, now)


def _hear(beat: bool) -> dict[str, Any]:
    """What a policy in the replay's namespace hears, until the last command; times in seconds."""
    import time

    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import JointState
    from valueguide_msgs.msg import Candidates, ChunkRequest, Command, Heartbeat, Task

    with Client("again") as client:
        heard: dict[str, list[tuple[float, Any]]] = {}

        def listen(topic: str, kind: Any, value: Any) -> None:
            from ros_client import qos

            entries = heard.setdefault(topic, [])
            client.node.create_subscription(
                kind, topic, lambda m: entries.append((time.monotonic(), value(m))), qos(topic)
            )

        listen("task", Task, lambda m: m.instruction)
        listen("joint_states", JointState, lambda m: m.position[0])
        listen("command", Command, lambda m: m.sequence)
        listen("candidates", Candidates, lambda m: m.k)
        listen("chunk_request", ChunkRequest, lambda m: m.request_id)
        listen("clock", Clock, lambda m: m.clock.sec * 10**9 + m.clock.nanosec)
        early = -1
        if beat:
            policy = client.publisher("heartbeat", Heartbeat)
            client.active("replay", timeout=60)
            client.spin(1.0)
            early = sum(len(entries) for entries in heard.values())
            policy.publish(Heartbeat(node="policy"))
        client.until(lambda: heard["command"] and heard["command"][-1][1] == STEPS - 1, "end of the bag", 60)
        return {"heard": heard, "early": early}


@pytest.fixture
def bag(in_ros, tmp_path: Path) -> Path:
    in_ros(_write_bag, folder=str(tmp_path / "bag"), namespace="/left", other_version=False)
    return tmp_path / "bag"


@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_the_policy_hears_again_what_it_heard_in_the_same_rhythm(
    node, in_ros, bag: Path, rate: float
) -> None:
    node("replay", bag=str(bag), rate=rate, _namespace="again", _remap={"/clock": "clock"})
    found = in_ros(_hear, timeout=120, beat=True)
    heard = {topic: [value for _, value in entries] for topic, entries in found["heard"].items()}
    assert found["early"] == 0, "it began before the policy was there"
    assert heard["task"] == ["push"]
    assert heard["command"] == list(range(STEPS))
    assert heard["chunk_request"] == [1, 2, 3]
    assert heard["candidates"] == [], "what the policy said is not for it to hear"
    # Sensors are best effort: in order, and nearly all.
    assert (
        heard["joint_states"] == sorted(set(heard["joint_states"])) and len(heard["joint_states"]) > STEPS / 2
    )
    times = [time for time, _ in found["heard"]["command"]]
    assert times[-1] - times[0] == pytest.approx((STEPS - 1) * PERIOD_NS / 1e9 / rate, abs=0.25)
    assert heard["clock"] == sorted(heard["clock"]) and len(heard["clock"]) > 20
    assert heard["clock"][0] >= START_NS and heard["clock"][-1] - START_NS > 0.8 * STEPS * PERIOD_NS


def test_without_anyone_to_wait_for_it_begins_at_once(node, in_ros, bag: Path) -> None:
    listener = in_ros.start(_hear, beat=False)
    assert in_ros(_listening, timeout=60)
    # Slow, as what is published before the two have found each other is lost to those that come late.
    node("replay", bag=str(bag), wait_for="", rate=0.2, _namespace="again", _remap={"/clock": "clock"})
    heard = [value for _, value in listener.result(90)["heard"]["command"]]
    assert heard and heard == list(range(heard[0], STEPS))


def _listening() -> bool:
    from ros_client import Client

    with Client("again", name="watch") as client:
        return client.until(lambda: client.node.count_subscribers("/again/command") > 0, "listener", 30)


def _error() -> str:
    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client

    with Client() as client:
        message = client.wait("/diagnostics", DiagnosticArray, lambda m: m.status[0].level == b"\x02", 60)
        return message.status[0].message


@pytest.mark.parametrize("fault", ["no bag", "other version"])
def test_a_bag_that_cannot_be_replayed_is_one_clear_error(node, in_ros, tmp_path: Path, fault: str) -> None:
    if fault == "other version":
        in_ros(_write_bag, folder=str(tmp_path), namespace="", other_version=True)
    node("replay", bag=str(tmp_path), wait_for="")
    error = in_ros(_error, timeout=90)
    expected = {"no bag": "expected a .mcap file or a folder with some", "other version": "bag topic /task"}
    assert expected[fault] in error and "\n" not in error


def _record() -> list[int]:
    """One episode; the requests of it."""
    from ros_client import Client
    from valueguide_msgs.msg import ChunkRequest
    from valueguide_msgs.srv import ResetSim

    with Client() as client:
        client.active("robot", "policy", "executor", "safety_gate", "task", "recorder", timeout=300)
        requests = client.listen("chunk_request", ChunkRequest)
        reset = client.call("reset_sim", ResetSim, ResetSim.Request(task="press_button", seed=3))
        client.send_task(instruction=reset.instruction, time_limit_s=5.0).result(90)
        client.spin(0.5)
        return [request.request_id for request in requests]


def _replayed(count: int) -> dict[str, Any]:
    from ros_client import Client
    from valueguide_msgs.msg import Candidates, Decision

    with Client("replay") as client:
        decisions, candidates = client.listen("decision", Decision), client.listen("candidates", Candidates)
        client.until(lambda: len(decisions) >= 0.8 * count, f"{count} decisions", 240)
        return {"requests": [d.request_id for d in decisions], "k": [c.k for c in candidates]}


@pytest.mark.slow
@pytest.mark.whole_graph
@pytest.mark.timeout(900)
def test_todays_policy_answers_the_requests_of_a_recorded_run(launched, in_ros, tmp_path: Path) -> None:
    light = {"policy": "wxai-state", "critic": "wxai-state"}
    graph = launched("sim.launch.py", record=tmp_path / "out", **light)
    recorded = in_ros(_record, timeout=400)
    assert len(recorded) > 3
    assert graph.stop()["recorder-9"] == 0
    launched("replay.launch.py", bag=tmp_path / "out" / "bag", k=4, **light)
    replayed = in_ros(_replayed, timeout=400, count=len(recorded))
    assert set(replayed["requests"]) <= set(recorded)
    assert set(replayed["k"]) == {4}
