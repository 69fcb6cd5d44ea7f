"""Registers the tabletop with LeRobot, which imports this package because of its distribution name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

from sim.arm import ACTION_NAMES, CONTROL_HZ, STATE_NAMES
from sim.env import ENVIRONMENT_STATE_NAMES, IMAGE_SIZE, TabletopEnv
from sim.render import CAMERAS
from sim.tasks import MAX_STEPS, TASKS


@EnvConfig.register_subclass("wxai")
@dataclass
class WxaiEnv(EnvConfig):
    """The tabletop from images. task: a task name, several joined by commas, or "all"."""

    task: str | None = "all"
    fps: int = CONTROL_HZ
    episode_length: int = MAX_STEPS
    wording: str = "train"
    visuals: str = "train"
    observation: str = "images"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (len(ACTION_NAMES),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(STATE_NAMES),)),
        }
        self.features_map = {"action": ACTION, "agent_pos": OBS_STATE}
        if self.observation == "images":
            for camera in CAMERAS:
                self.features[f"pixels/{camera}"] = PolicyFeature(
                    FeatureType.VISUAL, (IMAGE_SIZE, IMAGE_SIZE, 3)
                )
                self.features_map[f"pixels/{camera}"] = f"{OBS_IMAGES}.{camera}"
        else:
            self.features["environment_state"] = PolicyFeature(
                FeatureType.ENV, (len(ENVIRONMENT_STATE_NAMES),)
            )
            self.features_map["environment_state"] = OBS_ENV_STATE

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "observation": self.observation,
            "wording": self.wording,
            "visuals": self.visuals,
            "max_steps": self.episode_length,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """One vector environment per task: {"wxai": {0: ..., 1: ...}}."""
        tasks = list(TASKS) if self.task in (None, "all") else str(self.task).split(",")
        kind = gym.vector.AsyncVectorEnv if use_async_envs and n_envs > 1 else gym.vector.SyncVectorEnv
        make = {t: partial(TabletopEnv, t, **self.gym_kwargs) for t in tasks}
        return {
            self.type: {
                i: kind([make[t]] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
                for i, t in enumerate(tasks)
            }
        }


@EnvConfig.register_subclass("wxai_state")
@dataclass
class WxaiStateEnv(WxaiEnv):
    """The same tabletop from privileged state, without rendering."""

    observation: str = "state"
