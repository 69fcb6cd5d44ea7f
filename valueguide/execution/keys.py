"""`Keys`: keys of a terminal as a gamepad's axes and buttons (the default layout of human_input). Pure.

A terminal reports no release, only repeats: a key counts as held for `hold_s` after it was last seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from valueguide.execution.human_input import AXES, AXIS_ORDER, BUTTONS, DEADMAN, ESTOP, GRIP_CLOSE, GRIP_OPEN

HELP = """\
  t      take over, and hand back        x      emergency stop
  w s    forward, back                   r f    up, down
  a d    left, right                     q e    turn left, turn right
  i k    fifth axis   j l   sixth axis   space  close the gripper, open it
  + -    faster, slower                  ?      this help       Ctrl-C  leave
  Arrow keys do what w a s d do. Motion ends a moment after the last key press.
  While you command and leave, the arm holds: start again and press t twice to hand back."""

_X, _Y, _Z, _YAW, _FIFTH, _SIXTH = AXIS_ORDER
_MOVES = {
    "w": (_X, 1.0), "s": (_X, -1.0), "a": (_Y, 1.0), "d": (_Y, -1.0), "r": (_Z, 1.0), "f": (_Z, -1.0),
    "q": (_YAW, 1.0), "e": (_YAW, -1.0), "i": (_FIFTH, 1.0), "k": (_FIFTH, -1.0), "j": (_SIXTH, 1.0),
    "l": (_SIXTH, -1.0),
}  # fmt: skip
_ARROWS = {"A": "w", "B": "s", "C": "d", "D": "a"}
_ESCAPE = re.compile(r"\x1b[\[O][0-9;]*([A-Za-z~])")
_SPEEDS = (0.1, 0.25, 0.5, 1.0)
#: How long the e-stop button stays pressed, and how long teleop may take to accept a takeover.
_ESTOP_S, _ANSWER_S = 0.5, 1.5


@dataclass
class Keys:
    """State of the keyboard. `commanding`: this person asks to command. `notice`: the last thing to say."""

    hold_s: float = 0.25
    commanding: bool = False
    speed: int = 2
    grip: int = 0
    help_wanted: bool = False
    notice: str = ""
    _until: dict[int, tuple[float, float]] = field(default_factory=dict)
    _estop_until: float = float("-inf")
    _asked_at: float = float("-inf")
    _accepted: bool = False

    def feed(self, text: str, now: float) -> None:
        """What was typed since the last call. now: monotonic seconds."""
        for key in _ESCAPE.sub(lambda match: _ARROWS.get(match.group(1), ""), text):
            self._press(key, now)

    def _press(self, key: str, now: float) -> None:
        if key in _MOVES:
            axis, direction = _MOVES[key]
            self._until[axis] = (direction, now + self.hold_s)
            if not self.commanding:
                self.notice = "the policy commands: press t to take over"
        elif key == "t":
            self.commanding, self.notice = not self.commanding, ""
            self._asked_at, self._accepted = now, False
            self._let_go()
        elif key == "x":
            self._estop_until, self.notice = now + _ESTOP_S, "emergency stop sent"
            self._let_go()
        elif key == " " and self.commanding:
            # Close first: opening by mistake drops what is held.
            self.grip = 1 if self.grip == -1 else -1
        elif key in "+=":
            self.speed = min(self.speed + 1, len(_SPEEDS) - 1)
        elif key == "-":
            self.speed = max(self.speed - 1, 0)
        elif key == "?":
            self.help_wanted = True
        elif key.isprintable():
            self.notice = f"no such key: {key!r}; ? shows the keys" + (
                ", caps lock?" if key.isupper() else ""
            )

    def _let_go(self) -> None:
        self._until.clear()
        self.grip = 0

    def on_intervention(self, active: bool, device: str, now: float) -> None:
        """What teleop says; call it often, it also notices that no answer comes."""
        mine = active and device == "keyboard"
        self._accepted = self._accepted or (self.commanding and mine)
        refused = self.commanding and not mine and (self._accepted or now - self._asked_at > _ANSWER_S)
        if refused:
            self.commanding = False
            self._let_go()
            self.notice = f"not in command: {device} commands" if active else "not in command"

    def joy(self, now: float) -> tuple[list[float], list[int]]:
        """The axes and buttons of sensor_msgs/Joy now."""
        axes, buttons = [0.0] * AXES, [0] * BUTTONS
        if self.commanding:
            buttons[DEADMAN] = 1
            buttons[GRIP_CLOSE], buttons[GRIP_OPEN] = int(self.grip == -1), int(self.grip == 1)
            for axis, (direction, until) in self._until.items():
                if now <= until:
                    axes[axis] = direction * _SPEEDS[self.speed]
        buttons[ESTOP] = int(now <= self._estop_until)
        return axes, buttons

    @property
    def speed_text(self) -> str:
        return f"{_SPEEDS[self.speed]:.0%}"
