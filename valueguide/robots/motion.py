"""From actions to joint targets: the commanded pose, and what keeps it near the arm.

Pure: no clock, no driver. Cartesian steps become joint targets here rather than in the vendor's driver,
which ends its connection, and so the motion, for a pose that it cannot reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError, mismatch
from valueguide.robots.kinematics import Array, Chain, Pose, rotation_of

#: The commanded hand may lead the measured one by this much (metres an axis, radians of yaw); more would
#: wind up against a contact.
MAX_LEAD = 0.05
MAX_YAW_LEAD = 0.4
#: No single action may turn a joint by more (radians): it would be a jump to another solution.
MAX_TURN = 0.8
#: A hand within this angle of pointing down (radians) is kept pointing down; another keeps the tilt it has.
DOWN_WITHIN = 0.15
#: The tool's axes in the base frame when the hand points down at yaw 0, its fingers opening along y.
HAND_DOWN: Array = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


def hand_rotation(tool: Array) -> Array:
    """The hand as `ee_pose` gives it: identity when it points down at yaw 0. tool: rotation (3, 3)."""
    return tool @ HAND_DOWN.T


def hand_yaw(tool: Array) -> float:
    """Yaw of the hand about the vertical, radians. tool: rotation (3, 3)."""
    return float(np.arctan2(tool[1, 2], tool[0, 2]))


@dataclass(frozen=True)
class Target:
    """joints: (J,), radians. gripper: position of its joint, or None for a robot without one.

    seconds: to get there: a control period, or longer where that is too fast for a joint.
    """

    joints: Array
    gripper: float | None
    seconds: float


class Motion:
    """Turns the actions of one robot into joint targets. `hold` it whenever the arm is held.

    velocity: (J,) rad/s that the joints are asked for at most.
    """

    def __init__(self, robot: RobotConfig, chain: Chain, velocity: Any) -> None:
        self._robot, self._chain = robot, chain
        self._velocity = np.asarray(velocity, np.float64)
        self._joints: Array | None = None
        self._position: Array = np.zeros(3)
        self._yaw, self._upright = 0.0, HAND_DOWN

    def hold(self) -> None:
        """The next action starts from the measured pose."""
        self._joints = None

    def move(self, names: Sequence[str], values: Any, measured: Any) -> Target:
        """The target of one action. measured: (J,) joints, radians.

        Raises DataError, and forgets the commanded pose as for a hold, for an action of another shape, one
        that is not finite, or one that the arm cannot reach without a jump.
        """
        try:
            action = self._checked(names, values)
            joints: Array = np.asarray(measured, np.float64)
            if self._joints is None:
                self._anchor(joints)
                self._joints = joints
            if self._robot.action.kind == "cartesian_delta":
                target = self._follow(action, joints, self._joints)
            else:
                target = self._within(action[: len(joints)])
            self._check_turn(target - self._joints)
        except DataError:
            self.hold()
            raise
        self._joints = target
        seconds = max(1.0 / self._robot.rate_hz, float(np.max(np.abs(target - joints) / self._velocity)))
        return Target(target, self._gripper(action[-1]) if self._robot.joints.gripper else None, seconds)

    def _checked(self, names: Sequence[str], values: Any) -> Array:
        expected = self._robot.action.names
        action = np.asarray(values, np.float64).reshape(-1)
        if action.size != len(expected):
            wanted = f"{len(expected)} ({', '.join(expected)})"
            raise DataError(mismatch("command", "values", wanted, action.size))
        if len(names) and list(names) != list(expected):
            raise DataError(mismatch("command", "names", ", ".join(expected), ", ".join(names)))
        if not np.isfinite(action).all():
            raise DataError(f"command {expected[int(np.argmin(np.isfinite(action)))]}: not a finite number")
        return action

    def _anchor(self, joints: Array) -> None:
        pose = self._chain.forward(joints)
        self._position, self._yaw = pose.position, hand_yaw(pose.rotation)
        self._upright = rotation_of([0.0, 0.0, -self._yaw]) @ pose.rotation
        # The tool points along its x axis.
        if np.arccos(np.clip(-pose.rotation[2, 0], -1.0, 1.0)) <= DOWN_WITHIN:
            self._upright = HAND_DOWN

    def _follow(self, action: Array, joints: Array, previous: Array) -> Array:
        pose = self._chain.forward(joints)
        position: Array = self._position + action[:3]
        if self._robot.limits.workspace_low:
            position = np.clip(position, self._robot.limits.workspace_low, self._robot.limits.workspace_high)
        # Last, so that nothing can make the arm jump.
        position = np.clip(position, pose.position - MAX_LEAD, pose.position + MAX_LEAD)
        measured = hand_yaw(pose.rotation)
        lead = (self._yaw + action[3] - measured + np.pi) % (2 * np.pi) - np.pi
        yaw = measured + float(np.clip(lead, -MAX_YAW_LEAD, MAX_YAW_LEAD))
        target = self._chain.solve(Pose(position, rotation_of([0.0, 0.0, yaw]) @ self._upright), previous)
        self._position, self._yaw = position, yaw
        return target

    def _within(self, joints: Array) -> Array:
        outside = (joints < self._chain.low) | (joints > self._chain.high)
        if outside.any():
            i = int(np.argmax(outside))
            low, high, name = self._chain.low[i], self._chain.high[i], self._robot.joints.names[i]
            raise DataError(mismatch("command", name, f"{low:.3f} to {high:.3f} rad", f"{joints[i]:.3f}"))
        return joints

    def _check_turn(self, turn: Array) -> None:
        if np.abs(turn).max() > MAX_TURN:
            i = int(np.argmax(np.abs(turn)))
            found, name = f"{turn[i]:.2f}", self._robot.joints.names[i]
            raise DataError(mismatch("command", f"turn of {name}", f"at most {MAX_TURN} rad", found))

    def _gripper(self, opening: float) -> float:
        joints = self._robot.joints
        span = joints.gripper_open - joints.gripper_closed
        return joints.gripper_closed + float(np.clip(opening, 0.0, 1.0)) * span
