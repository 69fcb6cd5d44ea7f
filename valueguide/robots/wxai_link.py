"""The link to a WidowX AI arm: the vendor's driver in a thread of its own, so that it cannot block a node.

What the driver (trossen_arm 1.11) does not do by itself: when packets stop coming without an error (a pulled
cable), it goes on handing out the last state, so `age` follows the controller's own count of outputs; and
its calls over TCP then block without a limit, so each is waited for with a deadline.
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import numpy as np

from valueguide.errors import ConfigError, EnvironmentSetupError, mismatch
from valueguide.robots.kinematics import Array, Chain

ARM_JOINTS = 6
#: Metres a second that the fingers are asked to move at most; the controller allows 0.5.
_GRIPPER_SPEED = 0.4
_CONNECT_S, _CALL_S, _CLOSE_S = 5.0, 1.0, 1.0


@dataclass(frozen=True)
class ArmState:
    """As the controller reports it.

    positions, velocities, efforts: (7,), six joints (rad, rad/s, Nm), then the fingers (m, m/s, N).
    tool: position and axis times angle in the base frame, (6,). wrench: external force and torque at the
    tool in the base frame, (6,), N and Nm. output: the controller's count of outputs.
    """

    positions: Array
    velocities: Array
    efforts: Array
    tool: Array
    wrench: Array
    output: int


@dataclass(frozen=True)
class ArmFacts:
    """What the controller says about the arm. velocity: (6,) rad/s that its joints are allowed."""

    chain: Chain
    velocity: Array
    versions: str


class Silence:
    """How long nothing new was heard, counted only as far as its owner ran.

    A program that was held up has not listened either: it must first get a chance to hear what came in
    meanwhile. So the time between two looks counts as `most_s` (seconds) at most.
    """

    def __init__(self, most_s: float, now: float) -> None:
        self._most, self._looked, self._silent = most_s, now, 0.0
        self._last: object = None

    def look(self, last: object, now: float) -> float:
        """Seconds of silence. last: the newest of what was heard, a new object each time."""
        passed, self._looked = min(now - self._looked, self._most), now
        self._silent = 0.0 if last is not self._last else self._silent + passed
        self._last = last
        return self._silent


class ArmLink:
    """One connection. `on_state` is called in the link's thread for every new state."""

    def __init__(
        self, address: str, model: str, end_effector: str, state_hz: float, on_state: Callable[[], None]
    ) -> None:
        self.address = address
        self.failure = ""
        self.state: ArmState | None = None
        self._arm = _vendor()
        self._model = _choice(self._arm.Model.__members__, "model", model)
        variants = {n: n for n in dir(self._arm.StandardEndEffector) if not n.startswith("_")}
        variant = _choice(variants, "end_effector", end_effector)
        self._end_effector = getattr(self._arm.StandardEndEffector(), variant)
        self._period, self._on_state = 1.0 / state_hz, on_state
        self._driver: Any = None
        self._new_at = float("inf")
        self._closing = False
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="wxai-link", daemon=True)

    @property
    def age(self) -> float:
        """Seconds since the controller last reported something new."""
        return time.monotonic() - self._new_at

    def connect(self) -> ArmFacts:
        """Connect and read what kind of arm it is; nothing moves and no mode changes.

        Raises EnvironmentSetupError naming the address.
        """
        self._thread.start()
        try:
            return self._call(self._connect, _CONNECT_S + 1.0)
        except EnvironmentSetupError:
            self._closing = True
            raise

    def enable(self) -> None:
        """Position mode at the measured pose: the brakes give way to control and nothing moves."""
        self._call(self._enable, _CALL_S)

    def move(self, joints: Array, seconds: float) -> None:
        """Go to these joints (6,) in a straight line in joint space. seconds 0: at once. Does not wait."""
        goal = [float(angle) for angle in joints]
        self._post(lambda: self._driver.set_arm_positions(goal, seconds, False))

    def grip(self, position: float, seconds: float) -> None:
        """Fingers to this position (metres) in `seconds`, or longer if that is too fast. Does not wait."""

        def go() -> None:
            distance = abs(position - self.state.positions[ARM_JOINTS]) if self.state is not None else 0.0
            self._driver.set_gripper_position(position, max(seconds, distance / _GRIPPER_SPEED), False)

        self._post(go)

    def close(self) -> None:
        """Hold, then brake all joints, then disconnect. Never raises, and takes a second at most."""
        if self._driver is not None and not self.failure:
            try:
                self._call(self._shut_down, _CLOSE_S)
            except EnvironmentSetupError as error:
                self.failure = str(error)
        self._closing = True
        if not self.failure:
            # The vendor's library aborts when the process ends while it is at work.
            self._thread.join(_CLOSE_S)

    # What follows runs in the link's thread.

    def _work(self) -> None:
        due = time.monotonic()
        while not self._closing:
            try:
                job, future = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                due = max(due + self._period, time.monotonic())
                self._guard(self._read, None)
            else:
                self._guard(job, future)
        # A broken link may block here, which then holds up nobody; the driver brakes the joints if it can.
        if self._driver is not None:
            self._guard(self._driver.cleanup, None)
            self._driver = None

    def _guard(self, job: Callable[[], Any], future: Future[Any] | None) -> None:
        """Every exception of the driver becomes `failure`: after one, it answers all calls with the same."""
        try:
            result = job()
        except Exception as error:
            line = str(error).split("\n", 1)[0].strip()
            self.failure = self.failure or f"arm at {self.address}: {line}"
            if future is not None:
                future.set_exception(EnvironmentSetupError(self.failure))
        else:
            if future is not None:
                future.set_result(result)

    def _connect(self) -> ArmFacts:
        driver = self._arm.TrossenArmDriver()
        driver.configure(self._model, self._end_effector, self.address, False, _CONNECT_S)
        joints, limits = driver.get_joints()[:ARM_JOINTS], driver.get_joint_limits()[:ARM_JOINTS]
        chain = Chain.of(
            [list(joint.axis)[:3] for joint in joints],
            [list(joint.origin_xyz) for joint in joints],
            [list(joint.origin_rpy) for joint in joints],
            list(driver.get_end_effector().t_flange_tool),
            [limit.position_min for limit in limits],
            [limit.position_max for limit in limits],
        )
        velocity = np.array([limit.velocity_max for limit in limits])
        versions = f"driver {driver.get_driver_version()}, firmware {driver.get_controller_version()}"
        self._driver = driver
        self._read()
        return ArmFacts(chain, velocity, versions)

    def _enable(self) -> None:
        positions = list(self._driver.get_all_positions())
        self._driver.set_all_modes(self._arm.Mode.position)
        self._driver.set_all_positions(positions, 0.0, False)
        self._read()

    def _shut_down(self) -> None:
        self._driver.set_all_positions(list(self._driver.get_all_positions()), 0.0, False)
        self._driver.set_all_modes(self._arm.Mode.idle)  # the vendor's: all joints are braked
        self._driver.cleanup()
        self._driver = None

    def _read(self) -> None:
        if self._driver is None or self.failure:
            return
        output = self._driver.get_robot_output()
        if self.state is not None and output.header.id == self.state.output:
            return
        joint, tool = output.joint.all, output.cartesian
        self.state = ArmState(
            np.array(joint.positions),
            np.array(joint.velocities),
            np.array(joint.efforts),
            np.array(list(tool.positions)),
            np.array(list(tool.external_efforts)),
            output.header.id,
        )
        self._new_at = time.monotonic()
        self._on_state()

    # Other threads'.

    def _post(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((job, future))
        return future

    def _call(self, job: Callable[[], Any], timeout: float) -> Any:
        try:
            return self._post(job).result(timeout)
        except FutureTimeout:
            self.failure = self.failure or f"arm at {self.address}: no answer within {timeout:.0f} s"
            raise EnvironmentSetupError(self.failure) from None


def _vendor() -> Any:
    try:
        return importlib.import_module("trossen_arm")
    except ImportError as error:
        raise EnvironmentSetupError(
            f"wxai: expected the vendor's driver, found none ({error}). Try: pip install trossen_arm"
        ) from None


def _choice(known: Any, what: str, found: str) -> Any:
    if found not in known:
        raise ConfigError(mismatch("wxai", what, f"one of {', '.join(sorted(known))}", found))
    return known[found]
