"""ROS messages to arrays and core types. Duck-typed: live messages and those from a bag look alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from valueguide.config.robot import Camera, RobotConfig
from valueguide.errors import DataError, mismatch
from valueguide.types import ActionChunk, Candidates, Decision, Float32, Scores, UInt8

_CHANNELS = {"rgb8": 3, "bgr8": 3}


def stamp_ns(message: Any) -> int:
    """Nanoseconds of the header's stamp."""
    stamp = message.header.stamp
    seconds = stamp.sec
    nanoseconds = getattr(stamp, "nanosec", None)
    return int(seconds) * 1_000_000_000 + int(nanoseconds if nanoseconds is not None else stamp.nanosecond)


def image_from(message: Any, camera: Camera, where: str) -> UInt8:
    """sensor_msgs/Image or CompressedImage -> uint8 (height, width, 3) RGB at the camera's size.

    Raises DataError naming `where` for another encoding, a wrong length, or a picture that does not decode.
    """
    image = _compressed(message, where) if camera.kind == "compressed" else _raw(message, where)
    width, height = camera.width or image.shape[1], camera.height or image.shape[0]
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image


def _raw(message: Any, where: str) -> UInt8:
    if message.encoding not in _CHANNELS:
        raise DataError(mismatch(where, "encoding", " or ".join(_CHANNELS), repr(message.encoding)))
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if height < 1 or width < 1 or step < 3 * width or data.size != height * step:
        raise DataError(
            mismatch(where, "picture", f"{height} rows of step {step} >= {3 * width}", f"{data.size} bytes")
        )
    image = data.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return np.ascontiguousarray(image[:, :, ::-1] if message.encoding == "bgr8" else image)


def _compressed(message: Any, where: str) -> UInt8:
    data = np.frombuffer(message.data, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise DataError(mismatch(where, "picture", "JPEG or PNG", f"{data.size} bytes that do not decode"))
    return np.ascontiguousarray(image[:, :, ::-1])


class JointReader:
    """Picks joints by name out of sensor_msgs/JointState, whose order is free."""

    def __init__(self, robot: RobotConfig) -> None:
        self._joints = robot.joints

    def values(self, message: Any, field: str, names: Sequence[str]) -> Float32:
        """float32 (len(names),) of `position`, `velocity` or `effort`; DataError for a missing joint."""
        places = {name: i for i, name in enumerate(message.name)}
        numbers = getattr(message, field)
        missing = [name for name in names if name not in places or places[name] >= len(numbers)]
        if missing:
            raise DataError(
                mismatch(
                    self._joints.topic, f"{field} of", ", ".join(missing), ", ".join(message.name) or "none"
                )
            )
        return np.array([numbers[places[name]] for name in names], np.float32)

    def opening(self, message: Any) -> float:
        """The gripper, 0 closed … 1 open; NaN for a robot without one."""
        if not self._joints.gripper:
            return float("nan")
        self.values(message, "position", [self._joints.gripper])  # says when it is missing
        # In double precision, so that a recorded opening survives the way back to a joint position.
        position = float(message.position[list(message.name).index(self._joints.gripper)])
        span = self._joints.gripper_open - self._joints.gripper_closed
        return (position - self._joints.gripper_closed) / span


def position_from(message: Any) -> Float32:
    """geometry_msgs/PoseStamped -> float32 (3,), metres."""
    point = message.pose.position
    return np.array([point.x, point.y, point.z], np.float32)


def yaw_from(message: Any) -> float:
    """geometry_msgs/PoseStamped -> rotation about the base's vertical (yaw of roll, pitch, yaw), rad."""
    q = message.pose.orientation
    return float(np.arctan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z)))


def force_from(message: Any) -> float:
    """geometry_msgs/WrenchStamped -> newtons."""
    force = message.wrench.force
    return float(np.sqrt(force.x**2 + force.y**2 + force.z**2))


def array_from(flat: Any, *shape: int, what: str) -> Float32:
    """A flat float field as float32 of this shape. Raises DataError naming `what`."""
    values = np.asarray(flat, np.float32)
    if any(n < 0 for n in shape) or values.size != int(np.prod(shape)):
        raise DataError(mismatch(what, "numbers", f"{shape} = {int(np.prod(shape))}", values.size))
    return values.reshape(shape)


def candidates_from(message: Any) -> Candidates:
    """valueguide_msgs/Candidates."""
    shape = (message.k, message.horizon, message.action_dim)
    return Candidates(array_from(message.actions, *shape, what="candidates"))


def chunk_from(message: Any) -> ActionChunk:
    """valueguide_msgs/ActionChunk; executed_length is its `end`."""
    actions = array_from(message.actions, message.horizon, message.action_dim, what="chunk")
    return ActionChunk(actions, int(message.chunk_id), int(message.end), stamp_ns(message))


def decision_from(message: Any) -> Decision:
    """valueguide_msgs/Decision."""
    found = message.scores
    scored = found.members > 0
    return Decision(
        index=int(message.index),
        reason=str(message.reason),
        preferred=int(message.preferred),
        values=array_from(found.values, found.k, what="decision values") if scored else None,
        scores=Scores(array_from(found.q, found.members, found.k, what="decision scores"))
        if scored
        else None,
        seed=int(message.seed),
        latency_s=float(message.latency_s),
    )
