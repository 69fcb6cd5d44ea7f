"""A control step in parts is the same control step; holding and cutting short leave no jump."""

from __future__ import annotations

import numpy as np
import pytest

import sim.arm
from sim.arm import ACTION_HIGH, ACTION_LOW, MAX_LEAD, WORKSPACE_HIGH, WORKSPACE_LOW, YAW_LIMIT, Arm
from sim.scene import GRIPPER_OPEN
from sim.tasks import TASKS, set_up
from sim.world import World

SUBSTEPS = 25


def _world(seed: int = 0) -> World:
    world = World()
    set_up(world, TASKS["stack_cubes"], np.random.default_rng(seed))
    return world


def _step_in_one_piece(arm: Arm, action: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The control step that all shipped checkpoints were trained with, written out."""
    wanted = np.clip(np.asarray(action, float), ACTION_LOW, ACTION_HIGH)
    measured = arm.position()
    target = np.clip(arm.target + wanted[:3], measured - MAX_LEAD, measured + MAX_LEAD)
    arm.target = np.clip(target, WORKSPACE_LOW, WORKSPACE_HIGH)
    arm.yaw_target = float(np.clip(arm.yaw_target + wanted[3], -YAW_LIMIT, YAW_LIMIT))
    end = arm._solve(arm.target, arm.yaw_target, start)
    arm.data.ctrl[6] = GRIPPER_OPEN * float(wanted[4])
    arm.peak_force = 0.0
    for i in range(SUBSTEPS):
        arm.data.ctrl[:6] = start + (end - start) * (i + 1) / SUBSTEPS
        sim.arm.mujoco.mj_step(arm.model, arm.data)
        if i % 5 == 4:
            arm.peak_force = max(arm.peak_force, arm.contact_force())
    return end


def _facts(world: World) -> np.ndarray:
    return np.concatenate([world.data.qpos, world.data.qvel, world.data.ctrl, [world.arm.peak_force]])


def _actions(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(ACTION_LOW, ACTION_HIGH, (count, 5)).astype(np.float32)


@pytest.mark.parametrize("parts", [[25], [2] * 11 + [3], [1] * 25, [7, 18]])
def test_a_step_in_parts_is_bitwise_the_step_in_one_piece(parts: list[int]) -> None:
    whole, divided, written_out = _world(), _world(), _world()
    start = written_out.arm._joint_target
    for action in _actions(25):
        whole.arm.step(action)
        divided.arm.begin(action)
        for substeps in parts:
            assert divided.arm.moving
            divided.arm.advance(substeps)
        assert not divided.arm.moving
        start = _step_in_one_piece(written_out.arm, action, start)
        np.testing.assert_array_equal(_facts(whole), _facts(written_out))
        np.testing.assert_array_equal(_facts(divided), _facts(written_out))


def test_after_the_step_the_joint_targets_stay() -> None:
    arm = _world().arm
    arm.step(np.array([0.03, 0, 0, 0, 1]))
    before = arm.data.ctrl.copy()
    arm.advance(40)
    np.testing.assert_allclose(arm.data.ctrl, before, atol=1e-12)
    assert not arm.moving


def test_a_hold_in_the_middle_of_a_step_keeps_the_measured_pose() -> None:
    arm = _world().arm
    for _ in range(3):
        arm.step(np.array([0.0, 0.03, 0, 0, 1]))
    arm.begin(np.array([0.0, 0.03, 0, 0, 1]))
    arm.advance(10)
    at_hold, joints = arm.position(), arm.data.qpos[:6].copy()
    arm.hold()
    np.testing.assert_array_equal(arm.data.ctrl[:6], joints)
    np.testing.assert_array_equal(arm.target, at_hold)
    assert not arm.moving
    arm.advance(100)
    np.testing.assert_array_equal(arm.data.ctrl[:6], joints)
    assert np.linalg.norm(arm.position() - at_hold) < 0.012  # it brakes; the rest of the step is not run


def test_a_command_that_comes_early_goes_on_from_where_the_targets_are() -> None:
    early, punctual = _world().arm, _world().arm
    action = np.array([0.0, 0.02, 0, 0, 1])
    for arm, substeps in ((early, 22), (punctual, 25)):
        for _ in range(5):
            arm.begin(action)
            before = arm.data.ctrl[:6].copy()
            for _ in range(substeps):
                arm.advance(1)
                assert np.abs(arm.data.ctrl[:6] - before).max() < 0.01
                before = arm.data.ctrl[:6].copy()
    np.testing.assert_allclose(early.target, punctual.target, atol=1e-9)  # no part of a command is lost


def test_a_stuck_actuator_stays_and_obeys_again_when_released() -> None:
    arm = _world().arm
    arm.stuck[0] = float(arm.data.qpos[0])
    for _ in range(5):
        arm.step(np.array([0.0, 0.03, 0, 0, 1]))
    assert abs(arm.data.qpos[0] - arm.stuck[0]) < 0.02
    stuck_at = arm.stuck.pop(0)
    arm.step(np.zeros(5))
    arm.advance(100)
    assert abs(arm.data.qpos[0] - stuck_at) > 0.1
