"""Node `policy` with somebody else's policy server as its proposer, and the critic in the node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from valueguide.cli.common import shipped

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def address() -> Iterator[str]:
    """A GR00T server in a process of its own, serving the shipped policy."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "valueguide.testing.fake_groot_server", shipped("wxai-state", "policy")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = next(line.split()[-1] for line in process.stdout if line.startswith("listening on "))
        yield f"groot://127.0.0.1:{port}?config=wxai-state-groot"
    finally:
        process.kill()
        process.wait()


def _decides() -> dict[str, Any]:
    from still_robot import LONG_S, StillRobot

    with StillRobot("policy") as robot:
        robot.active("policy", timeout=LONG_S)
        robot.ask()
        robot.until(lambda: len(robot.decisions) >= 3 and len(robot.chunks) >= 3, "three decisions", LONG_S)
        return {
            "reasons": [decision.reason for decision in robot.decisions],
            "policies": [chunk.policy_version for chunk in robot.chunks],
        }


def test_a_critic_chooses_among_the_chunks_of_another_server(
    address: str, node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node("policy", policy=address, critic="wxai-state", k=4)
    found = in_ros(_decides, timeout=400)
    assert set(found["reasons"]) == {"argmax"}
    assert all(version.startswith("remote-") for version in found["policies"])
