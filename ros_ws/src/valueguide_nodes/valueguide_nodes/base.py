"""`VgNode`: what every node of valueguide shares. Lifecycle, parameters, diagnostics, heartbeat, errors.

A node declares PARAMETERS once, and overrides `setup` (configure: load models, make publishers and
subscriptions), `start` (activate), `stop` (deactivate, error, shutdown) and `status` (for /diagnostics).
A ValueguideError in a transition is one log line and a failed transition; one in a callback
(`guarded`) takes the node to the error state, which stops its heartbeat, which stops the arm.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from valueguide_msgs.msg import Heartbeat

from valueguide.errors import ConfigError, ValueguideError

#: Sensors: the newest only, never waiting. Commands and plans: every one. Facts: also for latecomers.
SENSOR = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
HEARTBEAT_HZ = 10.0
_DIAGNOSTICS_S = 1.0


@dataclass(frozen=True)
class Param:
    """A parameter: default (which fixes the type), meaning, and bounds for numbers. fixed: only at start."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    fixed: bool = True

    def descriptor(self) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(description=self.description, read_only=self.fixed)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high))]
            else:
                bounds = FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
                descriptor.floating_point_range = [bounds]
        return descriptor


COMMON = (
    Param("autostart", True, "configure and activate without a lifecycle manager"),
    Param("robot", "sim", "name in configs/robots, or the path of a robot description"),
)


class VgNode(LifecycleNode):
    """Base of all nodes."""

    NAME = "node"
    PARAMETERS: Sequence[Param] = ()

    def __init__(self) -> None:
        super().__init__(self.NAME)
        for parameter in (*COMMON, *self.PARAMETERS):
            self.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        self.active = False
        self._beats = 0
        self._heartbeat = self.create_publisher(Heartbeat, "heartbeat", RELIABLE)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        # Wall time: a simulation that stands still must not look like a dead node.
        clock = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self._beat_timer = self.create_timer(1.0 / HEARTBEAT_HZ, self._beat, clock=clock)
        self._diagnostics_timer = self.create_timer(_DIAGNOSTICS_S, self._diagnose, clock=clock)
        self._start_timer = None
        if self.param("autostart"):
            self._start_timer = self.create_timer(0.0, self._autostart, clock=clock)

    # What a node fills in.

    def setup(self) -> None:
        """Configure: load, create publishers and subscriptions. May raise ValueguideError."""

    def start(self) -> None:
        """Activate."""

    def stop(self) -> None:
        """Deactivate, error or shutdown: leave the world safe. Must not raise."""

    def status(self) -> dict[str, Any]:
        """Facts for /diagnostics; the key `warning` or `error`, when set, sets the level."""
        return {}

    # Shared services.

    def param(self, name: str) -> Any:
        """The value of a parameter."""
        return self.get_parameter(name).value

    def stamp(self) -> Any:
        """Now in ROS time, as a message."""
        return self.get_clock().now().to_msg()

    def now_ns(self) -> int:
        """Now in ROS time (simulated with use_sim_time), nanoseconds."""
        return self.get_clock().now().nanoseconds

    @staticmethod
    def monotonic() -> float:
        """Seconds for durations and watchdogs; never jumps."""
        return time.monotonic()

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A callback whose ValueguideError becomes the error state instead of a dead process.

        Callbacks of an inactive node do nothing.
        """

        def call(*arguments: Any) -> Any:
            if not self.active:
                return None
            try:
                return function(*arguments)
            except ValueguideError as error:
                self.fail(str(error))
                return None

        return call

    def fail(self, reason: str) -> None:
        """To the error state: logged, inactive, `stop` called. Configure again to recover."""
        self.get_logger().error(reason)
        self._error = reason
        if self.active:
            self.trigger_deactivate()
            self.trigger_cleanup()

    # Lifecycle.

    _error = ""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition(self.setup)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition(self.start)
        self.active = result == TransitionCallbackReturn.SUCCESS
        if self.active:
            self._error = ""
        super().on_activate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._halt()
        super().on_deactivate(state)
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        for entity in list(self.subscriptions):
            self.destroy_subscription(entity)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._halt()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._halt()
        return TransitionCallbackReturn.SUCCESS

    def _transition(self, work: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            work()
        except ValueguideError as error:
            self._error = str(error)
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # rclpy would swallow it without a word
            self._error = f"{type(error).__name__}: {error}"
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _halt(self) -> None:
        if self.active:
            self.active = False
            self.stop()

    def _autostart(self) -> None:
        assert self._start_timer is not None
        self._start_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _beat(self) -> None:
        # Only an active node vouches for itself.
        if self.active:
            self._beats += 1
            message = Heartbeat(node=self.get_name(), state="active", count=self._beats)
            message.header.stamp = self.stamp()
            self._heartbeat.publish(message)

    def _diagnose(self) -> None:
        facts = self.status() if self.active else {}
        error, warning = facts.pop("error", self._error), facts.pop("warning", "")
        level = DiagnosticStatus.ERROR if error else DiagnosticStatus.WARN if warning else DiagnosticStatus.OK
        if not self.active and not error:
            level, warning = DiagnosticStatus.STALE, "not active"
        status = DiagnosticStatus(
            level=level,
            name=self.get_fully_qualified_name(),
            message=str(error or warning or "ok"),
            values=[KeyValue(key=key, value=str(value)) for key, value in facts.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.stamp()
        self._diagnostics.publish(array)


def run(node_class: type[VgNode], *, executor: Any = None, args: Sequence[str] | None = None) -> None:
    """Spin one node until SIGINT or SIGTERM, then stop it in order. Exit status 1 when it could not start.

    `executor` makes the rclpy executor; single-threaded by default, so callbacks never run side by side.
    """
    node: VgNode | None = None
    stopping = False

    def interrupt(*_: Any) -> None:
        nonlocal stopping
        stopping = True
        if node is None or not node.active:
            raise KeyboardInterrupt  # loading a model may take long

    try:
        # rclpy's own handlers close the context first, and then nobody can send the last hold.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        node = node_class()
        spinner = (executor or SingleThreadedExecutor)()
        spinner.add_node(node)
        # A callback under way comes to its end, then the node stops; the heartbeat's timer wakes it.
        while not stopping:
            spinner.spin_once()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (
        ConfigError,
        RCLError,  # above all: security is asked for, and keys or the library's support are missing
        rclpy.exceptions.ParameterException,
        rclpy.exceptions.InvalidParameterValueException,
    ) as error:
        print(f"{node_class.NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError:
        if not stopping:  # else it is the interrupt, as it looks from inside a message's conversion
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one must not cut short how the node stops
        if node is not None:
            node._halt()
            node.destroy_node()
        rclpy.try_shutdown()
