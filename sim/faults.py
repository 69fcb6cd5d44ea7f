"""Injectable faults of the stand-in robot: what goes wrong, when, and with which numbers.

Text form, a JSON list: `[{"kind": "freeze_camera", "camera": "front", "start": 2, "duration": 3}]`.
`start` and `duration` are seconds of simulated time since the last reset, or since the faults were set.
Chance is drawn from the episode's seed, so the same seed and faults give the same course.
"""

from __future__ import annotations

import json
import reprlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.render import CAMERAS
from valueguide.errors import ConfigError, mismatch
from valueguide.types import UInt8

ARM_JOINTS = tuple(f"joint_{i}" for i in range(6))
ACTUATORS = (*ARM_JOINTS, "gripper")
#: kind -> the fields it takes beside `start`; those in `_REQUIRED` must be given.
KINDS: dict[str, tuple[str, ...]] = {
    "freeze_camera": ("duration", "camera", "stamp"),
    "drop_images": ("duration", "camera", "probability"),
    "delay_images": ("duration", "camera", "seconds"),
    "delay_state": ("duration", "seconds"),
    "nan_state": ("duration", "part"),
    "silent_joint_states": ("duration",),
    "clock_jump": ("seconds",),
    "stuck_actuator": ("duration", "part"),
}
_REQUIRED = {"probability", "seconds", "part"}
_LONGEST = 1e6


@dataclass(frozen=True)
class Fault:
    """One fault. Which fields mean something depends on its kind, see KINDS.

    freeze_camera: the same picture again and again; stamp "advancing" (a frozen sensor behind a live
        driver) or "same" (the whole message repeats).
    drop_images: each picture is lost with `probability`.
    delay_images, delay_state: published `seconds` late; the stamp stays that of the measurement.
    nan_state: `part` (a joint, "gripper", or "hand" for the pose) is NaN.
    silent_joint_states: no joint states at all.
    clock_jump: at `start` simulated time leaps by `seconds`, which may be negative; it stays there.
    stuck_actuator: `part` (a joint or "gripper") stays where it is, whatever is commanded.
    camera: its name, or empty for all.
    """

    kind: str
    start: float = 0.0
    duration: float = _LONGEST
    camera: str = ""
    stamp: str = "advancing"
    probability: float = 0.0
    seconds: float = 0.0
    part: str = ""

    def __post_init__(self) -> None:
        low = -_LONGEST if self.kind == "clock_jump" else 0.0
        _expect(self.kind in KINDS, "kind", " or ".join(KINDS), self.kind)
        _check_number("start", self.start, 0.0, _LONGEST)
        _check_number("duration", self.duration, 0.0, _LONGEST)
        _check_number("probability", self.probability, 0.0, 1.0)
        _check_number("seconds", self.seconds, low, _LONGEST)
        _expect(self.camera in ("", *CAMERAS), "camera", f"{' or '.join(CAMERAS)}, or empty", self.camera)
        _expect(self.stamp in ("advancing", "same"), "stamp", "advancing or same", self.stamp)
        if "part" in KINDS[self.kind]:
            known = (*ACTUATORS, "hand") if self.kind == "nan_state" else ACTUATORS
            _expect(self.part in known, "part", " or ".join(known), self.part)

    def active(self, now: float) -> bool:
        """now: seconds since the schedule's start."""
        return self.start <= now < self.start + self.duration


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults of a JSON text; empty text means none. Raises ConfigError naming the fault and the field."""
    if not text.strip():
        return ()
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"faults: expected a JSON list, found {error}") from error
    if not isinstance(items, list):
        raise ConfigError(mismatch("faults", "text", "a JSON list", type(items).__name__))
    return tuple(_fault(item, f"faults[{i}]") for i, item in enumerate(items))


def _fault(item: Any, where: str) -> Fault:
    if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
        raise ConfigError(mismatch(where, "fault", 'an object with a "kind"', reprlib.repr(item)))
    kind = item["kind"]
    if kind not in KINDS:
        raise ConfigError(mismatch(where, "kind", " or ".join(KINDS), reprlib.repr(kind)))
    known = {"kind", "start", *KINDS[kind]}
    missing = _REQUIRED & known - set(item)
    if missing or set(item) - known:
        expected = ", ".join(f"{n} (required)" if n in _REQUIRED else n for n in sorted(known - {"kind"}))
        raise ConfigError(mismatch(where, f"{kind}: fields", expected, reprlib.repr(sorted(item))))
    try:
        return Fault(**item)
    except ConfigError as error:
        raise ConfigError(f"{where}: {kind}: {error}") from error


def _expect(holds: bool, what: str, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"{what}: expected {expected}, found {reprlib.repr(found)}")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(number and low <= value <= high, name, f"a number from {low:g} to {high:g}", value)


class FaultInjector:
    """Applies faults to what the robot publishes. Times are simulated seconds of any one clock."""

    def __init__(self, faults: Sequence[Fault] = (), seed: int = 0, now: float = 0.0) -> None:
        self.faults = tuple(faults)
        self.restart(seed, now)

    def restart(self, seed: int, now: float) -> None:
        """A new episode: the schedule starts again."""
        self._start = now
        self._rng = np.random.default_rng([4, seed % 2**64])
        self._frozen: dict[str, tuple[int, UInt8]] = {}
        self._leapt: set[int] = set()

    def active(self, now: float, *kinds: str) -> list[Fault]:
        """Faults in force, of these kinds or of any."""
        since = now - self._start
        return [f for f in self.faults if f.active(since) and (not kinds or f.kind in kinds)]

    def lost(self, camera: str, now: float) -> bool:
        """Whether this camera's next picture is lost. Draws, so ask once a picture."""
        drops = [f for f in self.active(now, "drop_images") if f.camera in ("", camera)]
        return any([self._rng.random() < f.probability for f in drops])

    def picture(self, camera: str, stamp: int, picture: UInt8, now: float) -> tuple[int, UInt8]:
        """(stamp, picture) to publish instead of these."""
        freezes = [f for f in self.active(now, "freeze_camera") if f.camera in ("", camera)]
        if not freezes:
            self._frozen.pop(camera, None)
            return stamp, picture
        old_stamp, picture = self._frozen.setdefault(camera, (stamp, picture))
        return (old_stamp if any(f.stamp == "same" for f in freezes) else stamp), picture

    def image_delay(self, camera: str, now: float) -> float:
        """Seconds by which this camera's pictures come late."""
        return sum(f.seconds for f in self.active(now, "delay_images") if f.camera in ("", camera))

    def state_delay(self, now: float) -> float:
        """Seconds by which joint states, pose, force and privileged state come late."""
        return sum(f.seconds for f in self.active(now, "delay_state"))

    def joints_silent(self, now: float) -> bool:
        return bool(self.active(now, "silent_joint_states"))

    def nan_parts(self, now: float) -> set[str]:
        """Joints, "gripper" and "hand" that read NaN."""
        return {f.part for f in self.active(now, "nan_state")}

    def stuck_parts(self, now: float) -> set[str]:
        """Actuators that do not move."""
        return {f.part for f in self.active(now, "stuck_actuator")}

    def clock_leap(self, now: float) -> float:
        """Seconds by which the clock leaps now; each leap is told once per episode."""
        due = [i for i, f in enumerate(self.faults) if f in self.active(now, "clock_jump")]
        leaps = sum(self.faults[i].seconds for i in due if i not in self._leapt)
        self._leapt.update(due)
        return leaps


class DelayLine[Item]:
    """Holds things back for a while and gives them out in order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Item]] = deque()

    def push(self, due: float, item: Item) -> None:
        self._waiting.append((due, item))

    def pop(self, now: float) -> Iterator[Item]:
        """What is due; nothing overtakes what was pushed before it."""
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting.popleft()[1]
