"""Nodes `policy` and `reranker` with their models on a server: real nodes, a real `valueguide serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from valueguide.cli.common import shipped
from valueguide.testing.serve_process import Serve

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def serve() -> Iterator[Serve]:
    pytest.importorskip("torch")
    found = Serve(shipped("wxai-state", "critic"))
    yield found
    if found.process.poll() is None:
        found.end()


def _decides(name: str) -> dict[str, Any]:
    """Decisions of a node whose models are elsewhere."""
    from still_robot import LONG_S, StillRobot

    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        robot.ask()
        robot.until(lambda: len(robot.decisions) >= 3 and len(robot.chunks) >= 3, "three decisions", LONG_S)
        return {
            "reasons": [decision.reason for decision in robot.decisions],
            "critics": [decision.critic_version for decision in robot.decisions],
            "policies": [chunk.policy_version for chunk in robot.chunks],
        }


@pytest.mark.parametrize("name", ["policy", "reranker"])
def test_a_node_decides_by_models_on_a_server(
    name: str, serve: Serve, node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node(name, server=serve.endpoint, server_timeout_s=30.0, **({"k": 4} if name == "policy" else {}))
    found = in_ros(_decides, timeout=400, name=name)
    assert set(found["reasons"]) == {"argmax"} and all(found["critics"])
    assert all(found["policies"]) or name == "reranker"
    assert serve.end()["outcomes"]["decision"] >= 3


def _goes_on(endpoint: str, pid: int) -> None:
    import os
    import signal

    from still_robot import LONG_S, StillRobot

    with StillRobot("policy") as robot:
        robot.active("policy", timeout=LONG_S)
        robot.ask()
        robot.until(lambda: len(robot.decisions) >= 2, "two decisions", LONG_S)
        os.kill(pid, signal.SIGKILL)
        robot.spin(3.0)
        count = len(robot.decisions)
        robot.spin(2.0)
        assert len(robot.decisions) == count  # nothing is made up
        again = Serve(shipped("wxai-state", "critic"), port=endpoint.rpartition(":")[2])
        try:
            robot.until(lambda: len(robot.decisions) >= count + 2, "decisions by another server", LONG_S)
        finally:
            again.end()


def test_the_policy_node_outlives_its_server(
    serve: Serve, node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node("policy", server=serve.endpoint, server_timeout_s=1.0, k=4)
    in_ros(_goes_on, timeout=800, endpoint=serve.endpoint, pid=serve.process.pid)
    serve.process.communicate()
