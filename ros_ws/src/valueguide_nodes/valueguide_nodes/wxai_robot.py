"""Node `robot` for the WidowX AI arm: the topics of the simulated robot on the driver of the vendor.

Publishes joint_states, ee_pose and wrench for every new state of the controller, and runs `command`.
A MOVE goes to the commanded pose, or the nearest that leads the arm by at most MAX_LEAD; an action that the
arm cannot follow is refused and the arm is held. HOLD and STOP hold the measured joints at once, the gripper
keeping what it was told, so that it drops nothing. When the controller falls silent, or the driver raises,
the node goes to its error state and its heartbeat stops; the arm then keeps its last target or brakes.

ee_pose is the fingertips' in the arm's base frame; its orientation is the identity when the hand points down
and the fingers open along y, so its yaw is the angle about the vertical.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, WrenchStamped
from sensor_msgs.msg import JointState
from valueguide_msgs.msg import Command

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import ConfigError, DataError, EnvironmentSetupError, mismatch
from valueguide.robots.kinematics import quaternion_of, rotation_of
from valueguide.robots.motion import Motion, hand_rotation
from valueguide.robots.wxai_link import ARM_JOINTS, ArmFacts, ArmLink, ArmState, Silence
from valueguide_nodes.base import RELIABLE, SENSOR, Param, VgNode, run

_WATCH_S = 0.02
#: Share of the joints' speed limits that a motion may ask for; the rest is for the controller's overshoot.
_SPEED = 0.8


class WxaiRobot(VgNode):
    NAME = "robot"
    PARAMETERS = (
        Param("address", "192.168.1.2", "IPv4 address of the arm's controller"),
        Param("model", "wxai_v0", "trossen_arm.Model"),
        Param("end_effector", "wxai_v0_follower", "trossen_arm.StandardEndEffector"),
        Param("state_hz", 100.0, "states published a second", 10.0, 500.0),
        Param("silence_s", 0.2, "seconds without news from the controller that are a lost arm", 0.05, 2.0),
    )

    _link: ArmLink | None = None
    _robot: RobotConfig
    _facts: ArmFacts
    _motion: Motion

    def __init__(self) -> None:
        super().__init__()
        self._made: list[Any] = []
        self._held, self._refused, self._refusal = True, 0, ""
        self._states, self._counted, self._rate = 0, (0, self.monotonic()), 0.0
        self._silence_s = self.param("silence_s")
        self._silence = Silence(self._silence_s / 4, self.monotonic())
        self._fresh = self.create_guard_condition(self.guarded(self._publish))
        clock = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self._watch_timer = self.create_timer(_WATCH_S, self.guarded(self._watch), clock=clock)

    def setup(self) -> None:
        robot = load_robot(self.param("robot"))
        where = f"robot {robot.name}"
        if len(robot.joints.names) != ARM_JOINTS:
            raise ConfigError(mismatch(where, "joints.names", ARM_JOINTS, len(robot.joints.names)))
        if robot.output.kind != "command":
            raise ConfigError(mismatch(where, "output.kind", "command", robot.output.kind))
        self._robot = robot
        self._connect()
        for publisher in self._made:
            self.destroy_publisher(publisher)
        self._joint_states = self.create_publisher(JointState, robot.joints.topic, SENSOR)
        self._poses = self.create_publisher(PoseStamped, robot.pose_topic or "ee_pose", SENSOR)
        self._wrenches = self.create_publisher(WrenchStamped, robot.wrench_topic or "wrench", SENSOR)
        self._made = [self._joint_states, self._poses, self._wrenches]
        self.create_subscription(Command, robot.output.topic, self.guarded(self._on_command), RELIABLE)

    def start(self) -> None:
        if self._link is None:
            self._connect()
        assert self._link is not None
        self._link.enable()
        self._motion.hold()
        self._held = True

    def stop(self) -> None:
        self._disconnect()

    def status(self) -> dict[str, Any]:
        count, at = self._counted
        now = self.monotonic()
        self._rate, self._counted = (self._states - count) / max(now - at, 1e-3), (self._states, now)
        facts: dict[str, Any] = {"address": self.param("address"), "versions": self._facts.versions}
        facts |= {"state_hz": f"{self._rate:.0f}", "refused": self._refused}
        if self._refusal:
            facts["warning"] = f"refused: {self._refusal}"
        self._refusal = ""
        return facts

    # The connection.

    def _connect(self) -> None:
        self._disconnect()
        link = ArmLink(
            self.param("address"),
            self.param("model"),
            self.param("end_effector"),
            self.param("state_hz"),
            self._fresh.trigger,
        )
        facts = link.connect()
        self._link, self._facts = link, facts
        limits, chain, velocity = self._robot.limits, facts.chain, facts.velocity
        if limits.joint_low:
            low, high = np.maximum(chain.low, limits.joint_low), np.minimum(chain.high, limits.joint_high)
            chain = replace(chain, low=low, high=high)
        if limits.joint_velocity:
            velocity = np.minimum(velocity, limits.joint_velocity)
        self._motion = Motion(self._robot, chain, _SPEED * velocity)
        self.get_logger().info(f"connected to the arm at {self.param('address')}: {facts.versions}")

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _watch(self) -> None:
        if (link := self._link) is None:
            return
        if link.failure:
            raise EnvironmentSetupError(link.failure)
        if self._silence.look(link.state, self.monotonic()) > self._silence_s:
            raise EnvironmentSetupError(f"arm at {link.address}: nothing from it for {link.age:.2f} s")

    # Commands.

    def _on_command(self, message: Any) -> None:
        link = self._link
        if link is None or link.state is None:
            return
        if message.kind != Command.MOVE:
            self._hold(link, link.state)
            return
        try:
            measured = link.state.positions[:ARM_JOINTS]
            target = self._motion.move(message.names, message.values, measured)
        except DataError as error:
            self._refused, self._refusal = self._refused + 1, str(error)
            self.get_logger().warning(f"refused: {error}", throttle_duration_sec=1.0)
            self._hold(link, link.state)
            return
        self._held = False
        link.move(target.joints, target.seconds)
        if target.gripper is not None:
            link.grip(target.gripper, 1.0 / self._robot.rate_hz)

    def _hold(self, link: ArmLink, state: ArmState) -> None:
        # Once: holding again what gave way a little under load would let the arm creep down.
        if not self._held:
            link.move(state.positions[:ARM_JOINTS], 0.0)
        self._motion.hold()
        self._held = True

    # States.

    def _publish(self) -> None:
        state = self._link.state if self._link is not None else None
        if state is None:
            return
        self._states += 1
        stamp, robot = self.stamp(), self._robot
        joints = JointState(
            name=[*robot.joints.names, robot.joints.gripper or "gripper"],
            position=state.positions.tolist(),
            velocity=state.velocities.tolist(),
            effort=state.efforts.tolist(),
        )
        pose, wrench = PoseStamped(), WrenchStamped()
        for message in (joints, pose, wrench):
            message.header.stamp, message.header.frame_id = stamp, robot.frame
        place, turn = pose.pose.position, pose.pose.orientation
        place.x, place.y, place.z = state.tool[:3].tolist()
        turn.x, turn.y, turn.z, turn.w = quaternion_of(hand_rotation(rotation_of(state.tool[3:]))).tolist()
        force, torque = wrench.wrench.force, wrench.wrench.torque
        force.x, force.y, force.z, torque.x, torque.y, torque.z = state.wrench.tolist()
        self._joint_states.publish(joints)
        self._poses.publish(pose)
        self._wrenches.publish(wrench)


def main() -> None:
    run(WxaiRobot)


if __name__ == "__main__":
    main()
