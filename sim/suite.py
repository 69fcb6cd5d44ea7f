"""The suites `wxai` (images and proprioception), `wxai-state` (privileged state, no rendering) and
`wxai-both`, whose recordings can teach a critic that sees images (`train critic --algo distill`)."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim.arm import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, CONTROL_HZ, STATE_NAMES
from sim.env import ENVIRONMENT_STATE_NAMES, IMAGE_SIZE, TabletopEnv
from sim.render import CAMERAS
from sim.tasks import MAX_STEPS, TASKS
from valueguide.errors import ConfigError

SUITES = {"wxai": "images", "wxai-state": "state", "wxai-both": "both"}


@dataclass(frozen=True)
class TabletopSuite:
    """All nine tasks with one observation mode; see `valueguide.evaluation.suite.Suite`."""

    name: str
    observation: str
    tasks: tuple[str, ...] = tuple(TASKS)
    fps: int = CONTROL_HZ
    max_steps: int = MAX_STEPS
    action_names: tuple[str, ...] = ACTION_NAMES
    state_names: tuple[str, ...] = STATE_NAMES

    @property
    def action_low(self) -> NDArray[np.float32]:
        return ACTION_LOW

    @property
    def action_high(self) -> NDArray[np.float32]:
        return ACTION_HIGH

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (height, width); empty in state mode."""
        return {} if self.observation == "state" else dict.fromkeys(CAMERAS, (IMAGE_SIZE, IMAGE_SIZE))

    @property
    def environment_state_names(self) -> tuple[str, ...]:
        """Names of the privileged state's values; empty in image mode."""
        return ENVIRONMENT_STATE_NAMES if self.observation != "images" else ()

    def make(self, task: str, wording: str = "train", visuals: str = "train") -> gym.Env:
        """A new environment. visuals: "train", "held_out" or "none"; wording: "train" or "held_out"."""
        return TabletopEnv(task, self.observation, wording, visuals)


def make_suite(name: str) -> TabletopSuite:
    """Raises ConfigError for a name that is not in SUITES."""
    if name not in SUITES:
        raise ConfigError(f"suite: expected one of {', '.join(SUITES)}, found {name!r}")
    return TabletopSuite(name, SUITES[name])
