"""`valueguide top`: nodes, rates, latencies, who commands, progress and safety of a running graph, live."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from valueguide.errors import ConfigError, EnvironmentSetupError, mismatch
from valueguide.ros import workspace
from valueguide.ros.overview import Overview, render

EXAMPLES = """examples:
  valueguide top                      # live, twice a second; Ctrl-C leaves
  valueguide top --namespace left     # the graph that runs in /left
  valueguide top --once --json -      # one snapshot for scripts; exit status 2 when nothing is heard
"""

_REFRESH_S = 0.5
_NAMESPACE = re.compile(r"(/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*)?/?", re.ASCII)
#: Set in the process that was started anew with the environment of ROS.
_MARK = "VALUEGUIDE_TOP_IN_ROS"
_SENSOR_TYPES = ("Image", "CompressedImage", "JointState", "PoseStamped", "WrenchStamped")
_ENTER, _LEAVE, _HOME, _END, _REST = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", default="", help="of the graph; empty: the root")
    parser.add_argument("--once", action="store_true", help="listen, print one plain snapshot, and end")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long --once listens")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Shows the graph until Ctrl-C; with --once returns the snapshot (see Overview.facts).

    Raises EnvironmentSetupError without a built workspace, or when --once hears no node.
    """
    if not args.seconds > 0:
        raise ConfigError(mismatch("top", "--seconds", "more than 0", args.seconds))
    if not _NAMESPACE.fullmatch(args.namespace):
        raise ConfigError(mismatch("top", "--namespace", "names like left or lab/left", repr(args.namespace)))
    if _MARK not in os.environ:
        _restart_in_ros()
    listener = _Listener(args.namespace)
    try:
        if args.once:
            return _snapshot(listener, args)
        _live(listener)
        return None
    finally:
        listener.close()


def _restart_in_ros() -> None:
    # ROS libraries are found through variables that must be set before Python starts.
    environment = workspace.run_environment({_MARK: "1"})
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "valueguide.cli.main", *sys.argv[1:]], environment)


def _snapshot(listener: _Listener, args: argparse.Namespace) -> dict[str, Any]:
    listener.listen(args.seconds)
    if listener.overview.silent:
        raise EnvironmentSetupError(f"{listener.nothing()} within {args.seconds:g} s. {_HINT}")
    facts = listener.overview.facts(time.monotonic())
    print("\n".join(render(facts)))
    return facts


_HINT = "Start a graph: valueguide ros launch sim.launch.py"


def _live(listener: _Listener) -> None:
    with _screen() as draw:
        while True:
            listener.listen(_REFRESH_S)
            if listener.overview.silent:
                draw([f"{listener.nothing()} yet. {_HINT}"])
            else:
                draw(render(listener.overview.facts(time.monotonic())))


@contextlib.contextmanager
def _screen() -> Iterator[Any]:
    """A function that shows lines; the terminal is as before afterwards. Without a terminal: plain lines."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    def draw(lines: list[str]) -> None:
        if not sys.stdout.isatty():
            print(*lines, "", sep="\n", flush=True)
            return
        width, height = shutil.get_terminal_size()
        shown = [f"{line[:width]}{_END}" for line in lines[: height - 1]]
        sys.stdout.write(_HOME + "\r\n".join(shown) + _REST)
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, leave)
    live = sys.stdout.isatty()
    try:
        sys.stdout.write(_ENTER if live else "")
        yield draw
    except KeyboardInterrupt:
        pass  # how this program is meant to end
    finally:
        sys.stdout.write(_LEAVE if live else "")
        sys.stdout.flush()


class _Listener:
    """A ROS node that feeds an `Overview`."""

    def __init__(self, namespace: str) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.overview = Overview(namespace, time.monotonic())
        self._node = rclpy.create_node("top", namespace=namespace.strip("/"))
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._clock_ns: int | None = None
        self._known: set[str] = set()
        self._subscribe_all()

    def _subscribe_all(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rosgraph_msgs.msg import Clock
        from valueguide_msgs import msg

        from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR

        for topic, kind, profile in (
            ("heartbeat", msg.Heartbeat, RELIABLE),
            ("/diagnostics", DiagnosticArray, RELIABLE),
            ("task", msg.Task, LATCHED),
            ("intervention", msg.InterventionState, LATCHED),
            ("safety_state", msg.SafetyState, LATCHED),
            ("executor_state", msg.ExecutorState, RELIABLE),
            ("help", msg.HelpRequest, RELIABLE),
            ("progress", msg.Progress, RELIABLE),
            ("decision", msg.Decision, RELIABLE),
            ("shadow_decision", msg.Decision, RELIABLE),
            ("critic_version", msg.CriticVersion, LATCHED),
            ("chunk", msg.ActionChunk, RELIABLE),
        ):
            self._node.create_subscription(kind, topic, self._reader(topic), profile)
        for topic, kind in (
            ("chunk_request", msg.ChunkRequest),
            ("candidates", msg.Candidates),
            ("teleop_command", msg.Command),
            ("proposed_command", msg.Command),
            ("command", msg.Command),
        ):
            self._count(topic, kind, RELIABLE)
        # Graphs of simulations side by side have a clock each, in their namespace.
        for topic in {"/clock", self._node.resolve_topic_name("clock")}:
            self._node.create_subscription(Clock, topic, self._on_clock, SENSOR)

    def _reader(self, topic: str) -> Any:
        def read(message: Any) -> None:
            clock_ns = time.time_ns() if self._clock_ns is None else self._clock_ns
            self.overview.on(topic, message, time.monotonic(), clock_ns)

        return read

    def _count(self, topic: str, kind: Any, profile: Any) -> None:
        # Raw: pictures are counted, not unpacked.
        self._node.create_subscription(
            kind, topic, lambda _: self.overview.count(topic, time.monotonic()), profile, raw=True
        )

    def _on_clock(self, message: Any) -> None:
        self._clock_ns = message.clock.sec * 10**9 + message.clock.nanosec

    def listen(self, seconds: float) -> None:
        """Take in what comes for a while."""
        self._find_sensors()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, 0.1))
            if self.overview.silent:
                self._find_sensors()

    def _find_sensors(self) -> None:
        """Cameras and joints have the names that the robot's description gives them: found by type."""
        import geometry_msgs.msg
        import sensor_msgs.msg

        from valueguide_nodes.base import SENSOR

        prefix = self.overview.namespace.rstrip("/") + "/"
        self._known.add(f"{prefix}annotated/image")  # made only for those who look at it
        for topic, kinds in self._node.get_topic_names_and_types():
            package, _, kind = kinds[0].partition("/msg/")
            if topic in self._known or not topic.startswith(prefix) or kind not in _SENSOR_TYPES:
                continue
            self._known.add(topic)
            module = sensor_msgs.msg if package == "sensor_msgs" else geometry_msgs.msg
            self._count(topic[len(prefix) :], getattr(module, kind), SENSOR)

    def nothing(self) -> str:
        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        return f"top: no node heard in namespace {self.overview.namespace} of ROS_DOMAIN_ID {domain}"

    def close(self) -> None:
        import rclpy

        self._node.destroy_node()
        rclpy.try_shutdown()
