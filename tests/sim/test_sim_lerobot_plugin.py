"""LeRobot's own environment factory and evaluation loop run the tabletop."""

from __future__ import annotations

import numpy as np
import torch
from lerobot.envs import make_env, make_env_config
from lerobot.envs.utils import preprocess_observation
from lerobot.utils.import_utils import register_third_party_plugins


def test_the_plugin_is_discovered_and_steps() -> None:
    register_third_party_plugins()
    config = make_env_config("wxai_state", task="pick_can,press_button")
    suites = make_env(config, n_envs=2)
    assert set(suites) == {"wxai_state"} and len(suites["wxai_state"]) == 2
    vector = suites["wxai_state"][0]
    observation, _ = vector.reset(seed=[1, 2])
    batch = preprocess_observation(observation)
    assert batch["observation.state"].shape == (2, 6)
    assert batch["observation.environment_state"].shape == (2, 51)
    assert vector.call("task_description")[0] != ""
    assert vector.call("_max_episode_steps")[0] == 80
    _, reward, terminated, truncated, info = vector.step(np.zeros((2, 5), np.float32))
    assert reward.shape == (2,) and "is_success" in info
    assert not terminated.any() and not truncated.any()
    for env in suites["wxai_state"].values():
        env.close()


def test_images_arrive_in_lerobot_form() -> None:
    register_third_party_plugins()
    vector = make_env(make_env_config("wxai", task="open_drawer"), n_envs=1)["wxai"][0]
    batch = preprocess_observation(vector.reset(seed=[4])[0])
    front = batch["observation.images.front"]
    assert (
        front.shape == (1, 3, 128, 128)
        and front.dtype == torch.float32
        and 0 <= front.min() <= front.max() <= 1
    )
    vector.close()
