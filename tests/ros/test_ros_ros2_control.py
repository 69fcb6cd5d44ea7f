"""Arms behind ros2_control: the real safety gate sends trajectories, a fake controller follows them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from valueguide.testing.launch_processes import Command, Processes

pytestmark = pytest.mark.ros


@pytest.fixture
def fake_controller(
    ros_environment: dict[str, str], started: list[Processes], tmp_path: Path
) -> Callable[[str], Processes]:
    def start(robot: str) -> Processes:
        line = [
            sys.executable,
            "-m",
            "valueguide.testing.fake_controller",
            "--ros-args",
            "-p",
            f"robot:={robot}",
        ]
        folder = tmp_path / f"fake-{robot}"
        folder.mkdir()
        started.append(Processes([Command("fake_controller-1", line)], ros_environment, folder))
        return started[-1]

    return start


def _beat_as_executor(client: Any) -> None:
    """The gate lets nothing through without an executor's sign of life."""
    from ros_client import RELIABLE
    from valueguide_msgs.msg import Heartbeat

    publisher = client.node.create_publisher(Heartbeat, "heartbeat", RELIABLE)
    client.node.create_timer(0.1, lambda: publisher.publish(Heartbeat(node="executor", state="active")))


def _drive(robot: str) -> dict[str, Any]:
    import numpy as np
    from ros_client import LATCHED, Client
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool
    from trajectory_msgs.msg import JointTrajectory
    from valueguide_msgs.msg import Command, SafetyState

    from valueguide.config.robot import load_robot
    from valueguide.ros.messages import JointReader

    description = load_robot(robot)
    reader, names = JointReader(description), description.joints.names
    with Client() as client:
        _beat_as_executor(client)
        client.active("safety_gate")
        joints = client.listen(description.joints.topic, JointState)
        arm = client.listen(description.output.topic, JointTrajectory)
        safety = client.listen("safety_state", SafetyState, LATCHED)
        proposed = client.publisher("proposed_command", Command)
        client.until(lambda: joints and safety, "state of the arm and the gate")
        here = reader.values(joints[-1], "position", names)
        sequence, jumps = 0, []

        def send(values: Any) -> None:
            nonlocal sequence
            message = Command(names=description.action.names, values=list(map(float, values)))
            message.sequence, sequence = sequence, sequence + 1
            message.header.stamp = client.node.get_clock().now().to_msg()
            proposed.publish(message)

        def approach(goal: Any) -> None:
            """Steps towards the goal from where the arm is, until it is there."""
            for _ in range(600):
                measured = reader.values(joints[-1], "position", names)
                if np.abs(goal - measured).max() < 2e-3 and reader.opening(joints[-1]) < 0.01:
                    return
                send([*(measured + np.clip(goal - measured, -0.04, 0.04)), 0.0])
                client.spin(1.0 / description.rate_hz)
                jumps.append(np.abs(reader.values(joints[-1], "position", names) - measured).max())
            raise TimeoutError(f"{robot}: not at the goal: {goal - measured}")

        found: dict[str, Any] = {}
        goal = here + np.where(np.arange(len(names)) % 2, 0.2, -0.2)
        approach(goal)
        found["jump"] = max(jumps)
        found["opening"] = reader.opening(joints[-1])

        # No commands any more: the gate holds, with a trajectory to where the arm is.
        send([*(goal + 0.04), 0.0])
        client.until(lambda: safety[-1].state == SafetyState.HOLDING, "hold by the gate")
        client.spin(0.3)
        held, last = reader.values(joints[-1], "position", names), arm[-1]
        found["hold"] = float(np.abs(np.array(last.points[0].positions) - held).max())
        found["hold_opening"] = reader.opening(joints[-1])

        send([float("nan"), *goal[1:], 0.0])
        send([*(held + 1.0), 0.0])
        client.until(lambda: safety[-1].rejected >= 2, "refusals")
        client.spin(0.2)
        found["refused"] = float(np.abs(reader.values(joints[-1], "position", names) - held).max())

        stop = client.publisher("estop", Bool)
        stop.publish(Bool(data=True))
        client.until(lambda: safety[-1].state == SafetyState.STOPPED, "stop")
        client.spin(0.3)
        sent = len(arm)
        send([*(held + 0.03), 0.0])
        client.spin(0.4)
        found["after_stop"] = len(arm) - sent
        return found


@pytest.mark.parametrize("robot", ["ur5e", "franka"])
def test_the_gate_drives_holds_and_stops_an_arm_behind_ros2_control(
    robot: str, node: Callable[..., Any], fake_controller: Callable[[str], Any], in_ros: Any
) -> None:
    controller = fake_controller(robot)
    node("safety_gate", robot=robot)
    found = in_ros(_drive, timeout=90, robot=robot)
    print(found)
    assert found["jump"] < 0.15
    assert found["opening"] < 0.01
    assert found["hold"] < 1e-3
    assert found["hold_opening"] < 0.01, "the hold let go"
    assert found["refused"] < 1e-3
    assert found["after_stop"] == 0
    assert "rejected: joints" not in controller.log("fake_controller-1")
