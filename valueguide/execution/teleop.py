"""`Teleop`: which human device commands, if any, and what it commands in every control period.

    policy ──(dead-man pressed | takeover service)──► human ──(dead-man released | service)──► policy
                                                        │ ▲
                                    (device silent)──► lost: holds

A device that falls silent while it commands does not hand back: the arm holds until somebody shows that
they are there, by pressing the dead-man again (and then releasing it) or through the takeover service.
A pulled plug, or a plug put back with the button up, must not set the policy in motion beside a person
who may have their hands at the arm.

Pure: `now` is in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.execution.human_input import Hands
from valueguide.types import Float32

Device = Literal["joy", "keyboard", "script"]
DEVICES: tuple[Device, ...] = ("joy", "keyboard", "script")
#: Steps that a script may be ahead of the arm.
_SCRIPT_QUEUE = 50


@dataclass(frozen=True)
class TeleopSettings:
    """What a person may ask of one robot; gripper last in all arrays (A,).

    kind: as in the robot description. low, high: of a command; for `cartesian_delta` also what a stick at
    its end asks for. action_step: largest change from one command to the next, 0: any. lead: largest
    distance of a joint target from the measured joint, 0: any. speed: 0 ... 1, share of the largest motion.
    joint_speed: rad/s of a stick at its end, for `joint_position`. grip_speed: of the gripper's way, 1/s.
    silence_s: silence of the commanding device before it counts as lost. state_s: age beyond which the
    measured pose is not built upon.
    """

    kind: Literal["cartesian_delta", "joint_position"]
    period_s: float
    low: Float32
    high: Float32
    action_step: Float32
    lead: Float32
    speed: float = 1.0
    joint_speed: float = 0.5
    grip_speed: float = 2.0
    silence_s: float = 0.5
    state_s: float = 0.2

    def __post_init__(self) -> None:
        for name in ("period_s", "speed", "joint_speed", "grip_speed", "silence_s", "state_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(mismatch("teleop", name, "more than 0", getattr(self, name)))


@dataclass(frozen=True)
class HumanStep:
    """One control period. values: float32 (A,) to run, or None to hold for `reason`."""

    values: Float32 | None
    reason: str = ""


@dataclass
class Teleop:
    """See the module. `notes` collects sentences for the log: refused messages, takeovers, losses."""

    settings: TeleopSettings
    device: Device | None = None
    lost: bool = False
    takeovers: int = 0
    refused: int = 0
    notes: list[str] = field(default_factory=list)
    _hands: Hands | None = None
    _heard: float = -np.inf
    _held: dict[str, bool] = field(default_factory=dict)
    _refusal: str = ""
    _script: deque[HumanStep] = field(default_factory=deque)
    _measured: Float32 | None = None
    _measured_at: float = -np.inf
    _commanded_grip: float = float("nan")
    _grip: float = float("nan")
    _still: Any = None
    _previous: Float32 | None = None

    @property
    def _size(self) -> int:
        return len(self.settings.low)

    # The robot.

    def on_measured(self, pose: Float32, now: float) -> None:
        """Where the robot is. pose: (A,) in action coordinates; `cartesian_delta` needs only the gripper."""
        self._measured, self._measured_at = np.asarray(pose, np.float64), now

    def on_gripper_command(self, opening: float) -> None:
        """What the gripper was last told: a grasp is kept by the command, not by the measured opening."""
        if np.isfinite(opening):
            self._commanded_grip = float(opening)

    def new_episode(self) -> None:
        """Takeovers count per episode; one that lasts counts in the new one too."""
        self.takeovers = int(self.device is not None)

    # The people.

    def on_hands(self, device: Device, hands: Hands, now: float) -> bool:
        """A message of the joystick or the keyboard. True: the e-stop is pressed (whoever commands)."""
        if hands.refused:
            self._refuse(f"{device}: {hands.refused}")
            if self.device == device:
                self._hands = None  # the last good one must not go on moving the arm
            return hands.estop
        pressed = hands.deadman and not self._held.get(device, False)
        self._held[device] = hands.deadman
        if self.device == device:
            self._on_commanding(hands, now)
        elif pressed and (self.device is None or self.lost):
            self._take(device, now)
            self._hands = hands
        elif pressed:
            self._refuse(f"{device}: {self.device} commands")
        return hands.estop

    def _on_commanding(self, hands: Hands, now: float) -> None:
        # The silence may have ended before a tick could see it.
        self.lost = self.lost or now - self._heard > self.settings.silence_s
        if hands.deadman:
            self.lost = False
        elif self.lost:
            return
        else:
            self._release("dead-man released")
            return
        self._hands, self._heard = hands, now

    def take_over(self, now: float) -> str:
        """The takeover service, on: a script commands. Returns why not, or ''."""
        if self.device not in (None, "script") and not self.lost:
            return f"{self.device} commands"
        if self.device == "script":
            self._heard, self.lost = now, False
            return ""
        self._take("script", now)
        return ""

    def hand_back(self) -> str:
        """The takeover service, off: ends a takeover by script or lost device. Returns why not, or ''."""
        if self.device in ("joy", "keyboard") and not self.lost:
            return f"{self.device} commands; hand back there"
        self._release("takeover service")
        return ""

    def on_script(self, values: Any, now: float) -> str:
        """One control step of a script; run in the order given, one in each period. Returns why not, or ''.

        values: (A,), or None for a period of holding.
        """
        reason = self._script_refusal(values)
        if reason:
            self._refuse(f"script: {reason}")
            return reason
        self._heard, self.lost = now, False
        action = None if values is None else np.asarray(values, np.float32)
        self._script.append(HumanStep(action, "script holds" if values is None else ""))
        return ""

    def _script_refusal(self, values: Any) -> str:
        if self.device != "script":
            return f"{self.device or 'the policy'} commands; call the takeover service first"
        if len(self._script) >= _SCRIPT_QUEUE:
            return f"more than {_SCRIPT_QUEUE} steps ahead"
        if values is None:
            return ""
        if len(values) != self._size:
            return f"expected {self._size} values, found {len(values)}"
        return "" if np.isfinite(np.asarray(values, np.float64)).all() else "not a finite number"

    # The command.

    def tick(self, now: float) -> HumanStep | None:
        """One control period begins: the human's step, or None while no human commands."""
        if self.device is None:
            return None
        if self._script:
            self._heard = now  # a script that is ahead of the arm is not silent
        if not self.lost and now - self._heard > self.settings.silence_s:
            self.lost = True
            self.notes.append(f"{self.device}: silent for {self.settings.silence_s} s, holding")
        step = self._step(now)
        self._previous = step.values
        if step.values is None:
            self._still = None
        else:
            self._grip = float(step.values[-1])
        return step

    def _step(self, now: float) -> HumanStep:
        if self.lost:
            return HumanStep(None, f"{self.device}: silent; press the dead-man again or call takeover false")
        if self._script:
            step = self._script.popleft()
            self._still = None if step.values is None else np.asarray(step.values[:-1], np.float64)
            return step
        return self._from_hands(now)

    def _from_hands(self, now: float) -> HumanStep:
        # A script that sends nothing keeps the arm where it is.
        hands = Hands(np.zeros(self._size - 1, np.float32)) if self.device == "script" else self._hands
        if hands is None:
            return HumanStep(None, f"{self.device}: its last message was refused")
        measured = self._measured if now - self._measured_at <= self.settings.state_s else None
        if self.settings.kind == "joint_position":
            if measured is None or not np.isfinite(measured[:-1]).all():
                return HumanStep(None, "robot state: missing, stale or not finite")
            motion = self._joint_targets(hands.motion, measured[:-1])
        else:
            motion = self._cartesian(hands.motion)
        grip = self._next_grip(hands.grip, measured)
        if not np.isfinite(grip):
            return HumanStep(None, "gripper: neither commanded nor measured yet")
        return HumanStep(self._limited(np.append(motion, grip)))

    def _cartesian(self, motion: Float32) -> Any:
        largest = np.where(motion > 0, self.settings.high[:-1], -np.asarray(self.settings.low[:-1]))
        return self.settings.speed * largest * motion

    def _joint_targets(self, motion: Float32, measured: Any) -> Any:
        """Measured pose plus axes. A joint whose axis rests keeps its target: it would sag step by step."""
        reach = self.settings.joint_speed * self.settings.speed * self.settings.period_s
        lead = _unlimited(self.settings.lead[:-1])
        most = np.minimum(np.minimum(reach, _unlimited(self.settings.action_step[:-1])), lead)
        still = np.full(self._size - 1, np.nan) if self._still is None else self._still
        # Pushed further from its target than the gate allows, a joint stays where it was pushed to.
        still = np.where(np.abs(still - measured) <= lead, still, measured)
        self._still = np.where(motion == 0, still, np.nan)
        return np.where(motion == 0, still, measured + most * motion)

    def _next_grip(self, direction: int, measured: Any) -> float:
        known = [self._grip, self._commanded_grip, np.nan if measured is None else measured[-1]]
        grip = next((value for value in known if np.isfinite(value)), np.nan)
        grip += direction * self.settings.grip_speed * self.settings.period_s
        return float(np.clip(grip, self.settings.low[-1], self.settings.high[-1]))

    def _limited(self, values: Any) -> Float32:
        """Within the limits and a step of the last command: a stick may be thrown from end to end."""
        if self._previous is not None:
            step = _unlimited(self.settings.action_step)
            values = np.clip(values, self._previous - step, self._previous + step)
        return np.clip(values, self.settings.low, self.settings.high).astype(np.float32)

    # Who commands.

    def _take(self, device: Device, now: float) -> None:
        # From one human to another is still the same takeover.
        self.takeovers += self.device is None
        self.notes.append(f"{device} takes over" + (f" from {self.device}" if self.device else ""))
        self.device, self.lost, self._heard = device, False, now
        self._forget()

    def _release(self, why: str) -> None:
        if self.device is not None:
            self.notes.append(f"{self.device} hands back: {why}")
        self.device, self.lost = None, False
        self._forget()

    def _forget(self) -> None:
        self._hands, self._still, self._previous, self._grip = None, None, None, float("nan")
        self._script.clear()

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        if reason != self._refusal:  # a broken device repeats itself
            self.notes.append(f"refused: {reason}")
        self._refusal = reason


def _unlimited(limits: Any) -> Any:
    """Limits of which 0 means none."""
    array = np.asarray(limits, np.float64)
    return np.where(array > 0, array, np.inf)
