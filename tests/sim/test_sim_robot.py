"""`SimRobot` is the environment with time: same start, same motion, same verdicts; and its own faults."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sim.arm import ACTION_HIGH, ACTION_LOW
from sim.env import TabletopEnv
from sim.experts import Expert, Flaws
from sim.robot import JOINT_NAMES, SimRobot
from sim.scene import GRIPPER_OPEN
from sim.tasks import TASKS
from valueguide.errors import ConfigError

STILL = np.array([0, 0, 0, 0, 1], np.float32)


@pytest.fixture(scope="module")
def robot() -> Iterator[SimRobot]:
    """One for all tests: every test resets it."""
    robot = SimRobot("pick_can", {"front": (64, 96), "wrist": (128, 128)})
    yield robot
    robot.close()


def _run_period(robot: SimRobot) -> None:
    for _ in range(12):
        robot.tick()


@pytest.mark.parametrize("task", TASKS)
def test_a_reset_is_the_environments_reset(robot: SimRobot, task: str) -> None:
    robot.reset("stack_cubes", 1)
    robot.command(ACTION_HIGH)
    robot.advance(0.05)
    assert robot.reset(task, 7) == robot.instruction
    env = TabletopEnv(task, "both")
    raw, info = env.reset(seed=7)
    seen = robot.observe()
    assert seen.task == info["task_description"]
    np.testing.assert_array_equal(env.world.data.qpos, robot._data.qpos)
    np.testing.assert_array_equal(env.world.data.qvel, robot._data.qvel)
    np.testing.assert_array_equal(raw["agent_pos"], seen.state)
    np.testing.assert_array_equal(raw["environment_state"], seen.environment_state)
    np.testing.assert_array_equal(raw["pixels"]["wrist"], seen.images["wrist"])
    env.close()


def test_the_same_actions_give_the_same_trajectory_and_verdicts(robot: SimRobot) -> None:
    env = TabletopEnv("open_drawer", "state")
    env.reset(seed=3)
    robot.reset("open_drawer", 3)
    expert = Expert(env.world, env.task, Flaws(), 3)
    for _ in range(80):
        action = np.clip(expert.action(), ACTION_LOW, ACTION_HIGH)
        raw, _, terminated, _, info = env.step(action)
        robot.command(action)
        _run_period(robot)
        seen, truth = robot.observe(), robot.truth()
        np.testing.assert_array_equal(raw["agent_pos"], seen.state)
        np.testing.assert_array_equal(raw["environment_state"], seen.environment_state)
        assert (truth.progress, truth.success, truth.failure) == (
            info["progress"],
            info["is_success"],
            info["failure"],
        )
        if terminated:
            break
    assert truth.success


def test_failure_is_told_at_the_end_of_a_step(robot: SimRobot) -> None:
    robot.reset("carrot_on_plate", 0)
    start = robot._world._qpos["carrot"]
    robot._data.qpos[start : start + 3] = [0.3, 0.7, -0.2]
    robot.command(STILL)
    robot.advance(0.096)
    assert robot.truth().failure == "" and robot.judged == 0
    robot.advance(0.004)
    assert robot.truth().failure == "dropped" and robot.judged == 1


def test_looking_leaves_the_physics_alone(robot: SimRobot) -> None:
    ends = []
    for look in (False, True):
        robot.reset("stack_cubes", 5)
        for i in range(4):
            robot.command(ACTION_HIGH if i % 2 else ACTION_LOW)
            for _ in range(12):
                robot.tick()
                if look:
                    (
                        robot.observe(),
                        robot.truth(),
                        robot.joint_state(),
                        robot.hand_pose(),
                        robot.contact_force(),
                    )
        ends.append(np.concatenate([robot._data.qpos, robot._data.qvel]))
    np.testing.assert_array_equal(*ends)


def test_time_runs_in_ticks_that_meet_every_control_period(robot: SimRobot) -> None:
    robot.reset("pick_can", 0)
    start, ends = robot.time_ns, []
    assert start % 100_000_000 == 0
    for _ in range(24):
        expected = robot.time_ns + robot.tick_ns()
        robot.tick()
        assert robot.time_ns == expected
        ends.append(robot.time_ns - start)
    assert {100_000_000, 200_000_000} <= set(ends)
    assert set(np.diff([0, *ends]).tolist()) == {8_000_000, 12_000_000}
    before = robot.time_ns
    robot.reset("pick_can", 0)
    assert robot.time_ns > before


def test_joints_are_named_and_measured(robot: SimRobot) -> None:
    robot.reset("pick_can", 0)
    robot.command(np.array([0, 0.03, 0, 0, 0], np.float32))
    robot.advance(0.06)
    moving = robot.joint_state()
    assert moving.names == JOINT_NAMES and moving.positions.shape == moving.efforts.shape == (8,)
    assert abs(moving.velocities[0]) > 0.05
    for _ in range(5):
        robot.command(np.array([0, 0, 0, 0, 0.5], np.float32))
        robot.advance(0.1)
    still = dict(zip(JOINT_NAMES, robot.joint_state().positions, strict=True))
    assert still["gripper"] == pytest.approx(0.5 * GRIPPER_OPEN, abs=1e-3)
    assert still["gripper_command"] == 0.5


def test_the_pose_has_the_hands_yaw(robot: SimRobot) -> None:
    robot.reset("pick_can", 0)
    for _ in range(3):
        robot.command(np.array([0, 0, 0, 0.3, 1], np.float32))
        robot.advance(0.1)
    pose, state = robot.hand_pose(), robot.observe().state
    x, y, z, w = pose.orientation
    assert np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)) == pytest.approx(state[3], abs=1e-6)
    assert state[3] > 0.5 and abs(w * y - x * z) < 0.05  # it stays upright
    np.testing.assert_array_equal(pose.position.astype(np.float32), state[:3])


def test_repeated_holds_do_not_let_the_arm_drift(robot: SimRobot) -> None:
    robot.reset("pick_can", 0)
    robot.command(np.array([0.03, 0, -0.03, 0, 1], np.float32))
    robot.advance(0.04)
    robot.hold()
    assert not robot.moving
    held = robot._data.ctrl.copy()
    robot.advance(0.02)  # it still brakes: what it measures now is not what it holds
    robot.hold()
    np.testing.assert_array_equal(robot._data.ctrl, held)
    robot.advance(0.5)
    settled = robot.hand_pose().position
    for _ in range(50):
        robot.hold()
        robot.advance(0.04)
    assert np.linalg.norm(robot.hand_pose().position - settled) < 5e-4


def test_a_stuck_joint_does_not_follow(robot: SimRobot) -> None:
    robot.reset("pick_can", 0)
    robot.stick({"joint_0", "gripper"})
    before = robot.joint_state().positions
    for _ in range(5):
        robot.command(np.array([0, 0.03, 0, 0, 0], np.float32))
        robot.advance(0.1)
    after = robot.joint_state().positions
    assert abs(after[0] - before[0]) < 0.02 and abs(after[6] - before[6]) < 0.002
    robot.stick(set())
    robot.advance(0.5)
    assert abs(robot.joint_state().positions[0] - before[0]) > 0.1
    assert robot.joint_state().positions[6] < 0.01
    robot.stick({"joint_0"})
    robot.reset("pick_can", 0)
    assert not robot._arm.stuck


@pytest.mark.parametrize("action", [np.zeros(4), np.array([0, 0, np.nan, 0, 1])])
def test_bad_commands_are_refused(robot: SimRobot, action: np.ndarray) -> None:
    robot.reset("pick_can", 0)
    with pytest.raises(ConfigError, match="action: expected"):
        robot.command(action)


def test_unknown_settings_are_named(robot: SimRobot) -> None:
    with pytest.raises(ConfigError, match="task: expected one of"):
        robot.reset("fold_shirt", 0)
    with pytest.raises(ConfigError, match="seed: expected 0 or more, found -1"):
        robot.reset("pick_can", -1)
    with pytest.raises(ConfigError, match="camera: expected front or wrist, found rear"):
        SimRobot("pick_can", {"rear": (64, 64)})
    with pytest.raises(ConfigError, match="size of camera front: .*found 700 by 64"):
        SimRobot("pick_can", {"front": (64, 700)})
    assert robot.task == "pick_can" and robot.image("front").shape == (64, 96, 3)
