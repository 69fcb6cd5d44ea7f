"""What a person does with sticks, buttons or keys, as motion per action dimension. Pure; no ROS, no clock.

The keyboard program sends the same axes and buttons as a gamepad, in the default layout below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Float32

#: Layout of an Xbox-style gamepad as ROS 2's joy_node numbers it (left and up are positive).
#: Action dimension i is driven by axis AXIS_ORDER[i]: x by the left stick's up, y by its left, z by the
#: right stick's up, yaw by its left, and two more by the cross.
AXIS_ORDER = (1, 0, 4, 3, 7, 6)
DEADMAN, ESTOP, GRIP_CLOSE, GRIP_OPEN = 4, 1, 0, 3
AXES, BUTTONS = 8, 11
#: Beyond this a driver reports raw counts rather than -1 ... 1.
_AXIS_LIMIT = 1.05


@dataclass(frozen=True)
class Axis:
    """Axis `index` drives action dimension `dimension`; sign is 1 or -1."""

    dimension: int
    index: int
    sign: float = 1.0


@dataclass(frozen=True)
class Hands:
    """One message of a device. motion: (A - 1,) in -1 ... 1, all dimensions but the gripper.

    grip: 1 opens, -1 closes, 0 leaves. refused: why the message cannot be trusted with motion; empty: it can.
    """

    motion: Float32
    grip: int = 0
    deadman: bool = False
    estop: bool = False
    refused: str = ""


def default_axes(names: Sequence[str]) -> tuple[Axis, ...]:
    """The first dimensions of `names` (gripper last) on AXIS_ORDER; those beyond stay still."""
    return tuple(Axis(i, index) for i, (index, _) in enumerate(zip(AXIS_ORDER, names[:-1], strict=False)))


def parse_axes(text: str, names: Sequence[str]) -> tuple[Axis, ...]:
    """ "dx=+1 dy=-0" -> axis 1 drives dx, axis 0 drives dy backwards. Empty: `default_axes`.

    Raises ConfigError naming the entry that is not NAME=SIGN INDEX or names no action dimension.
    """
    if not text.strip():
        return default_axes(names)
    axes = []
    for entry in text.split():
        match = re.fullmatch(r"([^=]+)=([+-]?)(\d{1,3})", entry)
        if match is None:
            raise ConfigError(
                mismatch("teleop", f"axes {entry!r}", "NAME=[+-]INDEX, for example dx=+1", entry)
            )
        name, sign, index = match.groups()
        if name not in names[:-1]:
            raise ConfigError(mismatch("teleop", f"axes {entry!r}", f"one of {', '.join(names[:-1])}", name))
        axes.append(Axis(list(names).index(name), int(index), -1.0 if sign == "-" else 1.0))
    if len({axis.dimension for axis in axes}) < len(axes):
        raise ConfigError(mismatch("teleop", "axes", "each action dimension at most once", text))
    return tuple(axes)


@dataclass(frozen=True)
class Mapping:
    """Reads sensor_msgs/Joy. size: A, gripper included. dead_zone: share of a stick's way without effect."""

    size: int
    axes: tuple[Axis, ...] = field(default_factory=tuple)
    deadman: int = DEADMAN
    estop: int = ESTOP
    grip_close: int = GRIP_CLOSE
    grip_open: int = GRIP_OPEN
    dead_zone: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.dead_zone < 1:
            raise ConfigError(mismatch("teleop", "dead_zone", "0 to below 1", self.dead_zone))
        buttons = (self.deadman, self.estop, self.grip_close, self.grip_open)
        if min(buttons) < 0 or len(set(buttons)) < len(buttons):
            raise ConfigError(
                mismatch(
                    "teleop", "dead-man, e-stop, close and open buttons", "four different numbers", buttons
                )
            )

    def read(self, axes: Sequence[float], buttons: Sequence[int]) -> Hands:
        """One message. The e-stop counts even where the rest of the message is refused."""
        pressed = [bool(b) for b in buttons]
        estop = self.estop < len(pressed) and pressed[self.estop]
        refused = self._refusal(axes, pressed)
        motion = np.zeros(self.size - 1, np.float32)
        if refused:
            return Hands(motion, estop=estop, refused=refused)
        for axis in self.axes:
            motion[axis.dimension] = axis.sign * self._stick(axes[axis.index])
        grip = int(pressed[self.grip_open]) - int(pressed[self.grip_close])
        return Hands(motion, grip, pressed[self.deadman], estop)

    def _refusal(self, axes: Sequence[float], pressed: Sequence[bool]) -> str:
        need = 1 + max(self.deadman, self.estop, self.grip_close, self.grip_open)
        if len(pressed) < need:
            return f"buttons: expected at least {need}, found {len(pressed)}"
        need = 1 + max((axis.index for axis in self.axes), default=-1)
        if len(axes) < need:
            return f"axes: expected at least {need}, found {len(axes)}"
        for axis in self.axes:
            # Written so that NaN is refused too.
            if not abs(axes[axis.index]) <= _AXIS_LIMIT:
                return f"axis {axis.index}: expected -1 to 1, found {axes[axis.index]}"
        return ""

    def _stick(self, value: float) -> float:
        beyond = max(0.0, min(abs(value), 1.0) - self.dead_zone) / (1 - self.dead_zone)
        return beyond if value > 0 else -beyond
