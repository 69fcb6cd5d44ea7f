"""Any LeRobot environment type as a `Suite`: nothing in the stack is tied to our own scene."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cached_property
from typing import Any

import numpy as np

from valueguide.cli.lerobot_render import install
from valueguide.errors import ConfigError, EnvironmentSetupError
from valueguide.types import Float32

os.environ.setdefault("MUJOCO_GL", "egl")
#: LeRobot's key for the picture of an environment with a single, unnamed camera.
_ONLY_CAMERA = "image"


def known_types() -> tuple[str, ...]:
    """Environment types that LeRobot and installed plugins register, without our own."""
    from lerobot.envs.configs import EnvConfig

    return tuple(sorted(name for name in EnvConfig.get_known_choices() if not name.startswith("wxai")))


class LeRobotSuite:
    """See `valueguide.evaluation.suite.Suite`. Sizes and limits are read from a live environment."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError when the environment cannot be made (a package may be missing)."""
        from lerobot.envs import make_env_config

        self.name = name
        try:
            self._config = make_env_config(name)
        except Exception as error:  # configurations of third parties raise whatever they like
            raise ConfigError(f"--suite {name}: {error}") from error
        self.tasks = _tasks(name, self._config)
        self.fps = int(self._config.fps)

    @cached_property
    def _sample(self) -> tuple[Any, dict[str, Any]]:
        env = self.make(self.tasks[0])
        observation, _ = env.reset(seed=0)
        return env, observation

    @property
    def max_steps(self) -> int:
        env = self._sample[0]
        return int(getattr(env, "_max_episode_steps", None) or self._config.episode_length)

    @property
    def action_low(self) -> Float32:
        return np.asarray(self._sample[0].action_space.low, np.float32)

    @property
    def action_high(self) -> Float32:
        return np.asarray(self._sample[0].action_space.high, np.float32)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(f"action_{i}" for i in range(len(self.action_low)))

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(f"state_{i}" for i in range(len(self._sample[1]["agent_pos"])))

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        return {name: image.shape[:2] for name, image in self._sample[1].get("pixels", {}).items()}

    @property
    def environment_state_names(self) -> tuple[str, ...]:
        return tuple(f"env_{i}" for i in range(len(self._sample[1].get("environment_state", ()))))

    def make(self, task: str, wording: str = "train", visuals: str = "train") -> LeRobotTask:
        """One environment. These suites have one wording and one look; anything else is a ConfigError."""
        if wording != "train" or visuals == "held_out":
            raise ConfigError(f"--suite {self.name}: expected wording train and visuals train")
        return LeRobotTask(self.name, task)


class LeRobotTask:
    """One LeRobot environment with observations, seeds and info as the evaluation expects them."""

    def __init__(self, kind: str, task: str) -> None:
        from lerobot.envs import make_env, make_env_config

        try:
            # LeRobot announces on stdout what it builds; stdout is for results.
            with contextlib.redirect_stdout(sys.stderr):
                suites = make_env(make_env_config(kind, task=task), n_envs=1)
        except Exception as error:  # the environment's own package raises whatever it likes
            raise EnvironmentSetupError(
                f"--suite {kind}, task {task}: cannot make the environment: {error}"
            ) from error
        self._vector = next(iter(next(iter(suites.values())).values()))
        self._env = self._first_env()
        self.metadata = self._env.metadata
        self.action_space = self._env.action_space
        self.unwrapped = self._env.unwrapped
        self.task_description = str(getattr(self.unwrapped, "task_description", "") or task)
        self._max_episode_steps = getattr(self.unwrapped, "_max_episode_steps", None)
        self._switch = install(self.unwrapped)
        self._last: dict[str, Any] = {}
        if self._switch is not None:
            # Offered only where it works: `rollout` asks whether the method is there.
            self.set_render = self._set_render

    def _first_env(self) -> Any:
        with contextlib.suppress(AttributeError):
            return self._vector.envs[0]
        # A lazily built vector environment has none before its first use.
        self._vector.reset()
        return self._vector.envs[0]

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self._env.reset(seed=seed)
        return self._seen(observation), self._info(info)

    def step(self, action: Float32) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return self._seen(observation), float(reward), bool(terminated), bool(truncated), self._info(info)

    def _seen(self, observation: Any) -> dict[str, Any]:
        self._last = _named(observation)
        self._camera = next(iter(self._last.get("pixels", {})), _ONLY_CAMERA)
        if self._switch is not None and not self._switch.on:
            self._last.pop("pixels", None)
        return self._last

    def _set_render(self, on: bool) -> None:
        """Leave images out of the following observations, or put them back."""
        assert self._switch is not None
        self._switch.on = on

    def observe(self) -> dict[str, Any]:
        """The observation of the current state, without stepping: the last one, with its picture."""
        if "pixels" in self._last or self._switch is None or not self._switch.on:
            return self._last
        picture = np.ascontiguousarray(self.unwrapped.render())
        return {**self._last, "pixels": {self._camera: picture}}

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        return {"is_success": bool(info.get("is_success", False)), "task_description": self.task_description}

    def close(self) -> None:
        self._vector.close()


def _named(observation: Any) -> dict[str, Any]:
    if not isinstance(observation, dict):
        raise ConfigError("environment: expected a dictionary observation with agent_pos and pixels")
    out = dict(observation)
    pixels = out.get("pixels")
    if pixels is not None and not isinstance(pixels, dict):
        out["pixels"] = {_ONLY_CAMERA: np.ascontiguousarray(pixels)}
    out["agent_pos"] = np.asarray(out.get("agent_pos", np.zeros(0)), np.float32)
    return out


def _tasks(name: str, config: Any) -> tuple[str, ...]:
    if name == "metaworld":
        from lerobot.envs.metaworld import TASK_DESCRIPTIONS

        return tuple(TASK_DESCRIPTIONS)
    return (str(config.task),)
