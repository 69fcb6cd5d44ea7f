"""Going back to a moment of an episode: what follows is the same, bit for bit, as often as one likes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.demonstrations import demonstrate
from sim.env import TabletopEnv
from sim.experts import Expert
from sim.tasks import TASKS
from valueguide.errors import ConfigError


def _actions(count: int, seed: int) -> np.ndarray:
    low, high = np.array([-0.03, -0.03, -0.03, -0.3, 0.0]), np.array([0.03, 0.03, 0.03, 0.3, 1.0])
    return np.random.default_rng(seed).uniform(low, high, (count, 5)).astype(np.float32)


def _follow(env: TabletopEnv, actions: np.ndarray) -> list[Any]:
    """Everything that can be seen of what follows, the exact state of the physics included."""
    seen: list[Any] = []
    for action in actions:
        raw, reward, terminated, truncated, info = env.step(action)
        physics = (env.world.data.qpos, env.world.data.qvel, env.world.data.qacc_warmstart)
        seen.append((raw["environment_state"], raw["agent_pos"], *(part.copy() for part in physics)))
        seen.append((reward, terminated, truncated, info))
    return seen


def _equal(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b) > 0
    np.testing.assert_equal(a, b)  # exact, NaN included


def _grasping(env: TabletopEnv, seed: int, steps: int) -> None:
    """To the middle of an episode, where the hand touches things."""
    env.reset(seed=seed)
    expert = Expert(env.world, env.task)
    for _ in range(steps):
        env.step(expert.action())


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_run_is_bitwise_equal(task: str) -> None:
    env = TabletopEnv(task, "state")
    _grasping(env, 3, 12)
    moment = env.snapshot()
    truth = _follow(env, _actions(12, 0))
    _follow(env, _actions(5, 1))  # somewhere else in between
    for _ in range(2):
        env.restore(moment)
        _equal(_follow(env, _actions(12, 0)), truth)


def test_another_environment_goes_on_from_it_even_after_other_episodes() -> None:
    env, other = TabletopEnv("stack_cubes", "state"), TabletopEnv("stack_cubes", "state", visuals="none")
    _grasping(env, 4, 14)
    moment = env.snapshot()
    truth = _follow(env, _actions(10, 0))
    demonstrate(other, 9, 0.3)
    other.restore(moment)
    _equal(_follow(other, _actions(10, 0)), truth)


def test_pictures_wording_clock_and_random_state_come_back() -> None:
    env = TabletopEnv("open_drawer", "both", max_steps=8, image_size=32)
    first, _ = env.reset(seed=11)
    sentence = env.task_description
    for action in _actions(3, 0):
        first, *_ = env.step(action)
    moment = env.snapshot()
    unseeded = env.reset()[0]["environment_state"]  # draws from the environment's own stream
    assert not np.array_equal(unseeded, first["environment_state"])
    again, info = env.restore(moment)
    assert (info["task_description"], info["failure"], info["is_success"]) == (sentence, "", False)
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(again["pixels"][camera], first["pixels"][camera])
    ends = [env.step(action)[3] for action in _actions(5, 2)]
    assert ends == [False] * 4 + [True]  # three of eight steps were taken before
    env.restore(moment)
    np.testing.assert_array_equal(env.reset()[0]["environment_state"], unseeded)
    env.close()


def test_a_snapshot_does_not_change_with_what_follows() -> None:
    env = TabletopEnv("pick_can", "state")
    env.reset(seed=2)
    env.world.arm.stuck[6] = 0.01
    moment = env.snapshot()
    env.world.arm.stuck.clear()
    _follow(env, _actions(6, 0))
    raw, _ = env.restore(moment)
    assert env.world.arm.stuck == {6: 0.01}
    truth = _follow(env, _actions(6, 0))
    env.world.arm.stuck.clear()  # what is loaded is a copy, too
    env.restore(moment)
    _equal(_follow(env, _actions(6, 0)), truth)


def test_another_tasks_snapshot_is_refused() -> None:
    moment = TabletopEnv("pick_can", "state").snapshot()
    with pytest.raises(ConfigError, match="one of task open_drawer, found pick_can"):
        TabletopEnv("open_drawer", "state").restore(moment)


def test_what_is_gripped_touches_both_fingers() -> None:
    for task, name in (("pick_can", "can"), ("stack_cubes", "green_cube"), ("open_drawer", "drawer")):
        env = TabletopEnv(task, "state")
        env.reset(seed=1)
        expert, held = Expert(env.world, env.task), []
        for _ in range(30):
            *_, terminated, truncated, _ = env.step(expert.action())
            held.append(env.world.gripped())
            if terminated or truncated:
                break
        assert held[0] is None and name in held and set(held) == {None, name}
