"""The adapter: history, physical numbers, and one clear line for every misfit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import OBS_STATE

from valueguide.errors import ConfigError, DataError
from valueguide.interfaces import Policy
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.policies.scripted import UniformRandomPolicy
from valueguide.testing.tiny_models import ACTION_DIM, CAMERAS, STATE_DIM, tiny_observation


def test_it_describes_the_policy(tiny: Any) -> None:
    adapter = tiny("diffusion").adapter(version="abc", metadata={"suite": "wxai"})
    assert isinstance(adapter, Policy)
    assert (adapter.horizon, adapter.action_dim, adapter.history) == (7, ACTION_DIM, 2)
    assert adapter.cameras == CAMERAS and adapter.state_dim == STATE_DIM
    assert not adapter.needs_environment_state
    assert (adapter.version, adapter.metadata) == ("abc", {"suite": "wxai"})


def test_actions_are_physical(tiny: Any) -> None:
    """The tiny ACT normalises actions with mean 0.4 and deviation 0.3."""
    parts = tiny("act")
    adapter = parts.adapter()
    raw = []
    parts.policy.model.action_head.register_forward_hook(lambda module, args, output: raw.append(output))
    adapter.observe(tiny_observation())
    actions = adapter.sample(2, 0).actions
    np.testing.assert_allclose(actions, raw[0].numpy() * 0.3 + 0.4, atol=1e-6)


@pytest.mark.parametrize("policy_type", ["multi_task_dit", "diffusion"])
def test_history(policy_type: str, tiny: Any) -> None:
    adapter = tiny(policy_type).adapter()
    first, second = tiny_observation(1), tiny_observation(2)

    def run(*observations: Any) -> np.ndarray:
        adapter.reset()
        for observation in observations:
            adapter.observe(observation)
        return adapter.sample(2, 5).actions

    cold = run(second)
    np.testing.assert_array_equal(cold, run(second, second))  # a cold start repeats the first
    warm = run(first, second)
    assert np.abs(warm - cold).max() > 1e-4, "the older observation has no effect"
    np.testing.assert_array_equal(warm, run(tiny_observation(3), first, second))  # only the last two count
    adapter.reset()
    adapter.observe(first)
    adapter.sample(1, 0)
    adapter.observe(second)
    np.testing.assert_array_equal(warm, adapter.sample(2, 5).actions)


@pytest.mark.parametrize("policy_type", ["multi_task_dit", "diffusion"])
def test_a_short_history_is_padded_with_its_oldest_observation(policy_type: str, tiny: Any) -> None:
    adapter = tiny(policy_type, n_obs_steps=3, n_action_steps=6).adapter()
    results = []
    for seeds in ((1, 2), (1, 1, 2), (1, 2, 2)):
        adapter.reset()
        for seed in seeds:
            adapter.observe(tiny_observation(seed))
        results.append(adapter.sample(1, 0).actions)
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 1e-4


def test_forks_share_networks_but_not_history(tiny: Any) -> None:
    adapter = tiny("multi_task_dit").adapter()
    twin = adapter.fork()
    assert twin.policy is adapter.policy
    adapter.observe(tiny_observation(1))
    twin.observe(tiny_observation(2))
    mine = adapter.sample(1, 0).actions
    twin.reset()
    np.testing.assert_array_equal(adapter.sample(1, 0).actions, mine)
    with pytest.raises(DataError, match="Call observe first"):
        twin.sample(1, 0)


def test_the_language_reaches_the_policy(tiny: Any) -> None:
    adapter = tiny("multi_task_dit").adapter()
    results = []
    for task in ("open the drawer", "push", "open the drawer"):
        adapter.reset()
        adapter.observe(tiny_observation(task=task))
        results.append(adapter.sample(1, 0).actions)
    np.testing.assert_array_equal(results[0], results[2])
    assert np.abs(results[0] - results[1]).max() > 1e-5


def with_environment_state(tiny: Any, extra: int) -> Any:
    """State-only checkpoint: the declared state holds the robot's and the environment's numbers."""
    parts = tiny("multi_task_dit", n_obs_steps=1)
    parts.preprocessor.steps.insert(2, AppendEnvironmentState())
    return parts.adapter()


def test_environment_state_is_appended_by_the_checkpoint(tiny: Any) -> None:
    adapter = with_environment_state(tiny, 2)
    assert adapter.needs_environment_state and adapter.state_dim == STATE_DIM
    whole = tiny_observation()
    split = dataclasses.replace(whole, state=whole.state[:4], environment_state=whole.state[4:])
    adapter.observe(split)
    actions = adapter.sample(2, 0).actions
    plain = tiny("multi_task_dit", n_obs_steps=1).adapter()
    plain.observe(whole)
    np.testing.assert_array_equal(actions, plain.sample(2, 0).actions)
    with pytest.raises(DataError, match="environment_state"):
        adapter.observe(whole)
    with pytest.raises(DataError, match="with environment_state: shape"):
        adapter.observe(dataclasses.replace(split, state=whole.state))
    with pytest.raises(DataError, match="environment_state.*finite"):
        bad = np.full_like(split.environment_state, np.inf)
        adapter.observe(dataclasses.replace(split, environment_state=bad))


def test_renamed_cameras_keep_the_name_the_robot_uses(tiny: Any) -> None:
    parts = tiny("act")
    rename = next(s for s in parts.preprocessor.steps if isinstance(s, RenameObservationsProcessorStep))
    rename.rename_map = {"observation.images.top": "observation.images.front"}
    adapter = parts.adapter()
    assert set(adapter.cameras) == {"top", "wrist"}
    observation = tiny_observation()
    images = {"top": observation.images["front"], "wrist": observation.images["wrist"]}
    adapter.observe(dataclasses.replace(observation, images=images))
    plain = tiny("act").adapter()
    plain.observe(observation)
    np.testing.assert_array_equal(adapter.sample(1, 0).actions, plain.sample(1, 0).actions)


def changed(**fields: Any) -> Any:
    return dataclasses.replace(tiny_observation(), **fields)


IMAGES = tiny_observation().images
MISFITS = {
    "camera": (changed(images={"top": IMAGES["front"], "wrist": IMAGES["wrist"]}), "cameras.*front.*top"),
    "no images": (changed(images={}), "no images"),
    "size": (
        changed(images=IMAGES | {"front": IMAGES["front"][:32]}),
        r"front.*\(64, 64, 3\).*\(32, 64, 3\)",
    ),
    "float image": (changed(images=IMAGES | {"front": IMAGES["front"] / 255}), "uint8.*float64"),
    "nan": (changed(state=np.full(STATE_DIM, np.nan, np.float32)), "state: values: expected finite"),
    "state": (changed(state=np.zeros(3, np.float32)), r"state: shape: expected \(6,\), found \(3,\)"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_is_one_line_and_leaves_the_history(misfit: str, tiny: Any) -> None:
    adapter = tiny("multi_task_dit").adapter()
    adapter.observe(tiny_observation())
    before = adapter.sample(1, 0).actions
    observation, message = MISFITS[misfit]
    with pytest.raises(DataError, match=message) as error:
        adapter.observe(observation)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(adapter.sample(1, 0).actions, before)


def test_wrong_calls(tiny: Any) -> None:
    adapter = tiny("act").adapter()
    with pytest.raises(DataError, match="Call observe first"):
        adapter.sample(1, 0)
    adapter.observe(tiny_observation())
    with pytest.raises(ConfigError, match="K: expected at least 1 candidate, found 0"):
        adapter.sample(0, 0)
    with pytest.raises(ConfigError, match="seed"):
        adapter.sample(1, -1)


def test_it_does_not_keep_or_change_the_callers_arrays(tiny: Any) -> None:
    adapter = tiny("act").adapter()
    observation = tiny_observation()
    observation.images["front"].setflags(write=False)
    adapter.observe(observation)
    copies = observation.state.copy(), observation.images["wrist"].copy()
    adapter.sample(2, 0)
    np.testing.assert_array_equal(observation.state, copies[0])
    np.testing.assert_array_equal(observation.images["wrist"], copies[1])


def test_append_environment_state_leaves_other_observations_alone() -> None:
    step = AppendEnvironmentState()
    observation = {OBS_STATE: torch.zeros(1, 3)}
    assert step.observation(observation) == observation


def test_uniform_random_policy() -> None:
    low, high = np.array([-1.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32)
    policy = UniformRandomPolicy(low, high, horizon=8)
    assert isinstance(policy, Policy)
    policy.reset()
    policy.observe(tiny_observation())
    actions = policy.sample(500, 3).actions
    assert actions.shape == (500, 8, 2) and actions.dtype == np.float32
    assert (actions >= low).all() and (actions <= high).all()
    np.testing.assert_allclose(actions.mean((0, 1)), [0.0, 0.25], atol=0.05)
    np.testing.assert_array_equal(policy.sample(4, 3).actions, actions[:4])
    assert np.abs(policy.sample(4, 4).actions - actions[:4]).max() > 0.1


@pytest.mark.parametrize(
    ("low", "high", "horizon"),
    [([0.0], [1.0, 2.0], 4), ([1.0], [0.0], 4), ([0.0], [np.inf], 4), ([0.0], [1.0], 0)],
)
def test_uniform_random_policy_refuses_wrong_limits(low: Any, high: Any, horizon: int) -> None:
    with pytest.raises(ConfigError, match="UniformRandomPolicy"):
        UniformRandomPolicy(np.array(low), np.array(high), horizon)
    with pytest.raises(ConfigError, match="at least 1 candidate"):
        UniformRandomPolicy(np.zeros(1), np.ones(1), 1).sample(0, 0)


def test_the_caller_may_reuse_its_buffers(tiny: Any) -> None:
    """Cameras and renderers write into the same array again; frames are pre-processed only when needed."""
    adapter, observation = tiny("diffusion").adapter(), tiny_observation(1)
    adapter.observe(observation)
    adapter.observe(tiny_observation(2))
    expected = adapter.sample(1, 0).actions
    adapter.reset()
    adapter.observe(observation)
    observation.images["front"][:], observation.state[:] = 0, 9
    adapter.observe(tiny_observation(2))
    np.testing.assert_array_equal(adapter.sample(1, 0).actions, expected)


@pytest.mark.parametrize("policy_type", ["smolvla", "pi0", "pi05"])
def test_padding_cameras_are_the_policys_business(policy_type: str, tiny: Any) -> None:
    adapter = tiny(policy_type, empty_cameras=1).adapter()
    assert adapter.cameras == CAMERAS
    adapter.observe(tiny_observation())
    actions = adapter.sample(2, 0).actions
    assert np.isfinite(actions).all()
    np.testing.assert_allclose(adapter.sample(1, 0).actions, actions[:1], atol=1e-5)


def test_relative_actions_start_from_the_forks_own_state(tiny: Any) -> None:
    """LeRobot's processors keep one last state; forks share the processors."""
    adapter = tiny("pi0", use_relative_actions=True, relative_exclude_joints=[]).adapter()
    adapter.observe(tiny_observation(1))
    expected = adapter.sample(1, 0).actions
    fork = adapter.fork()
    fork.observe(tiny_observation(2))
    fork.sample(1, 0)
    np.testing.assert_array_equal(adapter.sample(1, 0).actions, expected)
