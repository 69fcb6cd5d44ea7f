"""`SimRobot`: the tabletop as a robot that runs in time: commands in, measurements out, physics in between.

It stands in for a real arm behind the same topics. `TabletopEnv` steps physics one whole control step at a
time; here time passes in small ticks, whether or not a command came.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.arm import ACTION_LOW, CONTROL_HZ
from sim.env import IMAGE_SIZE, TabletopEnv
from sim.faults import ACTUATORS, ARM_JOINTS
from sim.render import CAMERAS, CameraRenderer
from sim.scene import TIMESTEP
from sim.tasks import failure, progress, success
from valueguide.errors import ConfigError, mismatch
from valueguide.types import Float32, Observation, UInt8

JOINT_NAMES = (*ARM_JOINTS, "gripper", "gripper_command")
TIMESTEP_NS = round(TIMESTEP * 1e9)
#: Physics steps of a control period, and of a tick; the last tick of a period is longer when it must be.
PERIOD_SUBSTEPS = round(1 / (CONTROL_HZ * TIMESTEP))
TICK_SUBSTEPS = 2
#: The off-screen buffer that `sim.scene` asks for: (height, width).
_LARGEST = (480, 640)


@dataclass(frozen=True)
class JointState:
    """names (8,): joint_0 … joint_5 (rad), gripper (left finger, m), gripper_command (0 closed … 1 open).

    positions, velocities, efforts: float64 (8,); efforts in Nm, for the gripper N.
    """

    names: tuple[str, ...]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    efforts: NDArray[np.float64]


@dataclass(frozen=True)
class HandPose:
    """position (3,), metres, base frame. orientation (4,): quaternion x, y, z, w of the turn from the hand
    pointing down with its fingers along y, so that its yaw is `Arm.yaw`."""

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """progress: 0 … 1, now. success, failure ("" or why): at the end of the last control step."""

    progress: float
    success: bool
    failure: str


class SimRobot:
    """One arm on one table; implements `valueguide.interfaces.Robot`. Not thread-safe.

    cameras: name -> (height, width) of the pictures. visuals, wording: as for `TabletopEnv`.
    Raises ConfigError for an unknown task, camera or size; EnvironmentSetupError where rendering fails.
    """

    def __init__(
        self,
        task: str,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        visuals: str = "train",
        wording: str = "train",
    ) -> None:
        sizes = dict.fromkeys(CAMERAS, (IMAGE_SIZE, IMAGE_SIZE)) if cameras is None else dict(cameras)
        _check_cameras(sizes)
        self._env = TabletopEnv(task, "state", wording, visuals)
        self._world = self._env.world
        self._arm, self._data = self._world.arm, self._world.data
        model = self._world.model
        joints = [model.joint(name).id for name in (*ARM_JOINTS, "left_carriage_joint")]
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._renderers = {s: CameraRenderer(model, *s) for s in sorted(set(sizes.values()))}
        self._sizes = sizes
        self._substeps = 0
        #: How often success and failure were looked at in this episode: at every control period's end.
        self.judged = 0
        self._outcome: tuple[bool, str] = (False, "")
        self.reset(task, 0)

    @property
    def task(self) -> str:
        """Name of the simulated task."""
        return self._env.task.name

    @property
    def instruction(self) -> str:
        """The task in words."""
        return self._env.task_description

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._sizes)

    @property
    def time_ns(self) -> int:
        """Simulated nanoseconds since construction. A reset lasts until the end of the next control period,
        so nothing measured before it has the stamp of something measured after it."""
        return self._substeps * TIMESTEP_NS

    def reset(self, task: str = "", seed: int = 0) -> str:
        """The initial state of `TabletopEnv(task).reset(seed=seed)`; empty task: the same again.

        Returns the instruction. Raises ConfigError for an unknown task or a negative seed.
        """
        if seed < 0:
            raise ConfigError(mismatch("reset", "seed", "0 or more", seed))
        self._env.choose(task or self.task)
        self._arm.stuck.clear()
        self._env.reset(seed=seed)
        self._since, self._stepping, self._holding = 0, False, False
        self._substeps += 2 * PERIOD_SUBSTEPS - self._substeps % PERIOD_SUBSTEPS
        self.judged, self._outcome = 0, (False, "")
        return self.instruction

    def command(self, action: Float32) -> None:
        """Begin one control step; physics runs in `advance`. action: float32 (5,), see `sim.arm`.

        Raises ConfigError for a wrong size or a value that is not finite.
        """
        action = np.asarray(action, np.float32)
        if action.shape != ACTION_LOW.shape or not np.isfinite(action).all():
            raise ConfigError(f"action: expected {ACTION_LOW.shape} finite values, found {action!r}")
        self._end_step()
        self._arm.begin(action)
        self._stepping, self._holding = True, False

    def hold(self) -> None:
        """Keep the measured pose, also in the middle of a step. What is held already stays, without drift."""
        if self._holding:
            return
        self._end_step()
        self._arm.hold()
        self._holding = True

    def _end_step(self) -> None:
        if self._stepping:
            self._judge()
        self._since, self._stepping = 0, False

    def _judge(self) -> None:
        succeeded = success(self._world, self._env.task)
        failed = None if succeeded else failure(self._world, self._env.task)
        self._outcome = (succeeded, failed or "")
        self.judged += 1
        # What pushes while the arm waits counts for the waiting.
        self._arm.peak_force = 0.0

    @property
    def moving(self) -> bool:
        """True while a control step is under way."""
        return self._stepping

    def tick(self) -> None:
        """Advance by one tick: 8 ms, or 12 ms so that a tick ends with every 100 ms of simulated time."""
        self._advance(self._tick_substeps())

    def tick_ns(self) -> int:
        """Simulated nanoseconds that the next `tick` takes."""
        return TIMESTEP_NS * self._tick_substeps()

    def _tick_substeps(self) -> int:
        left = PERIOD_SUBSTEPS - self._substeps % PERIOD_SUBSTEPS
        return TICK_SUBSTEPS if left > TICK_SUBSTEPS + 1 else left

    def advance(self, seconds: float) -> None:
        """Let time pass, rounded to physics steps of 4 ms."""
        self._advance(round(seconds / TIMESTEP))

    def _advance(self, substeps: int) -> None:
        while substeps > 0:
            count = min(substeps, PERIOD_SUBSTEPS - self._since)
            self._arm.advance(count)
            self._substeps += count
            self._since += count
            substeps -= count
            if self._since == PERIOD_SUBSTEPS:
                self._judge()
                self._since, self._stepping = 0, False

    def stick(self, parts: Collection[str]) -> None:
        """Actuators (joint_0 … joint_5, gripper) that stay where they are from now on; all others work."""
        wanted = {ACTUATORS.index(part) for part in parts}
        stuck = self._arm.stuck
        for actuator in set(stuck) - wanted:
            del stuck[actuator]
        for actuator in wanted - set(stuck):
            stuck[actuator] = float(self._data.qpos[self._qpos[actuator]])

    def joint_state(self) -> JointState:
        """Measured now."""
        return JointState(
            JOINT_NAMES,
            np.append(self._data.qpos[self._qpos], self._arm.grip_target),
            np.append(self._data.qvel[self._dof], 0.0),
            np.append(self._data.qfrc_actuator[self._dof], 0.0),
        )

    def hand_pose(self) -> HandPose:
        """Measured now."""
        rotation, w_first = self._arm.turn(), np.zeros(4)
        mujoco.mju_mat2Quat(w_first, rotation.ravel())
        return HandPose(self._arm.position(), np.roll(w_first, -1))

    def contact_force(self) -> float:
        """Sum of the normal forces between the arm and everything else now, newtons."""
        return self._arm.contact_force()

    def image(self, camera: str) -> UInt8:
        """uint8 (height, width, 3), RGB. Leaves the physics untouched."""
        return self._renderers[self._sizes[camera]].image(self._data, camera)

    def environment_state(self) -> Float32:
        """Privileged state, float32 (51,): see `sim.env.ENVIRONMENT_STATE_NAMES`."""
        return self._env.environment_state()

    def observe(self) -> Observation:
        """Everything at this instant; the stamp is `time_ns`."""
        images = {camera: self.image(camera) for camera in self._sizes}
        state, privileged = self._arm.state(), self.environment_state()
        return Observation(images, state, self.instruction, self.time_ns, privileged)

    def truth(self) -> Truth:
        """True progress now, and how the last control step ended."""
        return Truth(progress(self._world, self._env.task), *self._outcome)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _check_cameras(sizes: Mapping[str, tuple[int, int]]) -> None:
    for name, (height, width) in sizes.items():
        if name not in CAMERAS:
            raise ConfigError(mismatch("simulator", "camera", " or ".join(CAMERAS), name))
        if not (0 < height <= _LARGEST[0] and 0 < width <= _LARGEST[1]):
            limit = f"1 to {_LARGEST[1]} by 1 to {_LARGEST[0]} pixels"
            raise ConfigError(mismatch("simulator", f"size of camera {name}", limit, f"{width} by {height}"))
