"""A fake arm behind a fake ros2_control, which follows JointTrajectory as the real controller does.

For tests of what is sent to such arms; it has no dynamics: the arm is always where its trajectory says.
    python -m valueguide.testing.fake_controller --ros-args -p robot:=ur5e
It takes the arm's and the gripper's topics from the robot's description and publishes `joint_states`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Where a UR's and a Franka's joints are harmless; others start at the middle of their range.
_START = {
    "ur5e": (0.0, -1.57, 1.57, -1.57, -1.57, 0.0),
    "franka": (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785),
}


@dataclass
class FakeTrajectoryController:
    """One group of joints. Times are seconds of one clock. `rejected` lists why messages were not taken."""

    names: Sequence[str]
    positions: Array

    def __post_init__(self) -> None:
        self._times: Array = np.zeros(1)
        self._points: Array = np.asarray(self.positions, np.float64)[None]
        self.accepted = 0
        self.rejected: list[str] = []

    def accept(
        self, names: Sequence[str], points: Sequence[tuple[float, Sequence[float]]], stamp: float, now: float
    ) -> str | None:
        """A new trajectory takes over from here. points: (time from start, positions). stamp 0: start now.

        Returns the reason when it is rejected, and keeps the old one then.
        """
        reason = self._refusal(names, points, stamp, now)
        if reason:
            self.rejected.append(reason)
            return reason
        order = [list(names).index(name) for name in self.names]
        here, start = self.sample(now)[0], stamp or now
        targets = [np.asarray(positions, np.float64)[order] for _, positions in points]
        # As the real one: from the present state, even where the start lies a little in the past or future.
        self._times = np.array([now, *(max(start + seconds, now) for seconds, _ in points)])
        self._points = np.stack([here, *targets])
        self.accepted += 1
        return None

    def sample(self, now: float) -> tuple[Array, Array]:
        """Positions and velocities of the joints."""
        positions = np.array([np.interp(now, self._times, column) for column in self._points.T])
        i = int(np.searchsorted(self._times, now, side="right"))
        if i == 0 or i == len(self._times):
            return positions, np.zeros(len(positions))
        span = self._times[i] - self._times[i - 1]
        return positions, (self._points[i] - self._points[i - 1]) / span

    def _refusal(self, names: Any, points: Any, stamp: float, now: float) -> str | None:
        if sorted(names) != sorted(self.names):
            return f"joints: expected {', '.join(self.names)}, found {', '.join(names)}"
        if not points:
            return "no points"
        if any(len(positions) != len(names) for _, positions in points):
            return "a point without a position for every joint"
        if not all(np.isfinite(positions).all() for _, positions in points):
            return "a position that is not finite"
        seconds = [s for s, _ in points]
        if any(later <= earlier for earlier, later in zip(seconds, seconds[1:], strict=False)):
            return "times that do not increase"
        if stamp and stamp + seconds[-1] < now:
            return f"ends {now - stamp - seconds[-1]:.3f} s in the past"
        return None


def main(args: list[str] | None = None) -> None:
    """The node `fake_controller`. Parameters: robot, rate_hz."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import JointState
    from trajectory_msgs.msg import JointTrajectory

    from valueguide.config.robot import load_robot

    rclpy.init(args=args)
    node = rclpy.create_node("fake_controller")
    robot = load_robot(node.declare_parameter("robot", "ur5e").value)
    middle = (np.array(robot.limits.joint_low) + np.array(robot.limits.joint_high)) / 2
    groups = [FakeTrajectoryController(robot.joints.names, np.array(_START.get(robot.name, middle)))]
    topics = [robot.output.topic]
    if robot.joints.gripper:
        groups.append(FakeTrajectoryController([robot.joints.gripper], np.array([robot.joints.gripper_open])))
        topics.append(robot.output.gripper_topic)
    publisher = node.create_publisher(JointState, robot.joints.topic, 10)

    def seconds(time: Any) -> float:
        return float(time.sec) + float(time.nanosec) * 1e-9

    def now() -> float:
        return float(node.get_clock().now().nanoseconds) * 1e-9

    def listen(group: FakeTrajectoryController, topic: str) -> None:
        def take(message: Any) -> None:
            points = [(seconds(p.time_from_start), list(p.positions)) for p in message.points]
            reason = group.accept(message.joint_names, points, seconds(message.header.stamp), now())
            if reason:
                node.get_logger().error(f"rejected: {reason}")

        node.create_subscription(JointTrajectory, topic, take, 10)

    def tell() -> None:
        message, time = JointState(), now()
        message.header.stamp = node.get_clock().now().to_msg()
        # Backwards, as order is free and readers must go by name.
        for group in reversed(groups):
            positions, velocities = group.sample(time)
            message.name = [*message.name, *group.names]
            message.position = [*message.position, *positions.tolist()]
            message.velocity = [*message.velocity, *velocities.tolist()]
        publisher.publish(message)

    for group, topic in zip(groups, topics, strict=True):
        listen(group, topic)
    node.create_timer(1.0 / node.declare_parameter("rate_hz", 100.0).value, tell)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
