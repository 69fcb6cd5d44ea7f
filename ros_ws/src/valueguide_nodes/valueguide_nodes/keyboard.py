"""`keyboard`: take over from a terminal. Sends what a gamepad would, on `keyboard_joy`; teleop decides.

Not a lifecycle node: it comes and goes with the person at the keyboard. When it goes while it commands,
teleop hears silence and the arm holds.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Joy
from valueguide_msgs.msg import ExecutorState, HelpRequest, InterventionState, SafetyState

from valueguide.execution.keys import HELP, Keys
from valueguide_nodes.base import LATCHED, RELIABLE

_JOY_HZ, _SCREEN_HZ = 20.0, 5.0
_SAFETY = {SafetyState.OK: "ok", SafetyState.HOLDING: "holding", SafetyState.STOPPED: "STOPPED"}
_CLEAR_LINE, _ALARM, _PLAIN, _BELL = "\r\x1b[2K", "\x1b[7m", "\x1b[0m", "\a"
_WANTED = "HELP WANTED"


class Keyboard(Node):
    """Publishes the keys as Joy and keeps the line that says who commands."""

    def __init__(self) -> None:
        super().__init__("keyboard")
        self.keys = Keys()
        self._joy = self.create_publisher(Joy, "keyboard_joy", RELIABLE)
        self._intervention: InterventionState | None = None
        self._commander, self._safety = "unknown", ""
        #: Why help is wanted, until somebody takes over or the arm no longer runs; and what is still to say.
        self.help, self.unsaid_help = "", ""
        self.create_subscription(InterventionState, "intervention", self._on_intervention, LATCHED)
        self.create_subscription(SafetyState, "safety_state", self._on_safety, LATCHED)
        self.create_subscription(ExecutorState, "executor_state", self._on_executor, RELIABLE)
        self.create_subscription(HelpRequest, "help", self._on_help, RELIABLE)

    def _on_intervention(self, message: InterventionState) -> None:
        self._intervention = message
        if message.active:
            self.help = ""

    def _on_executor(self, message: ExecutorState) -> None:
        self._commander = message.commander
        if message.state in ("idle", "stopped"):
            self.help = ""

    def _on_help(self, message: HelpRequest) -> None:
        self.help = self.unsaid_help = f"{_WANTED} at step {message.step}: {message.reason}"

    def _on_safety(self, message: SafetyState) -> None:
        self._safety = f"{_SAFETY.get(message.state, message.state)} {message.reason}".strip()

    def publish(self, now: float) -> None:
        """One message of the keys as they are now."""
        found = self._intervention
        if found is not None:
            self.keys.on_intervention(found.active, found.device, now)
        axes, buttons = self.keys.joy(now)
        message = Joy(axes=axes, buttons=buttons)
        message.header.stamp = self.get_clock().now().to_msg()
        self._joy.publish(message)

    def line(self) -> str:
        """Who commands, how fast keys move, and the safety gate's state."""
        found = self._intervention
        if found is None:
            return "no teleop node heard yet in this namespace and ROS_DOMAIN_ID"
        who = f"human ({found.device})" if found.active else self._commander
        if found.active and found.device == "keyboard":
            # A program started anew finds its predecessor's command still held.
            who = "YOU" if self.keys.commanding else "keyboard, held: t to go on, t again to hand back"
        wanted, safety = f"{_WANTED}   " if self.help else "", self._safety or "not heard"
        return f"{wanted}commands: {who}   speed {self.keys.speed_text}   safety: {safety}"


@contextlib.contextmanager
def unbuffered_terminal() -> Iterator[None]:
    """Keys come one by one and unseen; the terminal is as before afterwards, however this ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):  # the terminal itself may be gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def show(line: str) -> None:
    """Rewrite the status line, cut to the terminal's width."""
    width = shutil.get_terminal_size().columns - 1
    style = _ALARM if "STOPPED" in line or _WANTED in line else ""
    sys.stdout.write(f"{_CLEAR_LINE}{style}{line[:width]}{_PLAIN if style else ''}")
    sys.stdout.flush()


def control(node: Keyboard) -> None:
    """Read keys, publish, show; until the terminal closes or a signal comes."""
    next_joy = next_screen = 0.0
    notice = ""
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.5 / _JOY_HZ)
        now = time.monotonic()
        if ready:
            typed = os.read(sys.stdin.fileno(), 1024)
            if not typed:
                return
            node.keys.feed(typed.decode(errors="replace"), now)
            next_joy = now  # a key acts at once
        rclpy.spin_once(node, timeout_sec=0.0)
        if now >= next_joy:
            node.publish(now)
            next_joy = now + 1.0 / _JOY_HZ
        if node.keys.help_wanted:
            node.keys.help_wanted = False
            sys.stdout.write(f"{_CLEAR_LINE}{HELP}\n")
        if node.unsaid_help:
            sys.stdout.write(f"{_CLEAR_LINE}{_BELL}{node.unsaid_help}. Press t to take over\n")
            node.unsaid_help = ""
        if node.keys.notice != notice:
            notice = node.keys.notice
            sys.stdout.write(f"{_CLEAR_LINE}{notice}\n" if notice else "")
        if now >= next_screen or ready:
            show(node.line())
            next_screen = now + 1.0 / _SCREEN_HZ


def _leave(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("keyboard: expected a terminal, found none. Run it in one, beside the launch", file=sys.stderr)
        sys.exit(1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    # Suspended, it would leave the terminal as it is now and the arm without its commander.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Keyboard()
    print(HELP)
    try:
        with unbuffered_terminal(), contextlib.suppress(KeyboardInterrupt, OSError):
            control(node)
    finally:
        with contextlib.suppress(OSError):
            held = node.keys.commanding
            print(f"{_CLEAR_LINE}left" + (" in command: the arm is held until you hand back" if held else ""))
        node.destroy_node()
        rclpy.try_shutdown()
