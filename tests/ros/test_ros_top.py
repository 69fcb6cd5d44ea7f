"""`valueguide top` beside real nodes: one snapshot for scripts, and live on a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.ros

_TOP = [sys.executable, "-m", "valueguide.cli.main", "top"]


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # As from a shell that knows nothing of ROS: only what the user would have set.
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("AMENT", "_ROS"))}
    plain["ROS_DOMAIN_ID"] = environment["ROS_DOMAIN_ID"]
    return subprocess.run([*_TOP, *arguments], env=plain, capture_output=True, text=True, timeout=60)


def _graph(seconds: float) -> None:
    """The rest of a graph, in namespace lab."""
    from builtin_interfaces.msg import Time
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image
    from valueguide_msgs.msg import ActionChunk, Decision, ExecutorState, Progress, SafetyState, Scores

    with Client("lab") as client:
        publishers = {
            topic: client.publisher(topic, kind, listeners=0)
            for topic, kind in (
                ("front/image", Image), ("annotated/image", Image), ("decision", Decision), ("clock", Clock),
                ("chunk", ActionChunk), ("executor_state", ExecutorState),
                ("progress", Progress), ("safety_state", SafetyState),
            )
        }  # fmt: skip
        messages = {
            "front/image": Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12)),
            "decision": Decision(reason="argmax", index=2, preferred=2, latency_s=0.05,
                                 scores=Scores(members=1, k=3, values=[0.1, 0.2, 0.3])),
            "clock": Clock(clock=Time(sec=50)),
            "chunk": ActionChunk(),
            "executor_state": ExecutorState(state="running", commander="policy"),
            "progress": Progress(value=0.5, status="ok"),
            "safety_state": SafetyState(state=SafetyState.HOLDING, reason="commanded"),
        }  # fmt: skip
        messages["annotated/image"] = messages["front/image"]
        messages["chunk"].header.stamp = Time(sec=49, nanosec=750_000_000)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for topic, message in messages.items():
                publishers[topic].publish(message)
            client.spin(0.1)


def test_once_prints_a_snapshot_and_json(
    node: Callable[..., Any], in_ros: Any, ros_environment: dict[str, str]
) -> None:
    node("teleop", robot="sim", _namespace="lab")
    in_ros.start(_graph, seconds=50)
    limit = time.monotonic() + 40
    while True:
        done = _run(ros_environment, "--once", "--seconds", "4", "--namespace", "lab", "--json", "-")
        found = json.loads(done.stdout) if done.returncode == 0 else {}
        if (
            found.get("decisions")
            and found["nodes"]
            and any(t["topic"] == "front/image" for t in found["topics"])
        ):
            break
        assert time.monotonic() < limit, done.stdout + done.stderr
    (teleop,) = (entry for entry in found["nodes"] if entry["name"] == "teleop")
    assert teleop["state"] == "active" and teleop["heartbeat_age_s"] < 1
    assert found["commander"] == "policy" and found["safety"]["reason"] == "commanded"
    topics = {topic["topic"]: topic["rate_hz"] for topic in found["topics"]}
    assert 1 < topics["front/image"] < 12 and topics["decision"] > 1
    assert found["latency_ms"]["decision"]["last"] == pytest.approx(50)
    assert found["latency_ms"]["chunk age"]["last"] == pytest.approx(250), "by the clock of this namespace"
    assert "annotated/image" not in topics, "drawn only for those who look; this does not"
    assert "teleop" in done.stderr and "[##########..........] 50%" in done.stderr, (
        "for people, beside the JSON"
    )


def test_nothing_heard_is_one_clear_line(ros_environment: dict[str, str]) -> None:
    done = _run(ros_environment, "--once", "--seconds", "0.5", "--namespace", "nobody")
    assert done.returncode == 2 and done.stdout == ""
    assert "no node heard in namespace /nobody of ROS_DOMAIN_ID" in done.stderr
    assert "valueguide ros launch" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--namespace", "9 lives"), ("--seconds", "0")])
def test_wrong_arguments_are_one_line(ros_environment: dict[str, str], arguments: tuple[str, str]) -> None:
    done = _run(ros_environment, "--once", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: top: --") and done.stderr.count("\n") == 1


def test_live_view_refreshes_and_leaves_the_screen_as_it_was(
    node: Callable[..., Any], ros_environment: dict[str, str]
) -> None:
    node("teleop", robot="sim")
    master, slave = pty.openpty()
    process = subprocess.Popen(_TOP, env=ros_environment, stdin=slave, stdout=slave, stderr=slave)
    screen, limit = "", time.monotonic() + 40
    try:
        while screen.count("teleop          active") < 3:
            assert time.monotonic() < limit and process.poll() is None, screen[-2000:]
            if select.select([master], [], [], 0.1)[0]:
                screen += os.read(master, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < limit
            if select.select([master], [], [], 0.1)[0]:
                screen += os.read(master, 65536).decode(errors="replace")
        while select.select([master], [], [], 0.1)[0]:
            screen += os.read(master, 65536).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
    assert process.returncode == 0 and "Traceback" not in screen
    assert screen.index("\x1b[?1049h") < screen.rindex("\x1b[?1049l") and screen.count("\x1b[H") >= 3
