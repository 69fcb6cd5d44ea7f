"""The descriptions of real arms: they load, their numbers agree with each other and with the vendors'."""

from __future__ import annotations

import numpy as np
import pytest
from test_robot_kinematics import vendor_chain

from valueguide.config.robot import load_robot
from valueguide.safety.limits import Measured, check_command

#: Published ranges (radians) and speeds (rad/s) of the arms' joints.
_PUBLISHED = {
    "wxai": ([-3.054, 0, 0, -1.571, -1.571, -3.142], [3.054, 3.142, 4.712, 1.571, 1.571, 3.142],
             [3.375, 3.375, 3.375, 7.0, 7.0, 7.0]),
    "ur5e": ([-2 * np.pi] * 6, [2 * np.pi] * 6, [np.pi] * 6),
    "franka": ([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159],
               [2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159],
               [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_PUBLISHED))
def test_limits_are_within_what_the_vendor_publishes(name: str) -> None:
    limits = load_robot(name).limits
    low, high, speed = (np.array(part) for part in _PUBLISHED[name])
    assert (np.array(limits.joint_low) >= low - 1e-3).all()
    assert (np.array(limits.joint_high) <= high + 1e-3).all()
    assert (np.array(limits.joint_velocity) <= speed + 1e-9).all()
    assert np.isfinite(limits.force)
    assert limits.workspace_low


@pytest.mark.parametrize("name", ["ur5e", "franka"])
def test_joint_commands_cannot_ask_for_more_than_the_joints_can(name: str) -> None:
    robot = load_robot(name)
    joints, limits = len(robot.joints.names), robot.limits
    assert len(robot.action.names) == joints + 1
    assert limits.action_low[:joints] == limits.joint_low
    assert limits.action_high[:joints] == limits.joint_high
    assert (limits.action_low[-1], limits.action_high[-1]) == (0.0, 1.0)
    speed = np.array(limits.action_step[:joints]) * robot.rate_hz
    assert (speed <= 0.5 * np.array(limits.joint_velocity)).all()
    # A command may lead by a few steps, or a steady motion would be refused for the arm's own lag.
    assert (np.array(limits.lead[:joints]) >= 2 * np.array(limits.action_step[:joints])).all()


@pytest.mark.parametrize("name", ["ur5e", "franka"])
def test_a_steady_motion_passes_the_limits_and_a_jump_does_not(name: str) -> None:
    robot = load_robot(name)
    middle = (np.array(robot.limits.joint_low) + np.array(robot.limits.joint_high)) / 2
    here = np.append(middle, 0.5).astype(np.float32)
    measured = Measured(here[:-1], action_pose=here)

    def why(step: float) -> str | None:
        values = here + np.append(np.full(len(middle), step), 0.0)
        return check_command(values, here, measured, robot.limits, "joint_position", robot.action.names)

    assert why(0.04) is None
    assert "step of" in (why(0.2) or "")


def test_the_wxai_workspace_is_above_the_table_and_within_the_arms_reach() -> None:
    limits, chain = load_robot("wxai").limits, vendor_chain()
    assert limits.workspace_low[2] > 0
    reach = np.abs(chain.origins[1:]).sum() + np.linalg.norm(chain.tool.position)
    assert np.linalg.norm(limits.workspace_high) < reach
