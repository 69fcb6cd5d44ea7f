"""`sim_robot`: the MuJoCo tabletop behind the topics of a robot, paced in real time. It makes `/clock`.

Everything runs in one thread: physics, rendering and callbacks take turns, so nothing sees half a step.
An overloaded machine slows simulated time down; it never skips physics. See `sim.robot` and `sim.faults`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float32MultiArray
from valueguide_msgs.msg import Command, Progress
from valueguide_msgs.srv import ResetSim

from sim.arm import ACTION_NAMES, CONTROL_HZ
from sim.env import IMAGE_SIZE
from sim.faults import DelayLine, FaultInjector, parse_faults
from sim.pacing import Pacer
from sim.robot import SimRobot
from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import ConfigError, mismatch
from valueguide_nodes import sim_robot_messages as messages
from valueguide_nodes.base import RELIABLE, SENSOR, Param, VgNode, run

#: Wall seconds: later than this, the schedule starts anew instead of being caught up with.
_PATIENCE_S = 0.1
#: Ticks in one go while catching up; between them, commands must get their turn.
_CATCH_UP = 4
#: Simulated seconds without a command after which the measured pose is held.
_SILENCE_S = 1.0


class SimRobotNode(VgNode):
    """The arm, its cameras and its clock; wall time paces it, and its stamps are simulated time."""

    NAME = "robot"
    PARAMETERS = (
        Param("task", "carrot_on_plate", "simulated task of the first episode; later ones by reset_sim"),
        Param("seed", 0, "seed of the first episode", 0, 2**62),
        Param("visuals", "train", "appearance: train, held_out or none"),
        Param("wording", "train", "instructions: train or held_out"),
        Param("privileged", True, "publish environment_state"),
        Param("camera_hz", 30.0, "pictures per simulated second of each camera", 0.1, 120.0),
        Param(
            "state_hz", 60.0, "clock and states per simulated second; every tick (120) at most", 1.0, 200.0
        ),
        Param("image_size", 0, "width and height of pictures; 0: as in the robot's description", 0, 480),
        Param("speed", 1.0, "simulated seconds per second of wall time", 0.05, 20.0, fixed=False),
        Param("faults", "", "JSON list of faults, see sim/faults.py", fixed=False),
    )

    _robot: SimRobot | None = None
    _pace_timer: Any = None
    _next_state = 0.0

    def __init__(self) -> None:
        super().__init__()
        # It makes the clock, so it cannot follow it.
        self.set_parameters([Parameter("use_sim_time", value=False)])

    def setup(self) -> None:
        self._config = load_robot(self.param("robot"))
        _check_description(self._config)
        self._faults = FaultInjector(parse_faults(self.param("faults")), self.param("seed"))
        if self._robot is None:
            sizes = {name: self._size(name) for name in self._config.cameras}
            robot = SimRobot(self.param("task"), sizes, self.param("visuals"), self.param("wording"))
            self._epoch_ns = time.time_ns() // 10**9 * 10**9
            self._robot = robot
            self._make_publishers()
            self.create_service(ResetSim, "reset_sim", self._on_reset)
            self.add_on_set_parameters_callback(self._on_parameters)
        self.create_subscription(Command, self._config.output.topic, self.guarded(self._on_command), RELIABLE)
        self._leap_ns, self._next_picture, self._next_state, self._judged = 0, 0, 0.0, -1
        self._commanded_ns = self._robot.time_ns
        self._refused, self._refusal = 0, ""
        self._robot.reset(self.param("task"), self.param("seed"))
        self._faults.restart(self.param("seed"), self._robot.time_ns / 1e9)

    def _size(self, name: str) -> tuple[int, int]:
        camera, asked = self._config.cameras[name], self.param("image_size")
        return asked or camera.height or IMAGE_SIZE, asked or camera.width or IMAGE_SIZE

    def _make_publishers(self) -> None:
        config = self._config
        self._clock_out = self.create_publisher(Clock, "/clock", RELIABLE)
        self._truth_out = self.create_publisher(Progress, "sim_truth", RELIABLE)
        # What it publishes -> its publisher and what waits to be published.
        self._out: dict[str, tuple[Any, DelayLine[Any]]] = {}
        privileged = config.environment_state_topic if self.param("privileged") else ""
        for name, kind, topic in (
            ("joints", JointState, config.joints.topic),
            ("pose", PoseStamped, config.pose_topic),
            ("wrench", WrenchStamped, config.wrench_topic),
            ("privileged", Float32MultiArray, privileged),
        ):
            if topic:
                self._out[name] = self.create_publisher(kind, topic, SENSOR), DelayLine()
        for name, camera in config.cameras.items():
            kind = CompressedImage if camera.kind == "compressed" else Image
            self._out[f"camera/{name}"] = self.create_publisher(kind, camera.topic, SENSOR), DelayLine()

    def start(self) -> None:
        now = self._robot.time_ns / 1e9
        self._pacer = Pacer(self.param("speed"), self.monotonic(), now)
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self._pace_timer = self.create_timer(0.001, self.guarded(self._pace), clock=steady)

    def stop(self) -> None:
        self.destroy_timer(self._pace_timer)
        self._robot.hold()

    def destroy_node(self) -> None:
        if self._robot is not None:
            self._robot.close()
        super().destroy_node()

    # Time.

    def now_ns(self) -> int:
        """Simulated time, nanoseconds."""
        if self._robot is None:
            return super().now_ns()
        return self._epoch_ns + self._robot.time_ns + self._leap_ns

    def stamp(self) -> Time:
        """Simulated time, as a message."""
        seconds, nanoseconds = divmod(self.now_ns(), 10**9)
        return Time(sec=seconds, nanosec=nanoseconds)

    def _pace(self) -> None:
        """Run the ticks that are due, then sleep until the next one is."""
        for _ in range(_CATCH_UP):
            if self._lag() < 0:
                break
            self._tick()
        late = self._lag()
        if late > _PATIENCE_S:
            self._pacer.forgive(self.monotonic(), (self._robot.time_ns + self._robot.tick_ns()) / 1e9)
        self._pace_timer.timer_period_ns = max(round(-late * 1e9), 100_000)
        self._pace_timer.reset()

    def _lag(self) -> float:
        """Wall seconds by which the end of the next tick is overdue."""
        return self._pacer.lag(self.monotonic(), (self._robot.time_ns + self._robot.tick_ns()) / 1e9)

    def _tick(self) -> None:
        robot, now = self._robot, self._robot.time_ns / 1e9
        if robot.time_ns - self._commanded_ns > _SILENCE_S * 1e9:
            robot.hold()
        robot.stick(self._faults.stuck_parts(now))
        robot.tick()
        self._leap_ns += round(self._faults.clock_leap(now) * 1e9)
        self._publish(pictures=robot.time_ns >= self._next_picture)

    # What others send.

    def _on_command(self, message: Command) -> None:
        self._commanded_ns = self._robot.time_ns
        try:
            if message.kind == Command.MOVE:
                if list(message.names) != list(ACTION_NAMES):
                    raise ConfigError(
                        mismatch("command", "names", ", ".join(ACTION_NAMES), ", ".join(message.names))
                    )
                self._robot.command(message.values)
            else:
                self._robot.hold()
        except ConfigError as error:
            # The gate lets no such command through; whoever sent it, the arm does not follow.
            self._robot.hold()
            self._refused, self._refusal = self._refused + 1, str(error)
            self.get_logger().error(str(error), throttle_duration_sec=1.0)

    def _on_reset(self, request: ResetSim.Request, response: ResetSim.Response) -> ResetSim.Response:
        if not self.active:
            response.message = "reset_sim: expected an active robot, found an inactive one"
            return response
        try:
            response.instruction = self._robot.reset(request.task, request.seed)
        except ConfigError as error:
            response.message = str(error)
            return response
        now = self._robot.time_ns / 1e9
        self._faults.restart(request.seed, now)
        # Placing the objects took a while, and is not part of the episode.
        self._pacer.restart(self._pacer.speed, self.monotonic(), now)
        self._commanded_ns, self._judged = self._robot.time_ns, -1
        self._publish(pictures=True)
        response.success, response.message = True, f"{self._robot.task}, seed {request.seed}"
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        wanted = {p.name: p.value for p in parameters}
        try:
            faults = parse_faults(wanted.get("faults", ""))
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        now = self._robot.time_ns / 1e9
        if "faults" in wanted:
            self._faults = FaultInjector(faults, self.param("seed"), now)
        if "speed" in wanted and self.active:
            self._pacer.restart(wanted["speed"], self.monotonic(), now)
        return SetParametersResult(successful=True)

    # What it publishes.

    def _publish(self, pictures: bool) -> None:
        """Everything at this instant. Clock first, so that nobody sees a stamp from the future."""
        stamp, now = self.stamp(), self._robot.time_ns / 1e9
        if pictures or self._robot.time_ns >= self._next_state:
            # Half a tick early rather than a whole one late: ticks are no divisor of most rates.
            self._next_state = self._robot.time_ns + 1e9 / self.param("state_hz") - 4e6
            self._clock_out.publish(Clock(clock=stamp))
            self._queue_state(stamp, now)
        if pictures:
            period = 1e9 / self.param("camera_hz")
            self._next_picture = round((self._robot.time_ns // period + 1) * period)
            for name in self._robot.cameras:
                self._queue_picture(name, now)
        for publisher, waiting in self._out.values():
            for message in waiting.pop(now):
                publisher.publish(message)
        if self._judged != self._robot.judged:
            self._judged = self._robot.judged
            self._truth_out.publish(messages.truth(self._robot.truth(), stamp))

    def _queue_state(self, stamp: Time, now: float) -> None:
        robot, broken = self._robot, self._faults.nan_parts(now)
        due = now + self._faults.state_delay(now)
        makers: dict[str, Callable[[], Any]] = {
            "joints": lambda: messages.joints(robot.joint_state(), stamp, broken),
            "pose": lambda: messages.pose(robot.hand_pose(), stamp, self._config.frame, "hand" in broken),
            "wrench": lambda: messages.wrench(robot.contact_force(), stamp, self._config.frame),
            "privileged": lambda: Float32MultiArray(data=robot.environment_state().tolist()),
        }
        silent = {"joints"} if self._faults.joints_silent(now) else set()
        for name in makers.keys() & self._out.keys() - silent:
            publisher, waiting = self._out[name]
            if publisher.get_subscription_count():
                waiting.push(due, makers[name]())

    def _queue_picture(self, name: str, now: float) -> None:
        publisher, waiting = self._out[f"camera/{name}"]
        # Drawn also when nobody looks, so that the course of an episode does not depend on listeners.
        if self._faults.lost(name, now) or not publisher.get_subscription_count():
            return
        stamp_ns, picture = self._faults.picture(name, self.now_ns(), self._robot.image(name), now)
        stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        compressed = self._config.cameras[name].kind == "compressed"
        message = messages.image(picture, stamp, f"{name}_camera", compressed)
        waiting.push(now + self._faults.image_delay(name, now), message)

    def status(self) -> dict[str, Any]:
        now = self._robot.time_ns / 1e9
        factor, speed = self._pacer.factor(self.monotonic(), now), self._pacer.speed
        facts = {
            "task": self._robot.task,
            "real_time_factor": f"{factor:.3f}",
            "speed": speed,
            "lost_s": f"{self._pacer.lost_s:.2f}",
            "faults": ", ".join(fault.kind for fault in self._faults.active(now)),
            "refused": self._refused,
            "last_refusal": self._refusal,
        }
        if factor < 0.95 * speed:
            facts["warning"] = f"overload: simulated time runs at {factor:.2f} of real time, not {speed:g}"
        return facts


def _check_description(config: RobotConfig) -> None:
    """Raises ConfigError for a robot that the simulator is not."""
    where = f"robot {config.name}"
    for what, expected, found in (
        ("action.kind", "cartesian_delta", config.action.kind),
        ("action.names", list(ACTION_NAMES), list(config.action.names)),
        ("output.kind", "command", config.output.kind),
        ("rate_hz", CONTROL_HZ, config.rate_hz),
    ):
        if expected != found:
            raise ConfigError(mismatch(where, what, f"{expected} for the simulator", found))


def main() -> None:
    run(SimRobotNode)
