"""`ObservationBuilder`: messages of one robot in, synchronised observations out; live or from a bag."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError
from valueguide.execution.sync import Match, ObservationSync, StaleError
from valueguide.ros.messages import JointReader, image_from, position_from, stamp_ns, yaw_from
from valueguide.safety.gate import Kind
from valueguide.types import Float32, Observation

#: Roles of topics. Cameras are `camera/<name>`.
JOINTS, POSE, PRIVILEGED, COMMAND = "joints", "pose", "environment_state", "command"
#: An arm that moved this much (radians, any joint) must have changed the picture of a live camera.
_MOVED = 0.05


def observation_topics(robot: RobotConfig, privileged: bool = False) -> dict[str, tuple[str, str]]:
    """Role -> (topic, message type) of everything an observation is made of."""
    topics = {
        f"camera/{name}": (
            camera.topic,
            "sensor_msgs/msg/CompressedImage" if camera.kind == "compressed" else "sensor_msgs/msg/Image",
        )
        for name, camera in robot.cameras.items()
    }
    topics[JOINTS] = (robot.joints.topic, "sensor_msgs/msg/JointState")
    if robot.pose_topic:
        topics[POSE] = (robot.pose_topic, "geometry_msgs/msg/PoseStamped")
    if privileged:
        topics[PRIVILEGED] = (robot.environment_state_topic, "std_msgs/msg/Float32MultiArray")
    return topics


class ObservationBuilder:
    """Not thread-safe: the owner locks.

    cameras: which of the robot's cameras to wait for; None: all. privileged: also the simulator's state.
    frozen_s: a camera that shows the same picture for this long while the arm moves counts as dead; 0: never.
    """

    def __init__(
        self,
        robot: RobotConfig,
        cameras: tuple[str, ...] | None = None,
        privileged: bool = False,
        frozen_s: float = 1.0,
    ) -> None:
        self._robot = robot
        self._cameras = tuple(robot.cameras) if cameras is None else cameras
        unknown = set(self._cameras) - set(robot.cameras)
        if unknown:
            raise DataError(
                f"robot {robot.name}: cameras: expected {sorted(unknown)}, which the policy or critic sees, "
                f"found {sorted(robot.cameras) or 'none'}"
            )
        self._privileged = privileged
        sources = [*(f"camera/{name}" for name in self._cameras), JOINTS]
        sources += [POSE] if robot.pose_topic else []
        self._sync = ObservationSync(
            sources,
            round(robot.sync.tolerance_s * 1e9),
            # The privileged state carries no stamp: what came last is what there is.
            as_of=(COMMAND, PRIVILEGED),
            depth=128,
        )
        self._reader = JointReader(robot)
        self._frozen_ns = round(frozen_s * 1e9)
        self._pictures: dict[str, tuple[int, int, Float32]] = {}

    def clear(self) -> None:
        """Forget everything received, e.g. when the simulated clock starts anew."""
        self._sync.clear()
        self._pictures.clear()

    def push(self, role: str, message: Any, received_ns: int = 0) -> None:
        """A message. received_ns: stands in for the stamp of messages that have none."""
        if role == COMMAND:
            if message.kind == Kind.MOVE and len(message.values):
                self._sync.push(COMMAND, stamp_ns(message), float(message.values[-1]))
        elif role == PRIVILEGED:
            self._sync.push(PRIVILEGED, received_ns, np.asarray(message.data, np.float32))
        else:
            self._sync.push(role, stamp_ns(message), message)

    def observe(self, task: str, not_before: int | None = None, not_after: int | None = None) -> Observation:
        """The newest consistent observation, stamped with its oldest part.

        Raises StaleError naming a missing, old or frozen source; DataError for a malformed message.
        """
        match = self._sync.match(not_before, not_after)
        self._check_frozen(match)
        images = {
            name: image_from(match.values[f"camera/{name}"], self._robot.cameras[name], f"camera {name}")
            for name in self._cameras
        }
        privileged = match.values[PRIVILEGED] if self._privileged else None
        if self._privileged and privileged is None:
            raise StaleError(f"observation: nothing received from {self._robot.environment_state_topic}")
        state = self._state(match.values)
        if not np.isfinite(state).all():
            names = [n for n, v in zip(self._robot.state, state, strict=True) if not np.isfinite(v)]
            raise DataError(
                f"observation: {', '.join(names)}: expected finite numbers, found NaN or infinity"
            )
        return Observation(images, state, task, match.stamp, privileged)

    def _state(self, values: Mapping[str, Any]) -> Float32:
        return np.array([self._entry(name, values) for name in self._robot.state], np.float32)

    def _entry(self, name: str, values: Mapping[str, Any]) -> float:
        kind, _, rest = name.partition(".")
        joints = values[JOINTS]
        if kind == "pose":
            if rest == "yaw":
                return yaw_from(values[POSE]) + self._robot.yaw_offset
            return float(position_from(values[POSE])["xyz".index(rest)])
        if name == "gripper":
            return self._reader.opening(joints)
        if name == "gripper_command":
            # Before the first command the gripper is asked for nothing but to stay.
            commanded = values[COMMAND]
            return self._reader.opening(joints) if commanded is None else commanded
        return float(self._reader.values(joints, kind, [rest])[0])

    def _check_frozen(self, match: Match) -> None:
        if not self._frozen_ns:
            return
        joints = self._reader.values(match.values[JOINTS], "position", self._robot.joints.names)
        for name in self._cameras:
            message = match.values[f"camera/{name}"]
            stamp, print_ = stamp_ns(message), zlib.crc32(bytes(message.data))
            known = self._pictures.get(name)
            if known is None or known[0] != print_ or stamp < known[1]:
                self._pictures[name] = (print_, stamp, joints)
            elif stamp - known[1] > self._frozen_ns and np.abs(joints - known[2]).max() > _MOVED:
                seconds = (stamp - known[1]) / 1e9
                raise StaleError(
                    f"observation: camera {name} shows the same picture for {seconds:.1f} s of motion"
                )
