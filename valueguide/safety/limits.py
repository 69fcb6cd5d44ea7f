"""What a command and a measurement must satisfy. Nothing is repaired: a violation is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Float32

ActionKind = Literal["cartesian_delta", "joint_position"]
KINDS: tuple[ActionKind, ...] = ("cartesian_delta", "joint_position")
#: Rounding of float32 between policy and gate; far below what any arm can resolve.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Limits:
    """Bounds of one robot; empty means unchecked. Radians, metres, seconds, newtons; the robot's base frame.

    action_low, action_high: (A,) of the command itself. For `cartesian_delta` these are step limits.
    action_step: (A,) largest change from one command to the next; 0 leaves a dimension unchecked.
    lead: (A,) for `joint_position`: largest distance of a command from the measured joints.
    joint_low, joint_high: (J,) where measured joints may be; outside by `joint_margin` is a stop.
    joint_velocity: (J,) largest measured speed.
    workspace_low, workspace_high: (3,) where the hand may be, and where a Cartesian step may send it.
    force: largest measured contact force.
    """

    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_step: tuple[float, ...] = ()
    lead: tuple[float, ...] = ()
    joint_low: tuple[float, ...] = ()
    joint_high: tuple[float, ...] = ()
    joint_margin: float = 0.05
    joint_velocity: tuple[float, ...] = ()
    workspace_low: tuple[float, ...] = ()
    workspace_high: tuple[float, ...] = ()
    force: float = float("inf")

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(float(v) for v in value))
            if not np.all(np.isfinite(value)) and name != "force":
                raise ConfigError(mismatch("limits", name, "finite numbers", value))
        for what in ("action", "joint", "workspace"):
            low, high = getattr(self, f"{what}_low"), getattr(self, f"{what}_high")
            if len(low) != len(high) or any(a > b for a, b in zip(low, high, strict=True)):
                raise ConfigError(
                    mismatch("limits", f"{what}_low and {what}_high", "as many, low <= high", (low, high))
                )
        for what in ("action_step", "lead"):
            if getattr(self, what) and len(getattr(self, what)) != len(self.action_low):
                raise ConfigError(
                    mismatch("limits", what, f"{len(self.action_low)} numbers", getattr(self, what))
                )
        if self.workspace_low and len(self.workspace_low) != 3:
            raise ConfigError(mismatch("limits", "workspace_low", "x, y, z", self.workspace_low))
        if not self.force > 0:
            raise ConfigError(mismatch("limits", "force", "more than 0 newtons", self.force))


@dataclass(frozen=True)
class Measured:
    """What the robot reports. joints, velocities: (J,) or empty; position: (3,) of the hand, or None.

    action_pose: (A,) where a `joint_position` robot is now, in action coordinates: what a hold commands.
    force: newtons, NaN where it is not measured.
    """

    joints: Float32
    velocities: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    position: Float32 | None = None
    action_pose: Float32 | None = None
    force: float = float("nan")


def check_command(
    values: Any,
    previous: Float32 | None,
    measured: Measured,
    limits: Limits,
    kind: ActionKind,
    names: Sequence[str],
) -> str | None:
    """Why this command must not run, or None. previous: the last one let through, or None after a hold."""
    action = np.asarray(values, np.float64)
    if action.shape != (len(names),):
        return f"command: expected {len(names)} values ({', '.join(names)}), found {action.size}"
    if not np.isfinite(action).all():
        return f"command {names[int(np.argmin(np.isfinite(action)))]}: not a finite number"
    outside = _outside(action, limits.action_low, limits.action_high, names, "command")
    if outside:
        return outside
    if limits.action_step and previous is not None:
        step, allowed = np.abs(action - previous), np.array(limits.action_step)
        over = (allowed > 0) & (step > allowed + _ROUNDING)
        if over.any():
            i = int(np.argmax(over))
            return f"command {names[i]}: step of {step[i]:.4g} exceeds {allowed[i]:.4g}"
    if kind == "joint_position" and limits.lead and measured.action_pose is not None:
        lead, allowed = np.abs(action - measured.action_pose), np.array(limits.lead)
        over = (allowed > 0) & (lead > allowed + _ROUNDING)
        if over.any():
            i = int(np.argmax(over))
            return f"command {names[i]}: {lead[i]:.4g} away from the measured pose, at most {allowed[i]:.4g}"
    if kind == "cartesian_delta" and limits.workspace_low:
        if measured.position is None:
            return "workspace: the hand's position is unknown"
        goal = np.asarray(measured.position, np.float64) + action[:3]
        return _outside(goal, limits.workspace_low, limits.workspace_high, ("x", "y", "z"), "workspace")
    return None


def check_measured(measured: Measured, limits: Limits, joint_names: Sequence[str]) -> str | None:
    """Why the arm must stop for what it is measured to do, or None."""
    numbers = [measured.joints, measured.velocities]
    numbers += [part for part in (measured.position, measured.action_pose) if part is not None]
    if not all(np.isfinite(part).all() for part in numbers):
        return "measured state: not finite"
    if limits.joint_low:
        if len(measured.joints) != len(limits.joint_low):
            return f"measured joints: expected {len(limits.joint_low)}, found {len(measured.joints)}"
        low, high = np.array(limits.joint_low), np.array(limits.joint_high)
        margin = limits.joint_margin
        outside = _outside(measured.joints, low - margin, high + margin, joint_names, "measured joint")
        if outside:
            return outside
    if limits.joint_velocity and measured.velocities.size:
        over = np.abs(measured.velocities) > np.array(limits.joint_velocity)
        if over.any():
            i = int(np.argmax(over))
            speed, allowed = measured.velocities[i], limits.joint_velocity[i]
            return f"joint {joint_names[i]}: speed {speed:.3g} rad/s exceeds {allowed:.3g}"
    if limits.workspace_low and measured.position is not None:
        outside = _outside(
            measured.position,
            limits.workspace_low,
            limits.workspace_high,
            ("x", "y", "z"),
            "measured position",
        )
        if outside:
            return outside
    if measured.force > limits.force:
        return f"contact force: {measured.force:.1f} N exceeds {limits.force:.1f} N"
    return None


def _outside(values: Any, low: Any, high: Any, names: Sequence[str], what: str) -> str | None:
    values, low, high = (np.asarray(v, np.float64) for v in (values, low, high))
    bad = (values < low - _ROUNDING) | (values > high + _ROUNDING)
    if not bad.any():
        return None
    i = int(np.argmax(bad))
    return f"{what} {names[i]}: {values[i]:.4g} is outside {low[i]:.4g} to {high[i]:.4g}"
