"""What `sim_robot` measures, as ROS messages."""

from __future__ import annotations

from collections.abc import Collection

import cv2
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, WrenchStamped
from sensor_msgs.msg import CompressedImage, Image
from sensor_msgs.msg import JointState as JointStateMessage
from valueguide_msgs.msg import Progress

from sim.robot import HandPose, JointState, Truth
from valueguide.types import UInt8

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
_NAN = float("nan")


def joints(state: JointState, stamp: Time, broken: Collection[str]) -> JointStateMessage:
    """broken: joints whose position reads NaN."""
    measured = zip(state.names, state.positions.tolist(), strict=True)
    message = JointStateMessage(
        name=state.names,
        position=[_NAN if name in broken else position for name, position in measured],
        velocity=state.velocities.tolist(),
        effort=state.efforts.tolist(),
    )
    message.header.stamp = stamp
    return message


def pose(hand: HandPose, stamp: Time, frame: str, broken: bool) -> PoseStamped:
    """broken: the position reads NaN."""
    message = PoseStamped()
    message.header.stamp, message.header.frame_id = stamp, frame
    point, turn = message.pose.position, message.pose.orientation
    point.x, point.y, point.z = [_NAN] * 3 if broken else hand.position.tolist()
    turn.x, turn.y, turn.z, turn.w = hand.orientation.tolist()
    return message


def wrench(newtons: float, stamp: Time, frame: str) -> WrenchStamped:
    """A sum over all contacts has a size and no direction; it is given along z."""
    message = WrenchStamped()
    message.header.stamp, message.header.frame_id = stamp, frame
    message.wrench.force.z = newtons
    return message


def image(picture: UInt8, stamp: Time, frame: str, compressed: bool) -> Image | CompressedImage:
    """picture: uint8 (height, width, 3), RGB; as rgb8, or as a JPEG."""
    if compressed:
        _, data = cv2.imencode(".jpg", picture[:, :, ::-1], _JPEG)
        message = CompressedImage(format="jpeg", data=data.tobytes())
    else:
        height, width = picture.shape[:2]
        # As bytes: rclpy converts anything else value by value.
        data = picture.tobytes()
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width, data=data)
    message.header.stamp, message.header.frame_id = stamp, frame
    return message


def truth(found: Truth, stamp: Time) -> Progress:
    """detail: why it failed."""
    message = Progress(value=found.progress, confidence=1.0, status="ok", detail=found.failure)
    message.success, message.failure = found.success, bool(found.failure)
    message.header.stamp = stamp
    return message
