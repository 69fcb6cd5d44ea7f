"""A node ends in order when asked to, whatever it is in the middle of."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = pytest.mark.ros

_NODES = [f"progress_{i}" for i in range(4)]


def _flood(seconds: float) -> int:
    """Messages with long texts, as fast as they go, until the last listener is gone."""
    import time

    from ros_client import Client
    from valueguide_msgs.msg import Progress

    with Client() as client:
        client.active(*_NODES, timeout=60)
        publisher = client.publisher("sim_truth", Progress, listeners=len(_NODES))
        message = Progress(status="ok", detail="x" * 10000)
        sent, limit = 0, time.monotonic() + seconds
        while publisher.get_subscription_count() and time.monotonic() < limit:
            publisher.publish(message)
            sent += 1
            client.spin(0.0)
        return sent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_interrupted_in_a_flood_of_messages_ends_with_0(node, in_ros, number: int) -> None:
    nodes = {name: node("progress", _name=name) for name in _NODES}
    flood = in_ros.start(_flood, seconds=60.0)
    heard = in_ros(_hears, timeout=90)
    assert heard > 0
    for processes in nodes.values():
        (process,) = processes.process.values()
        process.send_signal(number)
    for name, processes in nodes.items():
        assert processes.named(name).wait(timeout=20) == 0, processes.log(f"{name}-1")
        assert "Traceback" not in processes.log(f"{name}-1")
    assert flood.result(90) > 0


def _hears() -> int:
    """Waits until the flood has come through the nodes."""
    from ros_client import Client
    from valueguide_msgs.msg import Progress

    with Client() as client:
        heard: list[Any] = client.listen("progress", Progress)
        client.until(lambda: sum(m.detail.startswith("x") for m in heard) > 20, "flood", 60)
        return len(heard)


def _there() -> bool:
    from ros_client import Client

    with Client() as client:
        return client.until(lambda: "policy" in client.node.get_node_names(), "node policy", 60)


def test_a_node_that_is_still_loading_can_be_interrupted(node, in_ros) -> None:
    processes = node("policy", policy="wxai-state", critic="none")
    assert in_ros(_there, timeout=90)
    processes.named("policy").send_signal(signal.SIGINT)
    assert processes.named("policy").wait(timeout=20) == 0, processes.log("policy-1")


def test_a_description_that_is_not_there_is_one_line_and_no_active_node(node, in_ros) -> None:
    gate = node("safety_gate", robot="/not/there.yaml")
    assert in_ros(_told) == "/not/there.yaml"
    gate.stop()
    assert "Traceback" not in gate.log("safety_gate-1")


def _told() -> str:
    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client

    with Client() as client:
        found = client.wait(
            "/diagnostics", DiagnosticArray, lambda m: "/not/there.yaml" in m.status[0].message, timeout=40
        )
        return "/not/there.yaml" if found.status[0].level == b"\x02" else str(found.status[0])
