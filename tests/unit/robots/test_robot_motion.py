"""From actions to joint targets: what is added, what is bounded, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_robot_kinematics import vendor_chain

from valueguide.config.robot import ActionSpec, load_robot
from valueguide.errors import DataError
from valueguide.robots.kinematics import Pose, rotation_of
from valueguide.robots.motion import (
    DOWN_WITHIN,
    HAND_DOWN,
    MAX_LEAD,
    MAX_YAW_LEAD,
    Motion,
    hand_rotation,
    hand_yaw,
)

_NAMES = ["dx", "dy", "dz", "dyaw", "grip"]
_FAST = np.full(6, 3.0)
_CHAIN = vendor_chain()
_START = _CHAIN.solve(Pose(np.array([0.25, 0.0, 0.10]), HAND_DOWN), [0.0, 1.49, 1.19, -1.28, 0.0, 0.0])


def _motion(**limits) -> Motion:
    robot = load_robot("wxai")
    return Motion(replace(robot, limits=replace(robot.limits, **limits)), _CHAIN, _FAST)


def _joint_motion() -> Motion:
    robot = load_robot("wxai")
    names = [*robot.joints.names, "grip"]
    limits = replace(robot.limits, action_low=(-4.0,) * 7, action_high=(4.0,) * 7)
    return Motion(
        replace(robot, action=ActionSpec("joint_position", names), limits=limits, state=["gripper"]),
        _CHAIN,
        _FAST,
    )


def _place(target) -> np.ndarray:
    return _CHAIN.forward(target.joints).position


def test_steps_add_up_on_the_commanded_pose() -> None:
    motion = _motion()
    first = motion.move(_NAMES, [0.01, 0.0, 0.0, 0.1, 1.0], _START)
    # The arm has not moved yet: the next step goes on from what was commanded, not from what is measured.
    second = motion.move(_NAMES, [0.01, 0.02, -0.01, 0.1, 0.5], _START)
    assert _place(first) == pytest.approx([0.26, 0.0, 0.10], abs=5e-4)
    assert _place(second) == pytest.approx([0.27, 0.02, 0.09], abs=5e-4)
    assert hand_yaw(_CHAIN.forward(second.joints).rotation) == pytest.approx(0.2, abs=1e-3)
    assert first.gripper == pytest.approx(0.044)
    assert second.gripper == pytest.approx(0.022)
    assert first.seconds == pytest.approx(0.1)


def test_the_commanded_pose_leads_the_measured_one_by_a_bounded_distance() -> None:
    motion = _motion()
    for _ in range(5):
        target = motion.move(_NAMES, [0.0, 0.03, 0.0, 0.3, 1.0], _START)
    assert _place(target)[1] == pytest.approx(MAX_LEAD, abs=5e-4)
    assert hand_yaw(_CHAIN.forward(target.joints).rotation) == pytest.approx(MAX_YAW_LEAD, abs=1e-3)


def test_a_hold_forgets_the_lead() -> None:
    motion = _motion()
    motion.move(_NAMES, [0.0, 0.03, 0.0, 0.0, 1.0], _START)
    motion.hold()
    target = motion.move(_NAMES, [0.0, 0.01, 0.0, 0.0, 1.0], _START)
    assert _place(target)[1] == pytest.approx(0.01, abs=5e-4)


def test_the_commanded_pose_stays_in_the_workspace() -> None:
    motion = _motion(workspace_low=(0.0, -0.3, 0.09), workspace_high=(0.4, 0.3, 0.3))
    target = motion.move(_NAMES, [0.0, 0.0, -0.03, 0.0, 1.0], _START)
    assert _place(target)[2] == pytest.approx(0.09, abs=5e-4)


def test_an_arm_outside_the_workspace_does_not_jump_into_it() -> None:
    motion = _motion(workspace_low=(0.0, -0.3, 0.2), workspace_high=(0.4, 0.3, 0.3))
    target = motion.move(_NAMES, [0.0, 0.0, 0.0, 0.0, 1.0], _START)
    assert _place(target)[2] == pytest.approx(0.10 + MAX_LEAD, abs=5e-4)


@pytest.mark.parametrize("tilt", [0.5 * DOWN_WITHIN, 2.0 * DOWN_WITHIN])
def test_a_hand_almost_down_is_kept_down_and_another_keeps_its_tilt(tilt: float) -> None:
    leaning = HAND_DOWN @ rotation_of([0.0, tilt, 0.0])
    start = _CHAIN.solve(Pose(np.array([0.25, 0.0, 0.10]), leaning), _START)
    target = _motion().move(_NAMES, [0.0, 0.01, 0.0, 0.0, 1.0], start)
    wanted = HAND_DOWN if tilt < DOWN_WITHIN else leaning
    np.testing.assert_allclose(_CHAIN.forward(target.joints).rotation, wanted, atol=1e-3)


def test_a_step_that_a_joint_is_too_slow_for_takes_longer() -> None:
    motion = Motion(load_robot("wxai"), _CHAIN, np.full(6, 0.5))
    target = motion.move(_NAMES, [0.0, 0.03, 0.0, 0.3, 1.0], _START)
    assert target.seconds == pytest.approx(np.abs(target.joints - _START).max() / 0.5)
    assert target.seconds > 0.3


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (_NAMES, [0.0, float("nan"), 0.0, 0.0, 1.0], "command dy: not a finite number"),
        (_NAMES, [0.0, 0.0, 0.0, 0.0, float("inf")], "command grip: not a finite number"),
        (_NAMES, [0.0, 0.0, 0.0], "expected 5"),
        (["a", *_NAMES[1:]], [0.0] * 5, "names: expected dx, dy, dz, dyaw, grip, found a"),
    ],
)
def test_a_malformed_action_is_refused_and_forgets_the_lead(names, values, message) -> None:
    motion = _motion()
    motion.move(_NAMES, [0.0, 0.03, 0.0, 0.0, 1.0], _START)
    with pytest.raises(DataError, match=message):
        motion.move(names, values, _START)
    target = motion.move(_NAMES, [0.0, 0.01, 0.0, 0.0, 1.0], _START)
    assert _place(target)[1] == pytest.approx(0.01, abs=5e-4)


def test_a_step_out_of_reach_is_refused() -> None:
    far = _CHAIN.solve(Pose(np.array([0.38, 0.0, 0.10]), HAND_DOWN), _START)
    motion = _motion(workspace_low=(), workspace_high=())
    with pytest.raises(DataError, match="out of reach"):
        for step in range(20):
            far = motion.move(_NAMES, [0.03, 0.0, 0.0, 0.0, 1.0], far).joints
            assert step < 10


def test_joint_targets_go_through_and_beyond_a_range_or_too_far_are_refused() -> None:
    motion = _joint_motion()
    names = motion._robot.action.names
    wanted = _START + 0.1
    target = motion.move(names, [*wanted, 0.25], _START)
    np.testing.assert_allclose(target.joints, wanted, atol=1e-12)
    assert target.gripper == pytest.approx(0.011)
    with pytest.raises(DataError, match="joint_0: expected -3.054 to 3.054 rad, found 3.500"):
        motion.move(names, [3.5, *_START[1:], 0.0], _START)
    with pytest.raises(DataError, match="turn of joint_0: expected at most 0.8 rad, found 1.00"):
        motion.move(names, [_START[0] + 1.0, *_START[1:], 0.0], _START)


def test_the_hand_is_the_identity_when_it_points_down() -> None:
    np.testing.assert_allclose(hand_rotation(HAND_DOWN), np.eye(3), atol=1e-12)
    turned = rotation_of([0.0, 0.0, 0.7]) @ HAND_DOWN
    np.testing.assert_allclose(hand_rotation(turned), rotation_of([0.0, 0.0, 0.7]), atol=1e-12)
    assert hand_yaw(turned) == pytest.approx(0.7)
