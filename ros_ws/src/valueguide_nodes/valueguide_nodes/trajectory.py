"""Joint commands as trajectories for ros2_control's joint_trajectory_controller.

Every trajectory is one point: the controller interpolates from where it is to there, and stays there when
no next one comes. A point without velocities makes the interpolation linear, as it is between control steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError, mismatch

#: Seconds in which a held arm comes to rest at its measured pose. The set-point runs ahead of the measured
#: pose; taking it back in one controller cycle would be a jump, which UR and Franka answer with a stop.
HOLD_S = 0.1


def to_trajectory(
    robot: RobotConfig, values: Any, stamp: Any, period_s: float
) -> tuple[JointTrajectory, JointTrajectory | None]:
    """One `joint_position` action as the arm's and the gripper's trajectory (None without a gripper).

    values: (J,) radians in the order of `robot.joints.names`, then the gripper, 0 closed … 1 open, when the
    robot has one. stamp: builtin_interfaces/Time at which it starts, or None: as it arrives, which needs no
    synchronised clocks. A controller drops a trajectory that would be over already (stamp + period_s).
    Raises DataError for a wrong number of values, or one that is not finite.
    """
    action = np.asarray(values, np.float64).reshape(-1)
    joints = len(robot.joints.names)
    expected = joints + bool(robot.joints.gripper)
    if action.size != expected:
        raise DataError(mismatch(f"robot {robot.name}", "command", f"{expected} values", action.size))
    arm = _trajectory(robot, robot.joints.names, action[:joints], stamp, period_s)
    if not robot.joints.gripper:
        return arm, None
    closed, opened = robot.joints.gripper_closed, robot.joints.gripper_open
    position = closed + float(np.clip(action[joints], 0.0, 1.0)) * (opened - closed)
    if not np.isfinite(position):
        raise DataError(f"robot {robot.name}: command gripper: not a finite number")
    return arm, _trajectory(robot, [robot.joints.gripper], [position], stamp, period_s)


def to_hold(robot: RobotConfig, joints: Any) -> JointTrajectory:
    """The arm's trajectory that keeps it where it is. joints: (J,) as measured, radians.

    The gripper gets none: holding its measured opening would let go of what it grips.
    Raises DataError as `to_trajectory`.
    """
    measured = np.asarray(joints, np.float64).reshape(-1)
    if measured.size != len(robot.joints.names):
        expected = f"{len(robot.joints.names)} joints"
        raise DataError(mismatch(f"robot {robot.name}", "hold", expected, measured.size))
    return _trajectory(robot, robot.joints.names, measured, None, HOLD_S)


def _trajectory(
    robot: RobotConfig, names: Sequence[str], positions: Any, stamp: Any, seconds: float
) -> JointTrajectory:
    finite = np.isfinite(np.asarray(positions, np.float64))
    if not finite.all():
        raise DataError(f"robot {robot.name}: command {names[int(np.argmin(finite))]}: not a finite number")
    whole = int(seconds)
    duration = Duration(sec=whole, nanosec=int(round((seconds - whole) * 1e9)))
    point = JointTrajectoryPoint(positions=[float(p) for p in positions], time_from_start=duration)
    trajectory = JointTrajectory(joint_names=list(names), points=[point])
    if stamp is not None:
        trajectory.header.stamp = stamp
    return trajectory
