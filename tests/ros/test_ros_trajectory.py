"""Joint commands as JointTrajectory. Runs on the ROS side: it needs the message packages."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros

_UR = {
    "name": "arm",
    "rate_hz": 20.0,
    "action": {"kind": "joint_position", "names": ["a", "b", "grip"]},
    "state": ["position.a"],
    "limits": {"action_low": [-1, -1, 0], "action_high": [1, 1, 1]},
    "joints": {"names": ["a", "b"], "gripper": "finger", "gripper_closed": 0.8, "gripper_open": 0.0},
}


def _convert() -> dict:
    from builtin_interfaces.msg import Time

    from valueguide.config.robot import decode_robot
    from valueguide.errors import DataError
    from valueguide_nodes.trajectory import HOLD_S, to_hold, to_trajectory

    robot = decode_robot(_UR, "test")
    arm, gripper = to_trajectory(robot, [0.1, -0.2, 0.25], Time(sec=7, nanosec=5), 1.05)
    at_once, _ = to_trajectory(robot, [0.1, -0.2, 0.25], None, 0.05)
    without = decode_robot(
        {**_UR, "joints": {"names": ["a", "b"]}, "action": {"kind": "joint_position", "names": ["a", "b"]}}
        | {"limits": {"action_low": [-1, -1], "action_high": [1, 1]}},
        "test",
    )
    hold = to_hold(robot, [0.3, 0.4])
    refused = []
    for call in (
        lambda: to_trajectory(robot, [0.1, -0.2], None, 0.05),
        lambda: to_trajectory(robot, [0.1, float("nan"), 0.5], None, 0.05),
        lambda: to_trajectory(robot, [0.1, 0.2, float("nan")], None, 0.05),
        lambda: to_hold(robot, [0.1]),
    ):
        try:
            call()
            refused.append("")
        except DataError as error:
            refused.append(str(error))
    return {
        "arm": [list(arm.joint_names), list(arm.points[0].positions), arm.header.stamp.sec],
        "seconds": [arm.points[0].time_from_start.sec, arm.points[0].time_from_start.nanosec],
        "velocities": list(arm.points[0].velocities),
        "gripper": [list(gripper.joint_names), list(gripper.points[0].positions)],
        "at_once": [at_once.header.stamp.sec, at_once.header.stamp.nanosec],
        "without": to_trajectory(without, [0.1, -0.2], None, 0.05)[1] is None,
        "hold": [list(hold.points[0].positions), hold.points[0].time_from_start.nanosec / 1e9 - HOLD_S],
        "hold_stamp": hold.header.stamp.sec,
        "refused": refused,
    }


def test_actions_become_one_point_trajectories(in_ros) -> None:
    found = in_ros(_convert)
    assert found["arm"] == [["a", "b"], [0.1, -0.2], 7]
    assert found["seconds"] == [1, 50_000_000]
    assert found["velocities"] == []
    assert found["gripper"][0] == ["finger"]
    assert found["gripper"][1] == pytest.approx([0.6])  # a quarter open, between 0.8 closed and 0.0 open
    assert found["at_once"] == [0, 0]
    assert found["without"]
    assert found["hold"][0] == [0.3, 0.4]
    assert abs(found["hold"][1]) < 1e-9
    assert found["hold_stamp"] == 0
    assert "expected 3 values, found 2" in found["refused"][0]
    assert "command b: not a finite number" in found["refused"][1]
    assert "gripper: not a finite number" in found["refused"][2]
    assert "expected 2 joints, found 1" in found["refused"][3]
