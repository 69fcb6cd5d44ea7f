"""`SafetyGate`: lets a command through, holds the measured pose, or stops for good until reset by hand.

Pure state machine: whoever owns it passes the time in (seconds, monotonic) and acts on the verdicts.

    OK ──(bad or stale command, stale state)──► HOLDING ──(next good command)──► OK
    any ──(e-stop, lost heartbeat, force, measured limits)──► STOPPED ──(reset by hand)──► HOLDING

A STOP is the last verdict until the reset: nothing is let through and nothing more is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.safety.limits import ActionKind, Limits, Measured, check_command, check_measured
from valueguide.types import Float32


class GateState(IntEnum):
    """The numbers of valueguide_msgs/SafetyState."""

    OK = 0
    HOLDING = 1
    STOPPED = 2


class Kind(IntEnum):
    """The numbers of valueguide_msgs/Command."""

    MOVE = 0
    HOLD = 1
    STOP = 2


@dataclass(frozen=True)
class Watchdog:
    """Seconds. command_s: silence of the commander before a hold; also how old a command may be.

    state_s: age of the robot's state beyond which nothing moves. heartbeat_s: silence of a peer, once
    heard, that stops for good; nothing moves before all `peers` were heard.
    """

    command_s: float = 0.3
    state_s: float = 0.2
    heartbeat_s: float = 1.0
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "peers", tuple(self.peers))
        for name in ("command_s", "state_s", "heartbeat_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(mismatch("watchdog", name, "more than 0 seconds", getattr(self, name)))


@dataclass(frozen=True)
class Verdict:
    """What to send now. values: the command for MOVE; for HOLD and STOP the pose to keep, or None."""

    kind: Kind
    values: Float32 | None
    reason: str = ""


@dataclass
class SafetyGate:
    """Last before the controllers. All times in seconds of one monotonic clock."""

    limits: Limits
    kind: ActionKind
    names: Sequence[str]
    joint_names: Sequence[str] = ()
    watchdog: Watchdog = field(default_factory=Watchdog)
    state: GateState = GateState.HOLDING
    reason: str = "no command yet"
    passed: int = 0
    rejected: int = 0
    _measured: Measured | None = None
    _measured_at: float = -np.inf
    _command_at: float = -np.inf
    _sequence: int = -1
    _previous: Float32 | None = None
    _beats: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.limits.action_low) != len(self.names):
            raise ConfigError(
                mismatch(
                    "limits", "action_low", f"one per action ({len(self.names)})", len(self.limits.action_low)
                )
            )

    def activate(self) -> None:
        """Start of service: holding, and no peer heard yet."""
        self._beats = {}
        if self.state is not GateState.STOPPED:
            self.state, self.reason = GateState.HOLDING, "no command yet"

    @property
    def measured(self) -> Measured | None:
        """The last state that the robot reported."""
        return self._measured

    def on_measured(self, measured: Measured, now: float) -> Verdict | None:
        """The robot's state. A STOP when it is somewhere, or does something, that it must not."""
        self._measured, self._measured_at = measured, now
        broken = check_measured(measured, self.limits, self.joint_names)
        return self.stop(broken) if broken else None

    def on_heartbeat(self, peer: str, now: float) -> None:
        """A sign of life. From now on the silence of this peer is a stop, if it is one to watch."""
        if peer in self.watchdog.peers:
            self._beats[peer] = now

    def on_command(self, values: Any, sequence: int, age: float, now: float) -> Verdict | None:
        """One control step. age: seconds since it was issued. None while stopped.

        Out of order, stale, malformed or beyond a limit: the pose is held, with the reason.
        """
        if self.state is GateState.STOPPED:
            self.rejected += 1
            return None
        reason = self._refusal(values, sequence, age, now)
        if reason:
            self.rejected += 1
            return self._hold(reason)
        self.state, self.reason = GateState.OK, ""
        self.passed += 1
        self._command_at, self._sequence = now, sequence
        self._previous = np.asarray(values, np.float32)
        return Verdict(Kind.MOVE, self._previous)

    def on_hold(self, sequence: int, reason: str, now: float) -> Verdict | None:
        """The commander itself asks for a hold."""
        if self.state is GateState.STOPPED:
            return None
        self._command_at, self._sequence = now, max(self._sequence, sequence)
        return self._hold(reason or "commanded")

    def new_commander(self) -> None:
        """The commander restarted: its numbering may start again."""
        self._sequence = -1

    def tick(self, now: float) -> Verdict | None:
        """Watchdogs; call at 100 Hz. Returns a verdict only when something changes."""
        if self.state is GateState.STOPPED:
            return None
        for peer, beat in self._beats.items():
            if now - beat > self.watchdog.heartbeat_s:
                return self.stop(f"heartbeat: nothing from {peer} for {now - beat:.2f} s")
        if self.state is not GateState.OK:
            return None
        if now - self._measured_at > self.watchdog.state_s:
            return self._hold(f"robot state: {now - self._measured_at:.2f} s old")
        if now - self._command_at > self.watchdog.command_s:
            return self._hold(f"no command for {now - self._command_at:.2f} s")
        return None

    def stop(self, reason: str) -> Verdict | None:
        """E-stop and everything as grave: latched. None when already stopped."""
        if self.state is GateState.STOPPED:
            return None
        self.state, self.reason, self._previous = GateState.STOPPED, reason, None
        return Verdict(Kind.STOP, self._pose(), reason)

    def reset(self, now: float) -> str | None:
        """By hand only. Returns why the gate stays stopped, or None when it now holds, ready for commands."""
        if self.state is not GateState.STOPPED:
            return None
        if self._measured is None or now - self._measured_at > self.watchdog.state_s:
            return "robot state: missing or stale"
        broken = check_measured(self._measured, self.limits, self.joint_names)
        silent = [p for p, beat in self._beats.items() if now - beat > self.watchdog.heartbeat_s]
        if broken or silent:
            return broken or f"heartbeat: still nothing from {', '.join(silent)}"
        self.state, self.reason = GateState.HOLDING, "reset by hand"
        return None

    def _refusal(self, values: Any, sequence: int, age: float, now: float) -> str | None:
        if self._measured is None:
            return "robot state: none yet"
        unheard = [peer for peer in self.watchdog.peers if peer not in self._beats]
        if unheard:
            return f"heartbeat: nothing yet from {', '.join(unheard)}"
        if now - self._measured_at > self.watchdog.state_s:
            return f"robot state: {now - self._measured_at:.2f} s old"
        if sequence <= self._sequence:
            return f"command {sequence}: out of order, {self._sequence} came before"
        if not abs(age) <= self.watchdog.command_s:
            return f"command {sequence}: issued {age:.2f} s ago"
        return check_command(values, self._previous, self._measured, self.limits, self.kind, self.names)

    def _hold(self, reason: str) -> Verdict | None:
        """A HOLD when entering it; None when it already holds: the robot keeps the pose it was given."""
        entering = self.state is GateState.OK
        self.state, self.reason, self._previous = GateState.HOLDING, reason, None
        return Verdict(Kind.HOLD, self._pose(), reason) if entering else None

    def _pose(self) -> Float32 | None:
        return None if self._measured is None else self._measured.action_pose
