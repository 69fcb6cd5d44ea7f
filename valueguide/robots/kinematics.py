"""Forward and inverse kinematics of a serial arm. Pure numpy: a robot computer needs no simulator for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError

Array = NDArray[np.float64]

#: A radian of rotation counts as much as this many metres.
_ORIENTATION_WEIGHT = 0.15
_DAMPING = 1e-4
_ITERATIONS = 60
#: Metres and radians at which a solution is one.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pose:
    """Of the hand in the arm's base frame. position: (3,), metres. rotation: (3, 3)."""

    position: Array
    rotation: Array


def rotation_of(angle_axis: Any) -> Array:
    """(3,) axis times angle, radians -> rotation matrix (3, 3)."""
    return np.asarray(cv2.Rodrigues(np.asarray(angle_axis, np.float64).reshape(3, 1))[0])


def quaternion_of(rotation: Array) -> Array:
    """Rotation matrix (3, 3) -> unit quaternion (4,), x y z w with w >= 0."""
    vector = np.asarray(cv2.Rodrigues(rotation)[0]).reshape(3)
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.array([0.0, 0.0, 0.0, 1.0])
    return np.append(np.sin(angle / 2) * vector / angle, np.cos(angle / 2))


@dataclass(frozen=True)
class Chain:
    """Revolute joints from the base to the tool.

    axes: (J, 3) unit vectors, each in its joint's frame. origins, turns: each joint's frame in the one before
    at angle 0, as (J, 3) metres and (J, 3, 3) rotations. tool: in the last joint's frame.
    low, high: (J,) radians.
    """

    axes: Array
    origins: Array
    turns: Array
    tool: Pose
    low: Array
    high: Array

    @staticmethod
    def of(axes: Any, origins: Any, roll_pitch_yaw: Any, tool: Sequence[float], low: Any, high: Any) -> Chain:
        """From tables as a URDF has them. tool: metres, then axis times angle (6,)."""
        turns = np.stack([rotation_of_rpy(*angles) for angles in roll_pitch_yaw])
        return Chain(
            np.asarray(axes, np.float64),
            np.asarray(origins, np.float64),
            turns,
            Pose(np.asarray(tool[:3], np.float64), rotation_of(tool[3:])),
            np.asarray(low, np.float64),
            np.asarray(high, np.float64),
        )

    def forward(self, joints: Any) -> Pose:
        """Where the tool is. joints: (J,), radians."""
        return self._walk(np.asarray(joints, np.float64))[0]

    def solve(self, wanted: Pose, seed: Any) -> Array:
        """Joints (J,) within the limits that bring the tool to `wanted`: damped least squares from `seed`.

        Raises DataError when none are found near the seed: out of reach, or beyond a joint's range.
        """
        joints = np.clip(np.asarray(seed, np.float64), self.low, self.high)
        error = np.zeros(6)
        weight = np.repeat([1.0, _ORIENTATION_WEIGHT], 3)
        for _ in range(_ITERATIONS):
            pose, jacobian = self._walk(joints)
            error[:3] = wanted.position - pose.position
            error[3:] = 0.5 * np.cross(pose.rotation.T, wanted.rotation.T).sum(axis=0)
            if np.abs(error).max() < _TOLERANCE:
                return joints
            weighted = weight[:, None] * jacobian
            damped = weighted @ weighted.T + _DAMPING * np.eye(6)
            step = weighted.T @ np.linalg.solve(damped, weight * error)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), self.low, self.high)
        x, y, z = wanted.position
        raise DataError(
            f"inverse kinematics: ({x:.3f}, {y:.3f}, {z:.3f}) m is out of reach within the joints' ranges: "
            f"missed by {1000 * np.abs(error[:3]).max():.1f} mm and {np.abs(error[3:]).max():.3f} rad"
        )

    def _walk(self, joints: Array) -> tuple[Pose, Array]:
        """The tool's pose and its geometric Jacobian (6, J): linear above angular, base frame."""
        position, rotation = np.zeros(3), np.eye(3)
        places, directions = np.empty_like(self.axes), np.empty_like(self.axes)
        for i, angle in enumerate(joints):
            position = position + rotation @ self.origins[i]
            rotation = rotation @ self.turns[i]
            places[i], directions[i] = position, rotation @ self.axes[i]
            rotation = rotation @ about(self.axes[i], angle)
        tip = position + rotation @ self.tool.position
        jacobian = np.vstack([np.cross(directions, tip - places).T, directions.T])
        return Pose(tip, rotation @ self.tool.rotation), jacobian


def rotation_of_rpy(roll: float, pitch: float, yaw: float) -> Array:
    """Rotation (3, 3) of a URDF's rpy, radians: about the fixed x, then y, then z."""
    x, y, z = np.eye(3)
    return about(z, yaw) @ about(y, pitch) @ about(x, roll)


def about(axis: Array, angle: Any) -> Array:
    """Rotation by radians about a unit vector (3,): (3, 3), or (n, 3, 3) for angles (n,). Rodrigues."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sine, cosine = (np.asarray(f(angle))[..., None, None] for f in (np.sin, np.cos))
    return np.eye(3) + sine * cross + (1.0 - cosine) * (cross @ cross)
