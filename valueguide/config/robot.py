"""The description of a robot: topics, names, rates, limits, staleness. One YAML in configs/robots/ each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import draccus
import numpy as np
import yaml

from valueguide.errors import ConfigError, mismatch
from valueguide.execution.splice import increments
from valueguide.safety.gate import Watchdog
from valueguide.safety.limits import KINDS, ActionKind, Limits
from valueguide.types import Float32

ROBOTS = Path(__file__).resolve().parents[2] / "configs" / "robots"
_FIELDS = ("position", "velocity", "effort")
_POSE = ("x", "y", "z", "yaw")


@dataclass(frozen=True)
class ActionSpec:
    """What a policy's action means.

    kind: `cartesian_delta` (metres and radians to add to the hand's pose in one control period, last
    dimension the gripper's opening, 0 closed … 1 open), or `joint_position` (radians, gripper last).
    """

    kind: ActionKind
    names: list[str]


@dataclass(frozen=True)
class Joints:
    """sensor_msgs/JointState. names: the arm's joints in order. gripper: its joint, or empty.

    gripper_closed, gripper_open: the gripper joint's position in these states, for the scale 0 … 1.
    """

    topic: str = "joint_states"
    names: list[str] = field(default_factory=list)
    gripper: str = ""
    gripper_closed: float = 0.0
    gripper_open: float = 1.0


@dataclass(frozen=True)
class Camera:
    """kind: `raw` (sensor_msgs/Image, rgb8 or bgr8) or `compressed` (CompressedImage, JPEG or PNG).

    width, height: what the policy is given, in pixels; other sizes are resized. 0: as published.
    """

    topic: str
    kind: Literal["raw", "compressed"] = "raw"
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Output:
    """Where the gate sends commands.

    kind: `command` (valueguide_msgs/Command, for our own drivers) or `joint_trajectory`
    (trajectory_msgs/JointTrajectory, for ros2_control), the gripper then going to `gripper_topic` as a
    trajectory of its own joint.
    """

    topic: str = "command"
    kind: Literal["command", "joint_trajectory"] = "command"
    gripper_topic: str = ""


@dataclass(frozen=True)
class Sync:
    """tolerance_s: how far apart the stamps of one observation's parts may be. stale_s: how old it may be."""

    tolerance_s: float = 0.06
    stale_s: float = 0.5


@dataclass(frozen=True)
class RobotConfig:
    """One robot; see docs/robot.md and the examples in configs/robots/.

    rate_hz: control steps per second, the rate the policy was trained at.
    state: what the policy calls observation.state, each `position.<joint>`, `velocity.<joint>`,
    `effort.<joint>`, `pose.x|y|z|yaw`, `gripper` (0 … 1, measured) or `gripper_command` (0 … 1, last sent).
    pose_topic: geometry_msgs/PoseStamped of the hand in `frame`; wrench_topic: geometry_msgs/WrenchStamped.
    environment_state_topic: std_msgs/Float32MultiArray, simulations only.
    yaw_offset: added to the yaw (about the base's vertical) of pose_topic's orientation, radians.
    """

    name: str
    rate_hz: float
    action: ActionSpec
    limits: Limits
    state: list[str]
    frame: str = "base_link"
    joints: Joints = field(default_factory=Joints)
    pose_topic: str = ""
    wrench_topic: str = ""
    environment_state_topic: str = ""
    yaw_offset: float = 0.0
    cameras: dict[str, Camera] = field(default_factory=dict)
    output: Output = field(default_factory=Output)
    sync: Sync = field(default_factory=Sync)
    watchdog: Watchdog = field(default_factory=Watchdog)
    time_limit_s: float = 60.0

    def __post_init__(self) -> None:
        where = f"robot {self.name}"
        if not self.rate_hz > 0:
            raise ConfigError(mismatch(where, "rate_hz", "more than 0", self.rate_hz))
        if self.action.kind not in KINDS:
            raise ConfigError(mismatch(where, "action.kind", " or ".join(KINDS), self.action.kind))
        if len(self.limits.action_low) != len(self.action.names):
            raise ConfigError(
                mismatch(
                    where,
                    "limits.action_low",
                    f"{len(self.action.names)} numbers, one per action",
                    len(self.limits.action_low),
                )
            )
        if self.limits.joint_low and len(self.limits.joint_low) != len(self.joints.names):
            raise ConfigError(
                mismatch(
                    where,
                    "limits.joint_low",
                    f"{len(self.joints.names)} numbers, one per joint",
                    len(self.limits.joint_low),
                )
            )
        for entry in self.state:
            self._check_entry(where, entry)

    @property
    def increments(self) -> Float32 | None:
        """Limits of what adds up, float32 (2, A), for `execution.splice`; None for positions."""
        if self.action.kind != "cartesian_delta":
            return None
        low, high = (np.array(part, np.float32) for part in (self.limits.action_low, self.limits.action_high))
        return increments(low, high, kept=(len(low) - 1,))

    def _check_entry(self, where: str, entry: str) -> None:
        kind, _, name = entry.partition(".")
        known = {*self.joints.names, self.joints.gripper} - {""}
        if kind == "pose" and name in _POSE:
            if not self.pose_topic:
                raise ConfigError(f"{where}: state {entry}: expected a pose_topic, found none")
        elif kind in _FIELDS:
            if name not in known:
                raise ConfigError(mismatch(where, f"state {entry}", f"a joint of {sorted(known)}", name))
        elif entry not in ("gripper", "gripper_command"):
            expected = (
                "position.JOINT, velocity.JOINT, effort.JOINT, pose.x|y|z|yaw, gripper, gripper_command"
            )
            raise ConfigError(mismatch(where, "state", expected, entry))


def load_robot(name_or_path: str) -> RobotConfig:
    """`configs/robots/<name>.yaml`, or any path. Raises ConfigError naming the file and the field."""
    path = Path(name_or_path)
    if not path.suffix:
        path = ROBOTS / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in ROBOTS.glob("*.yaml")))
        raise ConfigError(
            f"robot {name_or_path}: expected one of {known}, or a YAML file; found none at {path}"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, found {error}") from error
    return decode_robot(content, str(path))


def decode_robot(content: Any, where: str) -> RobotConfig:
    """A parsed YAML as a RobotConfig. Raises ConfigError naming `where` and the field."""
    if not isinstance(content, dict):
        raise ConfigError(mismatch(where, "content", "a mapping", type(content).__name__))
    try:
        return draccus.decode(RobotConfig, content)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:  # draccus raises several kinds; all of them mean a wrong file
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
