"""`TabletopEnv`: one task of the WidowX AI tabletop as a gymnasium environment.

Observation: `agent_pos` float32 (6,) always; `pixels` {camera: uint8 (H, W, 3)} in image mode;
`environment_state` float32 (51,) in state mode, see ENVIRONMENT_STATE_NAMES.
Action: float32 (5,), see `sim.arm`.
Success and failure terminate; the time limit truncates. The reward is 1 on success, else 0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.arm import ACTION_HIGH, ACTION_LOW, CONTROL_HZ, CONTROL_SUBSTEPS, STATE_NAMES
from sim.render import CAMERAS, CameraRenderer, project
from sim.tasks import MAX_STEPS, TASK_STATE_NAMES, TASKS, failure, progress, set_up, success, task_state
from sim.visuals import RANGES, Visuals
from sim.wordings import instructions
from sim.world import SCENE_STATE_NAMES, World, WorldState
from valueguide.errors import ConfigError, mismatch

IMAGE_SIZE = 128
#: Privileged state: where everything is, then where the task's own things are as seen from the hand.
ENVIRONMENT_STATE_NAMES = (*SCENE_STATE_NAMES, *TASK_STATE_NAMES)


@dataclass(frozen=True)
class Snapshot:
    """A moment of an episode: see `TabletopEnv.snapshot`. Belongs to the process that took it."""

    task: str
    world: WorldState
    appearance: tuple[NDArray[np.float64], ...]
    task_description: str
    steps: int
    rng: np.random.Generator | None
    holding: bool = False


class TabletopEnv(gym.Env):
    """One task. `reset(seed)` fixes everything: state, wording and appearance, bit for bit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

    def __init__(
        self,
        task: str,
        observation: str = "images",
        wording: str = "train",
        visuals: str = "train",
        image_size: int = IMAGE_SIZE,
        max_steps: int = MAX_STEPS,
        render_mode: str = "rgb_array",
    ) -> None:
        """observation: "images", "state" or "both". wording: "train" or "held_out"; visuals: also "none".

        Raises ConfigError for an unknown task or setting.
        """
        self.choose(task)
        for label, value, known in (
            ("observation", observation, ("images", "state", "both")),
            ("wording", wording, ("train", "held_out")),
            ("visuals", visuals, RANGES),
        ):
            if value not in known:
                raise ConfigError(f"{label}: expected one of {', '.join(known)}, found {value!r}")
        self.world = World()
        self.render_mode = render_mode
        self.image_size, self._max_episode_steps = image_size, max_steps
        self._observation, self._wording, self._visuals_name = observation, wording, visuals
        self._visuals = Visuals(self.world.model)
        self._renderer: CameraRenderer | None = None
        self._render_images = observation != "state"
        self._steps, self._holding = 0, False
        self.task_description = instructions(task, wording)[0]
        self.action_space = gym.spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        self.observation_space = self._space()

    @property
    def max_steps(self) -> int:
        """Steps after which an episode is truncated."""
        return self._max_episode_steps

    def choose(self, task: str) -> None:
        """The task of the next reset. Raises ConfigError for an unknown one."""
        if task not in TASKS:
            raise ConfigError(f"task: expected one of {', '.join(TASKS)}, found {task!r}")
        self.task, self._task_index = TASKS[task], list(TASKS).index(task)

    def _space(self) -> gym.spaces.Dict:
        spaces: dict[str, gym.Space] = {
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(STATE_NAMES),), np.float32)
        }
        if self._observation != "state":
            image = gym.spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
            spaces["pixels"] = gym.spaces.Dict(dict.fromkeys(CAMERAS, image))
        if self._observation != "images":
            shape = (len(ENVIRONMENT_STATE_NAMES),)
            spaces["environment_state"] = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        return gym.spaces.Dict(spaces)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode. The same (task, seed, settings) give the same episode on every machine."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**62)) if seed is None else seed
        # Appearance and wording have their own streams: changing them leaves the physics untouched.
        state_rng, word_rng, look_rng = (
            np.random.default_rng([stream, self._task_index, episode]) for stream in range(3)
        )
        extra = RANGES[self._visuals_name].extra
        for _ in range(100):
            set_up(self.world, self.task, state_rng, extra)
            if not success(self.world, self.task) and failure(self.world, self.task) is None:
                break
        self.repaint(look_rng)
        sentences = instructions(self.task.name, self._wording)
        self.task_description = sentences[int(word_rng.integers(len(sentences)))]
        self._steps, self._holding = 0, False
        return self.observe(), self._info(None)

    def step(self, action: NDArray[np.float32]) -> tuple[dict, float, bool, bool, dict]:
        """One control step (0.1 s). Raises ConfigError for a wrong action size or a NaN."""
        action = np.asarray(action, np.float32)
        if action.shape != ACTION_LOW.shape or not np.isfinite(action).all():
            raise ConfigError(f"action: expected {ACTION_LOW.shape} finite values, found {action!r}")
        self._holding = False
        self.world.arm.step(action)
        self._steps += 1
        return self._outcome(truncates=True)

    def hold(self) -> tuple[dict, float, bool, bool, dict]:
        """Hold the measured pose, the gripper as last commanded, while one control step passes; as `step`.

        Held again it stays where it was held first: the measured pose sags a little below the commanded one.
        It does not count towards `max_steps` and never truncates: how long may be waited, the caller knows.
        """
        if not self._holding:
            self.world.arm.hold()
            self._holding = True
        self.world.arm.peak_force = 0.0
        self.world.arm.advance(CONTROL_SUBSTEPS)
        return self._outcome(truncates=False)

    def _outcome(self, truncates: bool) -> tuple[dict, float, bool, bool, dict]:
        succeeded = success(self.world, self.task)
        failed = None if succeeded else failure(self.world, self.task)
        terminated = succeeded or failed is not None
        truncated = truncates and not terminated and self._steps >= self._max_episode_steps
        return self.observe(), float(succeeded), terminated, truncated, self._info(failed)

    def snapshot(self) -> Snapshot:
        """This moment, whole: physics, commands under way, appearance, wording, step count, random state.

        About half a millisecond. What the environment does after `restore` is equal bit for bit.
        """
        return Snapshot(
            self.task.name,
            self.world.save(),
            self._visuals.save(),
            self.task_description,
            self._steps,
            copy.deepcopy(self._np_random),
            self._holding,
        )

    def restore(self, snapshot: Snapshot) -> tuple[dict, dict]:
        """Go back to a moment of this or another environment of the same task; returns what reset returns.

        The same snapshot may be restored any number of times. Raises ConfigError for another task's.
        """
        if snapshot.task != self.task.name:
            raise ConfigError(mismatch("restore", "snapshot", f"one of task {self.task.name}", snapshot.task))
        self.world.load(snapshot.world)
        self._visuals.load(snapshot.appearance)
        self.task_description, self._steps = snapshot.task_description, snapshot.steps
        self._np_random = copy.deepcopy(snapshot.rng)
        self._holding = snapshot.holding
        failed = None if success(self.world, self.task) else failure(self.world, self.task)
        return self.observe(), self._info(failed)

    def _info(self, failed: str | None) -> dict[str, Any]:
        return {
            "is_success": success(self.world, self.task),
            "failure": failed or "",
            "task_description": self.task_description,
            "progress": progress(self.world, self.task),
            "contact_force": self.world.arm.peak_force,
        }

    def set_render(self, on: bool) -> None:
        """Leave images out of the following observations (rendering dominates the cost), or put them back."""
        self._render_images = on and self._observation != "state"

    def observe(self) -> dict[str, Any]:
        """The observation of the current state, without stepping."""
        observation: dict[str, Any] = {"agent_pos": self.world.arm.state()}
        if self._observation != "images":
            observation["environment_state"] = self.environment_state()
        if self._render_images:
            observation["pixels"] = self._images(self.image_size)
        return observation

    def environment_state(self) -> NDArray[np.float32]:
        """Privileged state, float32 (51,), whatever the observation mode: see ENVIRONMENT_STATE_NAMES."""
        return np.concatenate([self.world.scene_state(), task_state(self.world, self.task)])

    def repaint(self, rng: np.random.Generator) -> None:
        """Draw a new appearance in the middle of an episode; the physics is untouched."""
        self._visuals.apply(self._visuals_name, rng)
        mujoco.mj_forward(self.world.model, self.world.data)

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Both cameras, whatever the observation mode: camera -> uint8 (H, W, 3)."""
        return self._images(self.image_size)

    def _images(self, size: int) -> dict[str, NDArray[np.uint8]]:
        if self._renderer is None:
            self._renderer = CameraRenderer(self.world.model, size, size)
        return self._renderer.images(self.world.data)

    def render(self) -> NDArray[np.uint8]:
        """The front camera, uint8 (H, W, 3)."""
        return self._images(self.image_size)["front"]

    def project_candidates(
        self, actions: NDArray[np.float32], camera: str = "front"
    ) -> list[NDArray[np.float32]]:
        """Pixel polylines (H+1, 2), one per chunk, of where the hand would go. actions: (K, H, 5)."""
        start = self.world.arm.position()
        paths = [np.vstack([start, start + np.cumsum(chunk[:, :3], axis=0)]) for chunk in actions]
        size = self.image_size
        return [project(self.world.model, self.world.data, camera, path, size, size) for path in paths]

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
