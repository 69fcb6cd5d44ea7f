"""The tabletop as an environment: reproducible, honest about its ends, clear about bad input."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from sim.arm import ACTION_HIGH, ACTION_LOW
from sim.demonstrations import demonstrate
from sim.env import ENVIRONMENT_STATE_NAMES, TabletopEnv
from sim.experts import KINDS, Expert, Flaws
from sim.suite import make_suite
from sim.tasks import TASKS, failure, success
from sim.wordings import HELD_OUT, TRAIN, corpus
from valueguide.errors import ConfigError

_DIGEST = """
import hashlib, numpy as np
from sim.env import TabletopEnv
env = TabletopEnv("stack_cubes", "both")
digest = hashlib.sha256()
obs, info = env.reset(seed=11)
rng = np.random.default_rng(0)
for _ in range(12):
    obs, *_ = env.step(rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32))
    for value in (obs["agent_pos"], obs["environment_state"], obs["pixels"]["front"], obs["pixels"]["wrist"]):
        digest.update(np.ascontiguousarray(value).tobytes())
env.close()
print(digest.hexdigest(), info["task_description"])
"""


def test_episodes_are_bitwise_equal_across_processes() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].split()[0]) == len(hashlib.sha256().hexdigest())


def test_reset_forgets_the_previous_episode() -> None:
    env = TabletopEnv("carrot_on_plate", "state")
    first, _ = env.reset(seed=5)
    for _ in range(10):
        env.step(ACTION_HIGH)
    env.reset(seed=6)
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first["environment_state"], again["environment_state"])
    np.testing.assert_array_equal(first["agent_pos"], again["agent_pos"])


def test_wording_and_visuals_leave_the_physics_alone() -> None:
    plain = TabletopEnv("pick_can", "state", wording="train", visuals="none").reset(seed=3)
    other = TabletopEnv("pick_can", "state", wording="held_out", visuals="train").reset(seed=3)
    np.testing.assert_array_equal(plain[0]["environment_state"], other[0]["environment_state"])
    assert plain[1]["task_description"] in TRAIN["pick_can"]
    assert other[1]["task_description"] in HELD_OUT["pick_can"]


def test_held_out_wordings_never_appear_in_training_text() -> None:
    held_out = {s for sentences in HELD_OUT.values() for s in sentences}
    assert not held_out & set(corpus())
    assert not held_out & {s for sentences in TRAIN.values() for s in sentences}
    assert set(TRAIN) == set(HELD_OUT) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_no_episode_starts_solved_or_failed(task: str) -> None:
    env = TabletopEnv(task, "state")
    for seed in range(15):
        env.reset(seed=seed)
        assert not success(env.world, env.task)
        assert failure(env.world, env.task) is None


@pytest.mark.parametrize("task", TASKS)
def test_a_flawless_expert_succeeds_with_rising_progress(task: str) -> None:
    env = TabletopEnv(task, "state")
    wins = 0
    for seed in range(4):
        episode = demonstrate(env, seed, skill=1.0)
        progress = episode.metadata["progress"]
        wins += episode.success
        assert all(0 <= p <= 1 for p in progress)
        if episode.success:
            assert progress[-1] == 1.0 > progress[0]
            assert episode.steps[-1].terminated and not episode.steps[-1].truncated
            assert episode.steps[-1].reward == 1.0
    assert wins == 4


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_experts_reach_95_percent_on_100_seeds(task: str) -> None:
    env = TabletopEnv(task, "state")
    assert sum(demonstrate(env, seed, skill=1.0).success for seed in range(5000, 5100)) >= 95


def test_low_skill_fails_more_and_says_how() -> None:
    env = TabletopEnv("carrot_on_plate", "state")
    episodes = [demonstrate(env, seed, skill=0.0) for seed in range(12)]
    assert sum(e.success for e in episodes) < 10
    assert any(e.metadata["flaws"] for e in episodes)
    unfinished = [e for e in episodes if not e.success]
    assert all(e.steps[-1].truncated or e.steps[-1].terminated for e in unfinished)


@pytest.mark.parametrize("flaw", KINDS)
def test_a_chosen_flaw_is_the_only_one(flaw: str) -> None:
    name = next(name for name, task in TASKS.items() if KINDS[flaw](task))
    env = TabletopEnv(name, "state")
    episodes = [demonstrate(env, seed, skill=0.9, flaw=flaw) for seed in range(6)]
    assert all(e.metadata["flaws"] == [flaw] for e in episodes)
    # A carrot forgives a turned hand.
    assert all(e.success for e in episodes) == (flaw in ("detour", "pause", "yaw"))


def test_with_the_flaw_object_another_object_is_moved() -> None:
    env = TabletopEnv("stack_cubes", "state")
    for seed in range(3):
        before = _positions(env, seed)
        demonstrate(env, seed, skill=1.0, flaw="object")
        moved = {n for n in env.world.present if np.linalg.norm(env.world.position(n) - before[n]) > 0.05}
        assert moved and "green_cube" not in moved


def test_with_the_flaw_release_progress_falls_back() -> None:
    env = TabletopEnv("eggplant_in_basket", "state")
    failed = [e for e in (demonstrate(env, s, 1.0, "release") for s in range(6)) if not e.success]
    assert len(failed) >= 3
    assert all(max(e.metadata["progress"]) > e.metadata["progress"][-1] for e in failed)


def _positions(env: TabletopEnv, seed: int) -> dict[str, np.ndarray]:
    env.reset(seed=seed)
    return {name: env.world.position(name).copy() for name in env.world.present}


def test_time_limit_truncates_and_does_not_terminate() -> None:
    env = TabletopEnv("open_drawer", "state", max_steps=5)
    env.reset(seed=0)
    ends = [env.step(np.array([0, 0, 0, 0, 1], np.float32))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_a_hold_keeps_the_measured_pose_and_the_gripper_and_uses_up_no_steps() -> None:
    env = TabletopEnv("pick_can", "state", max_steps=12)
    env.reset(seed=3)
    for _ in range(4):
        env.step(np.float32([0.02, 0.0, -0.02, 0.0, 0.3]))
    measured = env.world.arm.position()
    env.hold()
    first = env.world.arm.position()
    for _ in range(40):
        raw, reward, terminated, truncated, info = env.hold()
    assert (reward, terminated, truncated, info["failure"]) == (0.0, False, False, "")
    # It swings out by a little, and then does not sink with every further hold.
    assert np.abs(first - measured).max() < 0.012
    assert np.abs(raw["agent_pos"][:3] - measured).max() < 0.012
    assert np.abs(raw["agent_pos"][:3] - first).max() < 0.006
    assert raw["agent_pos"][5] == np.float32(0.3)
    # A step goes on from where it was held, not from where the plan had led.
    env.step(np.float32([0, 0, 0, 0, 0.3]))
    assert np.abs(env.world.arm.target - measured).max() < 1e-6
    assert not any(env.step(np.float32([0, 0, 0, 0, 0.3]))[3] for _ in range(6)) and env.step(ACTION_HIGH)[3]


def test_a_restored_hold_goes_on_as_one() -> None:
    env = TabletopEnv("pick_can", "state")
    env.reset(seed=3)
    for _ in range(3):
        env.step(np.float32([0.02, 0.0, -0.02, 0.0, 0.3]))
    env.hold()
    moment = env.snapshot()
    wanted = env.hold()[0]["environment_state"]
    env.step(ACTION_HIGH)
    env.restore(moment)
    assert np.array_equal(env.hold()[0]["environment_state"], wanted)


def test_an_object_off_the_table_terminates_as_failure() -> None:
    env = TabletopEnv("carrot_on_plate", "state")
    env.reset(seed=0)
    start = env.world._qpos["carrot"]
    env.world.data.qpos[start : start + 3] = [0.3, 0.7, -0.2]
    _, reward, terminated, truncated, info = env.step(np.array([0, 0, 0, 0, 1], np.float32))
    assert (reward, terminated, truncated, info["failure"]) == (0.0, True, False, "dropped")


def test_too_much_force_terminates_as_failure() -> None:
    env = TabletopEnv("open_drawer", "state")
    env.reset(seed=0)
    env.world.arm.peak_force = 0.0
    crash = Expert(env.world, env.task, Flaws(grasp_offset=(0.05, 0.05), yaw_offset=1.0))
    peaks = []
    for _ in range(60):
        *_, terminated, _, info = env.step(crash.action())
        peaks.append(info["contact_force"])
        if terminated:
            break
    assert max(peaks) > 0
    assert info["failure"] in ("force", "")


def test_rendering_can_be_left_out_and_comes_back_current() -> None:
    env = TabletopEnv("press_button", "images")
    env.reset(seed=1)
    env.set_render(False)
    obs = env.step(ACTION_LOW)[0]
    assert "pixels" not in obs
    env.set_render(True)
    current = env.observe()["pixels"]
    assert current["front"].shape == (128, 128, 3) and current["front"].dtype == np.uint8
    np.testing.assert_array_equal(current["wrist"], env.observe()["pixels"]["wrist"])
    env.close()


def test_candidate_paths_start_at_the_hand() -> None:
    env = TabletopEnv("press_button", "state")
    env.reset(seed=1)
    chunks = np.zeros((2, 4, 5), np.float32)
    chunks[1, :, 0] = 0.03
    still, moving = env.project_candidates(chunks)
    assert still.shape == (5, 2)
    np.testing.assert_allclose(still, still[:1].repeat(5, 0))
    assert moving[-1, 1] > moving[0, 1]  # +x is towards the front camera: down in its picture


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"task": "fold_shirt"}, "task"),
        ({"task": "pick_can", "wording": "loud"}, "wording"),
        ({"task": "pick_can", "visuals": "neon"}, "visuals"),
        ({"task": "pick_can", "observation": "smell"}, "observation"),
    ],
)
def test_unknown_settings_are_named(arguments: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word}: expected one of .*, found"):
        TabletopEnv(**arguments)


@pytest.mark.parametrize("action", [np.zeros(4), np.array([0, 0, np.nan, 0, 1])])
def test_bad_actions_are_refused(action: np.ndarray) -> None:
    env = TabletopEnv("pick_can", "state")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="action"):
        env.step(action)


def test_suites_describe_themselves() -> None:
    images, state = make_suite("wxai"), make_suite("wxai-state")
    assert images.cameras == {"front": (128, 128), "wrist": (128, 128)} and not images.environment_state_names
    assert state.cameras == {} and len(state.environment_state_names) == 51
    with pytest.raises(ConfigError, match="wxai"):
        make_suite("kitchen")


@pytest.mark.parametrize("task", TASKS)
def test_the_task_state_leads_from_the_hand_to_the_object_and_on_to_the_goal(task: str) -> None:
    env = TabletopEnv(task, "state")
    episode = demonstrate(env, 3, 1.0)
    assert episode.success
    names = list(ENVIRONMENT_STATE_NAMES)
    rows = np.array([s.observation.environment_state for s in episode.steps])
    last = episode.final_observation.environment_state
    rows = np.vstack([rows, last])
    grasp = np.linalg.norm(rows[:, [names.index(f"grasp.{axis}") for axis in "xyz"]], axis=1)
    goal = rows[:, [names.index(f"goal.{axis}") for axis in "xyz"]]
    assert grasp.min() < 0.06 < grasp[0]  # the hand came to what it has to touch
    assert goal[-1] @ goal[0] < 0.5 * goal[0] @ goal[0]  # there, or past it: a button gives way at once
    near = rows[:, [names.index(f"grasp.near_{axis}") for axis in "xyz"]]
    assert np.abs(near).max() <= 1.0 and np.abs(near[0]).max() > 0.9  # saturated far away
