"""Core types to messages, and topics to subscriptions. The other direction is `valueguide.ros.messages`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, WrenchStamped
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float32MultiArray
from valueguide_msgs import msg

from valueguide.config.robot import RobotConfig
from valueguide.ros.observe import ObservationBuilder, observation_topics
from valueguide.types import ActionChunk, Candidates, Decision
from valueguide_nodes.base import RELIABLE, SENSOR, VgNode

TYPES = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "geometry_msgs/msg/PoseStamped": PoseStamped,
    "geometry_msgs/msg/WrenchStamped": WrenchStamped,
    "std_msgs/msg/Float32MultiArray": Float32MultiArray,
}


def floats(values: Any) -> array:
    """Anything numeric as the flat float32 array that rclpy takes without looking at every element."""
    return array("f", np.ascontiguousarray(values, np.float32).tobytes())


def to_time(nanoseconds: int) -> Any:
    """builtin_interfaces/Time."""
    from builtin_interfaces.msg import Time

    seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def subscribe_observation(
    node: VgNode,
    robot: RobotConfig,
    builder: ObservationBuilder,
    cameras: Sequence[str],
    privileged: bool,
    received: Callable[[str, Any], None],
) -> None:
    """Subscribe to everything that `builder` needs; `received(role, message)` gets each message."""
    for role, (topic, kind) in observation_topics(robot, privileged).items():
        if role.startswith("camera/") and role.partition("/")[2] not in cameras:
            continue
        node.create_subscription(
            TYPES[kind], topic, lambda message, role=role: received(role, message), SENSOR
        )
    node.create_subscription(msg.Command, "command", lambda m: received("command", m), RELIABLE)


def command(
    node: VgNode,
    robot: RobotConfig,
    kind: int,
    values: Any = None,
    *,
    source: str = "hold",
    sequence: int = 0,
    chunk_id: int = -1,
    chunk_step: int = 0,
    reason: str = "",
) -> msg.Command:
    """A valueguide_msgs/Command stamped now."""
    out = msg.Command(
        kind=int(kind),
        names=robot.action.names,
        values=floats([] if values is None else values),
        source=source,
        sequence=sequence,
        chunk_id=chunk_id,
        chunk_step=chunk_step,
        reason=reason,
    )
    out.header.stamp, out.header.frame_id = node.stamp(), robot.frame
    return out


def candidates_message(
    request: msg.ChunkRequest, candidates: Candidates, stamp: int, start: int, policy_s: float, version: str
) -> msg.Candidates:
    k, horizon, dim = candidates.actions.shape
    out = msg.Candidates(
        request_id=request.request_id,
        episode_id=request.episode_id,
        instruction=request.instruction,
        mode=request.mode,
        k=k,
        horizon=horizon,
        action_dim=dim,
        actions=floats(candidates.actions),
        start=start,
        seed=request.seed,
        policy_s=policy_s,
        policy_version=version,
    )
    out.header.stamp = to_time(stamp)
    return out


def decision_message(
    proposal: Any, decision: Decision, chunk_id: int, critic_s: float, latency_s: float, version: str
) -> msg.Decision:
    """proposal: the Candidates message that was decided upon."""
    scores = msg.Scores()
    if decision.scores is not None and decision.values is not None:
        members, k = decision.scores.q.shape
        scores = msg.Scores(members=members, k=k, q=floats(decision.scores.q), values=floats(decision.values))
    return msg.Decision(
        header=proposal.header,
        request_id=proposal.request_id,
        episode_id=proposal.episode_id,
        chunk_id=chunk_id,
        index=decision.index,
        preferred=decision.preferred,
        reason=decision.reason,
        scores=scores,
        seed=decision.seed,
        policy_s=proposal.policy_s,
        critic_s=critic_s,
        latency_s=latency_s,
        critic_version=version,
    )


def chunk_message(proposal: Any, chunk: ActionChunk, policy: str, critic: str) -> msg.ActionChunk:
    horizon, dim = chunk.actions.shape
    return msg.ActionChunk(
        header=proposal.header,
        request_id=proposal.request_id,
        episode_id=proposal.episode_id,
        chunk_id=chunk.chunk_id,
        horizon=horizon,
        action_dim=dim,
        actions=floats(chunk.actions),
        start=proposal.start,
        end=chunk.executed_length,
        policy_version=policy,
        critic_version=critic,
    )
