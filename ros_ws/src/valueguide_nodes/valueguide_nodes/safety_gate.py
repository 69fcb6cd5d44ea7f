"""Node `safety_gate`: its own process, last before the controllers. Thin around `valueguide.safety.gate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, WrenchStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory
from valueguide_msgs.msg import Command, Heartbeat, SafetyState

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import DataError
from valueguide.ros.messages import JointReader, force_from, position_from, stamp_ns
from valueguide.safety.gate import Kind, SafetyGate, Verdict
from valueguide.safety.limits import Measured
from valueguide_nodes import convert
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run

WATCH_HZ = 100.0
_TELL_EVERY = 10


class SafetyGateNode(VgNode):
    NAME = "safety_gate"
    PARAMETERS = (Param("watch_hz", WATCH_HZ, "how often the watchdogs look", 10.0, 1000.0),)

    def setup(self) -> None:
        self.robot: RobotConfig = load_robot(self.param("robot"))
        robot = self.robot
        self.gate = SafetyGate(
            robot.limits, robot.action.kind, robot.action.names, robot.joints.names, robot.watchdog
        )
        self.reader = JointReader(robot)
        self.position: tuple[Any, float] | None = None
        self.force = float("nan")
        self.sequence, self.rejected_sequence, self.ticks = 0, -1, 0
        self.states = self.create_publisher(SafetyState, "safety_state", LATCHED)
        self.commands = self.create_publisher(Command, "command", RELIABLE)
        self.arm = self.hand = None
        if robot.output.kind == "joint_trajectory":
            self.arm = self.create_publisher(JointTrajectory, robot.output.topic, RELIABLE)
            if robot.output.gripper_topic:
                self.hand = self.create_publisher(JointTrajectory, robot.output.gripper_topic, RELIABLE)
        for kind, topic, callback, qos in (
            (Command, "proposed_command", self.on_command, RELIABLE),
            (JointState, robot.joints.topic, self.on_joints, SENSOR),
            (Heartbeat, "heartbeat", self.on_heartbeat, RELIABLE),
            (Bool, "estop", self.on_estop, RELIABLE),
        ):
            self.create_subscription(kind, topic, self.guarded(callback), qos)
        if robot.pose_topic:
            self.create_subscription(PoseStamped, robot.pose_topic, self.guarded(self.on_pose), SENSOR)
        if robot.wrench_topic:
            self.create_subscription(WrenchStamped, robot.wrench_topic, self.guarded(self.on_wrench), SENSOR)
        self.create_service(Trigger, "estop_trigger", self.on_trigger)
        self.create_service(Trigger, "estop_reset", self.on_reset)
        # Wall time: the watchdog must bite when a simulated clock stands still.
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.create_timer(1.0 / self.param("watch_hz"), self.guarded(self.watch), clock=steady)

    def start(self) -> None:
        self.gate.activate()
        self.tell()

    def on_command(self, message: Command) -> None:
        now = self.monotonic()
        if message.kind != Command.MOVE:
            self.act(self.gate.on_hold(message.sequence, message.reason, now), message)
            return
        age = (self.now_ns() - stamp_ns(message)) / 1e9
        if list(message.names) != self.robot.action.names:
            values: Any = []  # other dimensions than this robot's: refused as malformed
        else:
            values = np.asarray(message.values, np.float32)
        rejected = self.gate.rejected
        verdict = self.gate.on_command(values, message.sequence, age, now)
        self.act(verdict, message)
        if self.gate.rejected > rejected:
            self.rejected_sequence = message.sequence
            self.get_logger().warning(f"refused: {self.gate.reason}", throttle_duration_sec=1.0)
            self.tell()

    def on_joints(self, message: JointState) -> None:
        now = self.monotonic()
        names = self.robot.joints.names
        try:
            joints = self.reader.values(message, "position", names)
            speeds = self.reader.values(message, "velocity", names) if len(message.velocity) else None
            opening = self.reader.opening(message)
        except DataError as error:
            self.act(self.gate.stop(str(error)))
            return
        fresh = self.position is not None and now - self.position[1] < self.robot.watchdog.state_s
        pose = None
        if self.robot.action.kind == "joint_position":
            pose = np.append(joints, [opening] if self.robot.joints.gripper else []).astype(np.float32)
        measured = Measured(
            joints,
            np.zeros(0, np.float32) if speeds is None else speeds,
            self.position[0] if fresh and self.position else None,
            pose,
            self.force,
        )
        self.act(self.gate.on_measured(measured, now))

    def on_pose(self, message: PoseStamped) -> None:
        self.position = (position_from(message), self.monotonic())

    def on_wrench(self, message: WrenchStamped) -> None:
        self.force = force_from(message)

    def on_heartbeat(self, message: Heartbeat) -> None:
        self.gate.on_heartbeat(message.node, self.monotonic())

    def on_estop(self, message: Bool) -> None:
        if message.data:
            self.act(self.gate.stop("e-stop: topic"))

    def on_trigger(self, request: Any, response: Any) -> Any:
        self.act(self.gate.stop("e-stop: service"))
        response.success, response.message = True, self.gate.reason
        return response

    def on_reset(self, request: Any, response: Any) -> Any:
        refusal = self.gate.reset(self.monotonic())
        response.success, response.message = refusal is None, refusal or "holding; ready for commands"
        if refusal is None:
            self.get_logger().warning("reset by hand")
        self.tell()
        return response

    def watch(self) -> None:
        self.act(self.gate.tick(self.monotonic()))
        self.ticks += 1
        if self.ticks % _TELL_EVERY == 0:
            self.tell()

    def act(self, verdict: Verdict | None, asked: Command | None = None) -> None:
        """Send what the verdict says, before anything else happens."""
        if verdict is None:
            return
        if verdict.kind is Kind.MOVE and asked is not None:
            self.commands.publish(asked)
        else:
            self.sequence += 1
            self.commands.publish(
                convert.command(
                    self,
                    self.robot,
                    verdict.kind,
                    verdict.values,
                    sequence=self.sequence,
                    reason=verdict.reason,
                )
            )
        self.to_controllers(verdict)
        if verdict.kind is not Kind.MOVE:
            if verdict.kind is Kind.STOP:
                self.get_logger().error(f"STOP: {verdict.reason}")
            else:
                self.get_logger().warning(f"HOLD: {verdict.reason}")
            self.tell()

    def to_controllers(self, verdict: Verdict) -> None:
        """The same for a robot behind ros2_control."""
        if self.arm is None:
            return
        from valueguide_nodes.trajectory import to_hold, to_trajectory

        if verdict.kind is Kind.MOVE:
            arm, hand = to_trajectory(self.robot, verdict.values, None, 1.0 / self.robot.rate_hz)
        elif self.gate.measured is None:
            return
        else:
            arm, hand = to_hold(self.robot, self.gate.measured.joints), None
        self.arm.publish(arm)
        if hand is not None and self.hand is not None:
            self.hand.publish(hand)

    def tell(self) -> None:
        message = SafetyState(
            state=int(self.gate.state),
            reason=self.gate.reason,
            passed=self.gate.passed,
            rejected=self.gate.rejected,
            rejected_sequence=self.rejected_sequence,
            contact_force=self.force,
        )
        message.header.stamp = self.stamp()
        self.states.publish(message)

    def stop(self) -> None:
        self.act(self.gate.stop("safety gate shut down"))

    def status(self) -> dict[str, Any]:
        gate = self.gate
        stopped = gate.state == SafetyState.STOPPED
        return {
            "error": gate.reason if stopped else "",
            "warning": gate.reason if gate.state == SafetyState.HOLDING else "",
            "passed": gate.passed,
            "rejected": gate.rejected,
            "force_N": round(self.force, 1),
        }


def main() -> None:
    run(SafetyGateNode)


if __name__ == "__main__":
    main()
