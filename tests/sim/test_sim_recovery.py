"""The expert that begins anywhere: whatever somebody else left behind, it gets the task done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.env import TabletopEnv
from sim.experts import Expert, Flaws
from sim.recovery import Recovery
from sim.scene import OBJECTS
from sim.tasks import TASKS


def _drive(env: TabletopEnv, expert: Expert, most: int, until: Callable[[], bool] = lambda: False) -> bool:
    """Steps until success, failure, the limit or `until`; True on success."""
    for _ in range(most):
        *_, terminated, _, info = env.step(np.clip(expert.action(), *_limits(env)))
        if terminated or until():
            return bool(info["is_success"])
    return False


def _limits(env: TabletopEnv) -> tuple[np.ndarray, np.ndarray]:
    return env.action_space.low, env.action_space.high  # type: ignore[attr-defined]


def _start(task: str, seed: int) -> TabletopEnv:
    env = TabletopEnv(task, "state", max_steps=300)
    env.reset(seed=seed)
    return env


@pytest.mark.parametrize("task", TASKS)
def test_from_a_fresh_start_it_is_an_expert(task: str) -> None:
    wins = [
        _drive(env := _start(task, seed), Recovery(env.world, env.task, 0.001, seed), 70) for seed in (1, 2)
    ]
    assert wins == [True, True]


@pytest.mark.parametrize("task", [t.name for t in TASKS.values() if t.moved and t.goal != "lifted"])
def test_with_the_object_in_the_hand_it_goes_on_and_does_not_let_go(task: str) -> None:
    env = _start(task, 5)
    moved = env.task.moved
    assert moved is not None
    _drive(env, Expert(env.world, env.task), 40, lambda: env.world.position(moved)[2] > 0.10)
    assert env.world.gripped() == moved
    recovery, held = Recovery(env.world, env.task), []
    assert recovery.ready() and recovery.secure() and recovery.stage == "finish"
    assert _drive(env, recovery, 40, lambda: held.append(env.world.gripped()) or False)
    released = held.index(None) if None in held else len(held)  # the last step is not looked at
    assert set(held[:released]) == {moved} and released > 5


def test_the_wrong_object_is_put_down_before_the_right_one_is_fetched() -> None:
    env = _start("carrot_on_plate", 7)
    wrong = next(
        name for name in env.world.present if name in ("can", "green_cube", "yellow_cube", "eggplant")
    )
    _drive(
        env,
        Expert(env.world, env.task, Flaws(wrong_object=wrong)),
        30,
        lambda: env.world.position(wrong)[2] > 0.1,
    )
    assert env.world.gripped() == wrong
    held = []
    look = lambda: held.append((env.world.gripped(), env.world.position(wrong)[2])) or False  # noqa: E731
    assert _drive(env, Recovery(env.world, env.task), 80, look)
    heights = [height for name, height in held if name == wrong]
    assert heights[0] > 0.10 and heights[-1] < OBJECTS[wrong].rest_height + 0.02


@pytest.mark.parametrize("opened", [0.03, 0.06])
def test_a_half_open_drawer_is_opened_and_closed_from_there(opened: float) -> None:
    for task in ("open_drawer", "close_drawer"):
        env = _start(task, 3)
        env.world.data.joint("drawer").qpos[0] = opened
        env.world.settle(5)
        assert _drive(env, Recovery(env.world, env.task), 60)


def test_a_hand_low_and_closed_on_nothing_rises_before_it_travels() -> None:
    env = _start("stack_cubes", 4)
    for action in ([0, 0, -0.03, 0, 0.0],) * 6:
        env.step(np.array(action, np.float32))
    low = env.world.arm.position()
    assert low[2] < 0.06 and env.world.arm.opening() < 0.1
    recovery, path = Recovery(env.world, env.task), []
    assert _drive(env, recovery, 80, lambda: path.append(env.world.arm.position()) or False)
    travelled = np.array(path)[np.linalg.norm(np.array(path)[:, :2] - low[:2], axis=1) > 0.03]
    assert travelled[0, 2] > 0.09


def test_a_lost_object_is_fetched_again() -> None:
    env = _start("eggplant_in_basket", 2)
    recovery = Recovery(env.world, env.task)
    _drive(env, recovery, 40, lambda: recovery.stage == "finish" and env.world.position("eggplant")[2] > 0.1)
    for _ in range(3):  # somebody opens the hand in mid air
        env.step(np.array([0, 0, 0, 0, 1.0], np.float32))
    env.step(np.array([0, 0, 0, 0, 0.0], np.float32))
    assert env.world.gripped() is None
    assert _drive(env, recovery, 120)


def test_a_hand_that_closed_on_nothing_opens_again_at_once() -> None:
    env = _start("carrot_on_plate", 6)
    recovery, closed = Recovery(env.world, env.task), []
    _drive(env, recovery, 40, lambda: env.world.arm.grip_target < 0.3)
    start = env.world._qpos["carrot"]
    env.world.data.qpos[start : start + 2] += [0.0, -0.06]  # somebody takes it away
    for _ in range(12):
        env.step(recovery.action())
        closed.append(env.world.arm.grip_target < 0.3)
    assert closed[:5] == [True] * 5 and closed[-3:] == [False] * 3
    assert _drive(env, recovery, 80)


def test_a_trembling_hand_takes_the_handle_gently() -> None:
    env, peaks = TabletopEnv("open_drawer", "state"), []
    for seed in range(8):
        env.reset(seed=seed)
        recovery = Recovery(env.world, env.task, 0.002, seed)
        assert _drive(env, recovery, 60, lambda: peaks.append(env.world.arm.peak_force) or False)
    assert max(peaks) < 60


def test_neighbours_decide_how_wide_and_at_which_turn_it_grasps() -> None:
    env = _start("stack_cubes", 1)
    world, recovery = env.world, Recovery(env.world, env.task)
    free = (recovery._opening, recovery._turn)
    assert free == (1.0, 0.0)
    across = np.array([-np.sin(world.yaw_of("green_cube")), np.cos(world.yaw_of("green_cube"))])
    start = world._qpos["yellow_cube"]
    # A neighbour where one finger would come down: it turns by a quarter, as a cube allows.
    world.data.qpos[start : start + 2] = world.position("green_cube")[:2] + 0.045 * across
    world.settle(1)
    again = Recovery(world, env.task)
    assert again._turn != 0.0 and abs(again._turn) == pytest.approx(np.pi / 2)


def test_a_finger_that_stands_on_something_does_not_press_on() -> None:
    env = _start("stack_cubes", 1)
    world, recovery, steps = env.world, Recovery(env.world, env.task), []
    _drive(env, recovery, 20, lambda: bool(world.arm.position()[2] < 0.08))
    # Now that the plan is made and the hand on its way down, a neighbour comes under one of its fingers.
    yaw = world.yaw_of("green_cube")
    start = world._qpos["yellow_cube"]
    spot = world.position("green_cube")[:2] + 0.03 * np.array([-np.sin(yaw), np.cos(yaw)])
    world.data.qpos[start : start + 2] = spot
    _drive(env, recovery, 60, lambda: steps.append(0) or world.gripped() == "green_cube")
    assert world.gripped() == "green_cube" and len(steps) < 35


def test_tremor_is_noise_of_its_seed() -> None:
    def actions(tremor: float, seed: int) -> np.ndarray:
        env = _start("press_button", 1)
        recovery = Recovery(env.world, env.task, tremor, seed)
        return np.array([recovery.action() for _ in range(4)])

    np.testing.assert_array_equal(actions(0.002, 3), actions(0.002, 3))
    assert not np.array_equal(actions(0.002, 3), actions(0.002, 4))
    assert 0 < np.abs(actions(0.002, 3) - actions(0.0, 3))[:, :3].max() < 0.01


def test_an_object_across_the_reach_of_turns_is_grasped_as_well_as_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = _start("carrot_on_plate", 3)
    # Neither this heading nor the same grasp turned by half a circle lies within the wrist's 1.4 rad.
    monkeypatch.setattr(env.world, "yaw_of", lambda name: 1.5)
    recovery = Recovery(env.world, env.task)
    assert np.isfinite(recovery.action()).all() and recovery._turn == 0.0
