"""The topics of the graph as data; docs/ros.md says what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError
from valueguide.ros.observe import COMMAND, observation_topics

QosName = Literal["sensor", "reliable", "latched"]
#: Roles of the topics that make up an episode, beside those of `observation_topics`.
TASK, CHUNK, CANDIDATES, DECISION, SAFETY = "task", "chunk", "candidates", "decision", "safety_state"
HELP = "help"
EPISODE_ROLES = (COMMAND, TASK, CHUNK, CANDIDATES, DECISION, SAFETY, HELP)

_OWN: dict[str, tuple[str, QosName]] = {
    "task": ("valueguide_msgs/msg/Task", "latched"),
    "chunk_request": ("valueguide_msgs/msg/ChunkRequest", "reliable"),
    "candidates": ("valueguide_msgs/msg/Candidates", "reliable"),
    "decision": ("valueguide_msgs/msg/Decision", "reliable"),
    "shadow_decision": ("valueguide_msgs/msg/Decision", "reliable"),
    "chunk": ("valueguide_msgs/msg/ActionChunk", "reliable"),
    "teleop_command": ("valueguide_msgs/msg/Command", "reliable"),
    "intervention": ("valueguide_msgs/msg/InterventionState", "latched"),
    "proposed_command": ("valueguide_msgs/msg/Command", "reliable"),
    "command": ("valueguide_msgs/msg/Command", "reliable"),
    "safety_state": ("valueguide_msgs/msg/SafetyState", "latched"),
    "executor_state": ("valueguide_msgs/msg/ExecutorState", "reliable"),
    "progress": ("valueguide_msgs/msg/Progress", "reliable"),
    "help": ("valueguide_msgs/msg/HelpRequest", "reliable"),
    "critic_version": ("valueguide_msgs/msg/CriticVersion", "latched"),
    "estop": ("std_msgs/msg/Bool", "reliable"),
    "heartbeat": ("valueguide_msgs/msg/Heartbeat", "reliable"),
    "sim_truth": ("valueguide_msgs/msg/Progress", "reliable"),
    "/clock": ("rosgraph_msgs/msg/Clock", "sensor"),
    "/diagnostics": ("diagnostic_msgs/msg/DiagnosticArray", "reliable"),
}


@dataclass(frozen=True)
class Topic:
    """One topic. name: relative to the graph's namespace unless it starts with "/".

    type: package/msg/Name. role: what it is to the episode assembler; empty: recorded only.
    """

    name: str
    type: str
    qos: QosName
    role: str = ""


def recorded_topics(robot: RobotConfig, privileged: bool = True) -> list[Topic]:
    """All topics of the graph with this robot, those of its description first.

    privileged: whether the simulator's state, where the description names it, is part of an observation.
    """
    privileged = privileged and bool(robot.environment_state_topic)
    topics = [
        Topic(name, kind, "sensor", role)
        for role, (name, kind) in observation_topics(robot, privileged).items()
    ]
    if robot.environment_state_topic and not privileged:
        topics.append(Topic(robot.environment_state_topic, "std_msgs/msg/Float32MultiArray", "sensor"))
    if robot.wrench_topic:
        topics.append(Topic(robot.wrench_topic, "geometry_msgs/msg/WrenchStamped", "sensor"))
    if robot.output.kind == "joint_trajectory":
        for name in (robot.output.topic, robot.output.gripper_topic):
            if name:
                topics.append(Topic(name, "trajectory_msgs/msg/JointTrajectory", "reliable"))
    for name, (kind, qos) in _OWN.items():
        topics.append(Topic(name, kind, qos, name if name in EPISODE_ROLES else ""))
    return topics


def match_topics(topics: list[Topic], found: list[str], namespace: str | None) -> dict[str, Topic]:
    """Full topic name in a bag -> the graph's topic. namespace: where the graph was; None: not known.

    Raises DataError when, without a namespace, one of the graph's topics occurs under several.
    """
    matched: dict[str, Topic] = {}
    for topic in topics:
        if topic.name.startswith("/") or namespace is not None:
            full = resolve(topic.name, namespace or "")
            names = [name for name in found if name == full]
        else:
            names = [name for name in found if name == topic.name or name.endswith("/" + topic.name)]
        if len(names) > 1:
            found_names = ", ".join(names)
            raise DataError(f"topic {topic.name}: expected one, found {found_names}. Say which namespace")
        matched.update({name: topic for name in names})
    return matched


def resolve(name: str, namespace: str) -> str:
    """A relative topic name in full, as ROS resolves it."""
    if name.startswith("/"):
        return name
    return "/" + "/".join(part for part in (namespace.strip("/"), name) if part)
