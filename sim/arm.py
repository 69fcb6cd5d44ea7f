"""The arm as the policies see it: Cartesian delta actions in, end-effector pose out.

An action is `[dx, dy, dz, dyaw, grip]` per control step: metres and radians in the base frame,
gripper 0 closed … 1 open. The hand always points down; damped least-squares inverse kinematics
turns the commanded pose into joint targets, which are interpolated over the control step.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.scene import GRIPPER_OPEN, HOME_JOINTS, TIMESTEP

Array = NDArray[np.float64]

CONTROL_HZ = 10
CONTROL_SUBSTEPS = round(1 / (CONTROL_HZ * TIMESTEP))
ACTION_NAMES = ("dx", "dy", "dz", "dyaw", "grip")
ACTION_LOW = np.array([-0.03, -0.03, -0.03, -0.3, 0.0], np.float32)
ACTION_HIGH = np.array([0.03, 0.03, 0.03, 0.3, 1.0], np.float32)
STATE_NAMES = ("x", "y", "z", "yaw", "gripper", "gripper_command")
WORKSPACE_LOW = np.array([-0.05, -0.36, 0.012])
WORKSPACE_HIGH = np.array([0.42, 0.40, 0.30])
YAW_LIMIT = 1.4
HOME_POSITION = np.array([0.25, 0.0, 0.20])
#: The commanded pose may lead the measured one by this much; more would wind up against a contact.
MAX_LEAD = 0.05
_ORIENTATION_WEIGHT = 0.15
#: Hand pointing down: the site's x axis is -z of the base, its z axis is +x.
_HAND_DOWN = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], float)


@dataclass(frozen=True)
class ArmState:
    """Everything that an `Arm` knows beside the physics: what is commanded, and how far a step has come."""

    target: Array
    yaw_target: float
    grip_target: float
    joint_start: Array
    joint_target: Array
    done: int
    peak_force: float
    stuck: dict[int, float]


class Arm:
    """Drives the arm of a compiled scene. One instance per `MjData`; not thread-safe."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model, self.data = model, data
        joints = [model.joint(f"joint_{i}").id for i in range(6)]
        self._qpos = model.jnt_qposadr[joints]
        self._dof = model.jnt_dofadr[joints]
        self._low, self._high = model.jnt_range[joints, 0], model.jnt_range[joints, 1]
        self._fingers = [int(model.joint(f"{s}_carriage_joint").qposadr[0]) for s in ("left", "right")]
        self._site = model.site("ee_site").id
        self._scratch = mujoco.MjData(model)
        self._jac_pos, self._jac_rot = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._substeps = CONTROL_SUBSTEPS
        root = model.body("base_link").id
        self._is_arm = np.array([model.body_rootid[b] == root for b in model.geom_bodyid])
        self._force = np.zeros(6)
        self.target = HOME_POSITION.copy()
        self.yaw_target = 0.0
        self.grip_target = 1.0
        self._joint_start = self._joint_target = HOME_JOINTS.copy()
        self._done = self._substeps
        self.peak_force = 0.0
        #: Actuators (0 … 5 joints, 6 gripper) that ignore their targets, and where they are stuck (rad, m).
        self.stuck: dict[int, float] = {}

    def home(self) -> None:
        """Put the arm, at rest and open, at its home pose (no physics)."""
        self.target, self.yaw_target, self.grip_target = HOME_POSITION.copy(), 0.0, 1.0
        self.peak_force = 0.0
        joints = self._solve(self.target, 0.0, HOME_JOINTS, iterations=100)
        self.data.qpos[self._qpos] = joints
        self.data.qpos[self._fingers] = GRIPPER_OPEN
        self.data.ctrl[:6], self.data.ctrl[6] = joints, GRIPPER_OPEN
        self._stay_at(joints)

    def hold(self) -> None:
        """Hold the measured pose, also in the middle of a step: it becomes the commanded one."""
        self.target, self.yaw_target = self.position(), self.yaw()
        self._stay_at(self.data.qpos[self._qpos].copy())
        self.data.ctrl[:6] = self._joint_target

    def _stay_at(self, joints: Array) -> None:
        self._joint_start = self._joint_target = joints
        self._done = self._substeps

    def save(self) -> ArmState:
        """What `load` needs to go on exactly from here, together with the physics' own state."""
        return ArmState(
            self.target.copy(),
            self.yaw_target,
            self.grip_target,
            self._joint_start.copy(),
            self._joint_target.copy(),
            self._done,
            self.peak_force,
            dict(self.stuck),
        )

    def load(self, state: ArmState) -> None:
        """Take a saved state; the same one may be loaded any number of times."""
        self.target = state.target.copy()
        self.yaw_target, self.grip_target = state.yaw_target, state.grip_target
        self._joint_start, self._joint_target = state.joint_start.copy(), state.joint_target.copy()
        self._done, self.peak_force, self.stuck = state.done, state.peak_force, dict(state.stuck)

    @property
    def moving(self) -> bool:
        """True until the control step that `begin` started is over."""
        return self._done < self._substeps

    def step(self, action: NDArray[np.floating]) -> None:
        """Run one control step. action: (5,), clipped to the action limits and the workspace."""
        self.begin(action)
        self.advance(self._substeps)

    def begin(self, action: NDArray[np.floating]) -> None:
        """Start a control step without running it: aim at the pose that `action` (5,) leads to.

        A step that is not over yet is cut short: the joint targets go on from where they are.
        """
        wanted = np.clip(np.asarray(action, float), ACTION_LOW, ACTION_HIGH)
        measured = self.position()
        target = np.clip(self.target + wanted[:3], measured - MAX_LEAD, measured + MAX_LEAD)
        self.target = np.clip(target, WORKSPACE_LOW, WORKSPACE_HIGH)
        self.yaw_target = float(np.clip(self.yaw_target + wanted[3], -YAW_LIMIT, YAW_LIMIT))
        self.grip_target = float(wanted[4])
        self._joint_start = self._interpolated() if self.moving else self._joint_target
        self._joint_target = self._solve(self.target, self.yaw_target, self._joint_target)
        self._done = 0
        self.peak_force = 0.0

    def advance(self, substeps: int) -> None:
        """Run physics steps of TIMESTEP; the joint targets move until the control step is over, then stay."""
        for _ in range(substeps):
            self._done += 1
            self.data.ctrl[:6] = self._interpolated()
            self.data.ctrl[6] = GRIPPER_OPEN * self.grip_target
            for actuator, place in self.stuck.items():
                self.data.ctrl[actuator] = place
            mujoco.mj_step(self.model, self.data)
            if self._done % 5 == 0:
                self.peak_force = max(self.peak_force, self.contact_force())

    def _interpolated(self) -> Array:
        """Joint targets (6,) of this moment."""
        if self._done > self._substeps:
            return self._joint_target
        start, end = self._joint_start, self._joint_target
        return start + (end - start) * self._done / self._substeps

    def position(self) -> Array:
        """Measured fingertip position (3,), metres, base frame."""
        return self.data.site_xpos[self._site].copy()

    def yaw(self) -> float:
        """Measured hand yaw about the vertical, radians; 0 when the fingers open along y."""
        rotation = self.data.site_xmat[self._site].reshape(3, 3)
        return float(np.arctan2(rotation[1, 2], rotation[0, 2]))

    def turn(self) -> Array:
        """Measured rotation (3, 3) of the hand away from pointing straight down at yaw 0, base frame."""
        return self.data.site_xmat[self._site].reshape(3, 3) @ _HAND_DOWN.T

    def opening(self) -> float:
        """Measured gripper opening, 0 closed … 1 open."""
        return float(self.data.qpos[self._fingers[0]] / GRIPPER_OPEN)

    def state(self) -> NDArray[np.float32]:
        """Proprioception, float32 (6,): see STATE_NAMES."""
        return np.array([*self.position(), self.yaw(), self.opening(), self.grip_target], np.float32)

    def contact_force(self) -> float:
        """Sum of the normal forces between the arm and everything else, newtons."""
        total = 0.0
        geoms = self.data.contact.geom
        for i in range(self.data.ncon):
            if self._is_arm[geoms[i, 0]] != self._is_arm[geoms[i, 1]]:
                mujoco.mj_contactForce(self.model, self.data, i, self._force)
                total += abs(self._force[0])
        return total

    def _solve(self, position: Array, yaw: float, seed: Array, iterations: int = 6) -> Array:
        """Joint angles (6,) that bring the fingertip to `position` pointing down at `yaw`."""
        scratch, joints = self._scratch, seed.copy()
        scratch.qpos[:] = self.data.qpos
        c, s = np.cos(yaw), np.sin(yaw)
        wanted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ _HAND_DOWN
        error = np.zeros(6)
        for _ in range(iterations):
            scratch.qpos[self._qpos] = joints
            mujoco.mj_kinematics(self.model, scratch)
            mujoco.mj_comPos(self.model, scratch)
            error[:3] = position - scratch.site_xpos[self._site]
            rotation = scratch.site_xmat[self._site].reshape(3, 3)
            error[3:] = 0.5 * np.cross(rotation.T, wanted.T).sum(axis=0)
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(self.model, scratch, self._jac_pos, self._jac_rot, self._site)
            jac = np.vstack([self._jac_pos[:, self._dof], _ORIENTATION_WEIGHT * self._jac_rot[:, self._dof]])
            error[3:] *= _ORIENTATION_WEIGHT
            step = jac.T @ np.linalg.solve(jac @ jac.T + 1e-4 * np.eye(6), error)
            joints = np.clip(joints + step, self._low, self._high)
        return joints
