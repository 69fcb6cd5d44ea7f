"""Suites by name: ours and LeRobot's own environments."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.cli.suites import dataset_spec, resolve_suite
from valueguide.errors import ConfigError


def test_unknown_suites_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match="wxai-state.*metaworld.*'kitchen'"):
        resolve_suite("kitchen")


def test_metaworld_is_a_suite_with_repeatable_starts() -> None:
    suite = resolve_suite("metaworld")
    assert len(suite.tasks) == 50 and len(suite.action_names) == 4 and suite.max_steps == 500
    env = suite.make("button-press-v3")
    first, info = env.reset(seed=3)
    observation, reward, terminated, truncated, after = env.step(np.zeros(4, np.float32))
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first["agent_pos"], again["agent_pos"])
    assert first["pixels"]["image"].shape == (480, 480, 3)
    assert observation["agent_pos"].dtype == np.float32 and not (terminated or truncated)
    assert info["task_description"] and after["is_success"] is False and isinstance(reward, float)
    with pytest.raises(ConfigError, match="wording"):
        suite.make("button-press-v3", wording="held_out")
    env.close()


def test_recording_follows_the_suite() -> None:
    state = dataset_spec(resolve_suite("wxai-state"))
    assert state.cameras == {} and state.image_format == "none" and state.k == 0
    images = dataset_spec(resolve_suite("wxai"), "jpeg", k=16)
    assert set(images.cameras) == {"front", "wrist"} and images.k == 16 and images.horizon == 8
