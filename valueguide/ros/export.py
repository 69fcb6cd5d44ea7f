"""Dataset episodes back into bags: the messages from which the assembler makes the same episode again.

Cameras, joints and poses get the stamp of their observation, which is that of its oldest part. Each episode
becomes a session of its own, because simulated episodes all begin at time 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace as Record
from typing import Any

import numpy as np
from mcap_ros2._dynamic import serialize_dynamic

from valueguide.config.robot import Camera, RobotConfig
from valueguide.data.images import encode_image
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import DataError, mismatch
from valueguide.ros.assemble import EpisodeAssembler
from valueguide.ros.bag import BagWriter
from valueguide.ros.bag_import import EPISODE_FACTS
from valueguide.ros.definitions import definition
from valueguide.ros.observe import COMMAND, JOINTS, POSE, PRIVILEGED
from valueguide.ros.recording import bag_facts
from valueguide.ros.topics import CANDIDATES, CHUNK, DECISION, SAFETY, TASK, recorded_topics, resolve
from valueguide.safety.gate import Kind
from valueguide.types import Episode, Observation, Step, UInt8


@dataclass(frozen=True)
class Outgoing:
    """One message to write. role: of valueguide.ros.topics. message: attributes as in the ROS message."""

    role: str
    message: Any
    stamp: int


def export_dataset(
    dataset: str | Path, out: str | Path, robot: RobotConfig, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Write every episode of the dataset as one MCAP file in the folder `out`.

    progress: called with 1 after each episode. Each is assembled again and compared before it is written;
    `lost` counts what messages cannot carry (dense rewards, versions of demonstrators). Raises DataError
    where the dataset does not fit the robot, or an episode would come back with other pictures, states,
    actions, stamps or sources.
    """
    opened = EpisodeDataset.open(dataset)
    _check_fits(opened, robot)
    out = Path(out)
    if out.is_dir() and any(out.glob("*.mcap")):
        raise DataError(f"{out}: expected a new folder, found a bag in it")
    privileged = opened.environment_state is not None
    topics = {topic.role: topic for topic in recorded_topics(robot, privileged) if topic.role}
    lost: dict[str, int] = {}
    messages = 0
    for number in range(opened.episodes):
        episode = opened.to_episode(number)
        outgoing = episode_messages(robot, episode, number)
        for name in compare(robot, episode, outgoing, privileged, f"{dataset}: episode {number}"):
            lost[name] = lost.get(name, 0) + 1
        with BagWriter(out, bag_facts(robot, "", privileged), session=f"episode-{number:06d}") as writer:
            facts = {"episode_id": str(number), "metadata": json.dumps(episode.metadata)}
            writer.add_facts(EPISODE_FACTS, facts)
            for entry in outgoing:
                topic = topics[entry.role]
                name = resolve(topic.name, "")
                writer.write(name, topic.type, serialize(topic.type, entry.message), entry.stamp)
            messages += writer.messages
        progress(1)
    return {
        "dataset": str(dataset),
        "bag": str(out),
        "episodes": opened.episodes,
        "messages": messages,
        "lost": lost,
    }


_ENCODERS: dict[str, Callable[[Any], bytes]] = {}


def serialize(type_name: str, message: Any) -> bytes:
    """CDR bytes of a message given as an object or dictionary."""
    if type_name not in _ENCODERS:
        _ENCODERS[type_name] = serialize_dynamic(type_name, definition(type_name))[type_name]
    return _ENCODERS[type_name](message)


def episode_messages(robot: RobotConfig, episode: Episode, number: int) -> list[Outgoing]:
    """The episode as messages in order of their stamps; `number` is its episode_id."""
    period = round(1e9 / robot.rate_hz)
    stamps = _command_stamps(episode, period)
    sent: list[Outgoing] = []
    seen: set[int] = set()
    for step in episode.steps:
        if step.observation.stamp_ns not in seen:
            seen.add(step.observation.stamp_ns)
            sent += _observation(robot, step.observation)
    sent += _observation(robot, episode.final_observation)
    before = _earlier_grip(robot, episode)
    if before is not None:
        sent.insert(0, before)
    meta = episode.metadata
    task = Record(
        active=True,
        episode_id=number,
        instruction=episode.task,
        mode=str(meta.get("mode", "")),
        finished=False,
        success=False,
        truncated=False,
        reason="",
        seed=_whole(meta.get("seed")),
    )
    end_ns = stamps[-1] + period // 2 + period // 4
    end = Record(**{**vars(task), "active": False, "finished": True})
    end.success, end.truncated = episode.steps[-1].success, episode.steps[-1].truncated
    end.reason = str(meta.get("reason", ""))
    sent.append(Outgoing(TASK, _stamped(task, stamps[0]), stamps[0]))
    sent += _plans(episode, stamps, number)
    for i, (step, stamp) in enumerate(zip(episode.steps, stamps, strict=True)):
        if step.source != "hold":
            sent.append(Outgoing(COMMAND, _command(robot, step, i, stamp), stamp))
    sent.append(Outgoing(TASK, _stamped(end, end_ns), end_ns))
    sent.sort(key=lambda entry: entry.stamp)
    # Time passes once more, so that whoever reads knows that nothing else belongs to the episode.
    rest = max(sent[-1].stamp, end_ns) + round(4e9 * robot.sync.stale_s)
    safety = Record(
        state=0, reason="", passed=0, rejected=0, rejected_sequence=-1, contact_force=float("nan")
    )
    return [*sent, Outgoing(SAFETY, _stamped(safety, rest), rest)]


def compare(
    robot: RobotConfig, episode: Episode, outgoing: list[Outgoing], privileged: bool, where: str
) -> list[str]:
    """Assemble the messages and compare: the lesser fields that differ. Raises DataError for graver ones."""
    assembler = EpisodeAssembler(robot, privileged=privileged, frozen_s=0.0)
    found = [r for entry in outgoing for r in assembler.feed(entry.role, entry.message, entry.stamp)]
    if len(found) != 1 or isinstance(found[0], DataError):
        raise DataError(f"{where}: cannot be told in messages: {found[0] if found else 'it has no end'}")
    again = found[0]
    if len(again.steps) != len(episode.steps):
        raise DataError(mismatch(where, "steps in the bag", len(episode.steps), len(again.steps)))
    lost: set[str] = set()
    pairs = [(a, b, f"step {i}") for i, (a, b) in enumerate(zip(episode.steps, again.steps, strict=True))]
    for a, b, name in pairs:
        difference = _difference(a.observation, b.observation)
        if not difference and not np.array_equal(a.action, b.action):
            difference = "action"
        if not difference and a.source != b.source:
            difference = "source"
        if difference:
            raise DataError(f"{where}: {name}: {difference} cannot be told in messages")
        lost |= {field for field in _LESSER if getattr(a, field) != getattr(b, field)}
    if difference := _difference(episode.final_observation, again.final_observation):
        raise DataError(f"{where}: final observation: {difference} cannot be told in messages")
    return sorted(lost)


_OUTCOME = ("reward", "terminated", "truncated", "success")
_PLAN = ("chunk_id", "chunk_step", "executed_length", "policy_version", "critic_version")
_LESSER = (*_OUTCOME, *_PLAN)


def _difference(a: Observation, b: Observation) -> str:
    """The first part in which they differ, or nothing."""
    if any(not np.array_equal(a.images[name], b.images[name]) for name in a.images):
        return "image"
    if not np.array_equal(a.state, b.state):
        return "state"
    ours, theirs = a.environment_state, b.environment_state
    if ours is not None and (theirs is None or not np.array_equal(ours, theirs)):
        return "environment_state"
    return "" if a.stamp_ns == b.stamp_ns else "stamp"


def _check_fits(dataset: EpisodeDataset, robot: RobotConfig) -> None:
    where = f"{dataset.root}: for robot {robot.name}"
    for name, expected, found in (
        ("cameras", sorted(robot.cameras), sorted(dataset.cameras)),
        ("state", len(robot.state), dataset.state.shape[1]),
        ("action", len(robot.action.names), dataset.action.shape[1]),
        ("frames per second", robot.rate_hz, dataset.fps),
    ):
        if expected != found:
            raise DataError(mismatch(where, name, expected, found))
    if dataset.environment_state is not None and not robot.environment_state_topic:
        raise DataError(mismatch(where, "environment_state_topic", "a topic", "none"))


def _command_stamps(episode: Episode, period: int) -> list[int]:
    """When each command was issued: as recorded, or shortly after its observation."""
    seen = [step.observation.stamp_ns for step in episode.steps]
    ages = episode.metadata.get("observation_age_ns")
    if isinstance(ages, list) and len(ages) == len(seen):
        return [stamp + int(age) for stamp, age in zip(seen, ages, strict=True)]
    return [stamp + period // 100 for stamp in seen]


def _observation(robot: RobotConfig, observation: Observation) -> Iterator[Outgoing]:
    stamp = observation.stamp_ns
    for name, image in observation.images.items():
        yield Outgoing(f"camera/{name}", _stamped(_image(image, robot.cameras[name]), stamp), stamp)
    state = dict(zip(robot.state, map(float, observation.state), strict=True))
    if observation.environment_state is not None:
        data = [float(v) for v in observation.environment_state]
        layout = Record(dim=[], data_offset=0)
        yield Outgoing(PRIVILEGED, Record(layout=layout, data=data), stamp)
    yield Outgoing(JOINTS, _stamped(_joints(robot, state), stamp), stamp)
    if robot.pose_topic:
        yield Outgoing(POSE, _stamped(_pose(robot, state), stamp), stamp)


def _image(image: UInt8, camera: Camera) -> Record:
    if camera.kind == "compressed":
        return Record(format="png", data=encode_image(image, "png"))
    height, width, _ = image.shape
    return Record(
        height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width, data=image.tobytes()
    )


def _joints(robot: RobotConfig, state: dict[str, float]) -> Record:
    """What the state does not tell is NaN."""
    names = [*robot.joints.names, *([robot.joints.gripper] if robot.joints.gripper else [])]
    fields = {
        field: [state.get(f"{field}.{name}", float("nan")) for name in names]
        for field in ("position", "velocity", "effort")
    }
    opening = state.get("gripper", state.get("gripper_command"))
    if robot.joints.gripper and opening is not None and f"position.{robot.joints.gripper}" not in state:
        closed, opened = robot.joints.gripper_closed, robot.joints.gripper_open
        fields["position"][-1] = closed + opening * (opened - closed)
    return Record(name=names, **fields)


def _pose(robot: RobotConfig, state: dict[str, float]) -> Record:
    x, y, z = (state.get(f"pose.{axis}", float("nan")) for axis in "xyz")
    yaw = state.get("pose.yaw", float("nan")) - robot.yaw_offset
    orientation = Record(x=0.0, y=0.0, z=float(np.sin(yaw / 2)), w=float(np.cos(yaw / 2)))
    return Record(pose=Record(position=Record(x=x, y=y, z=z), orientation=orientation))


def _earlier_grip(robot: RobotConfig, episode: Episode) -> Outgoing | None:
    """The command before the episode that the first state remembers."""
    first = episode.steps[0].observation
    if "gripper_command" not in robot.state:
        return None
    values = [0.0] * (len(robot.action.names) - 1)
    values.append(float(first.state[robot.state.index("gripper_command")]))
    message = Record(
        kind=int(Kind.MOVE), names=list(robot.action.names), values=values, source="policy", sequence=-1
    )
    message.chunk_id, message.chunk_step, message.reason = -1, 0, ""
    stamp = max(0, first.stamp_ns - 1)
    return Outgoing(COMMAND, _stamped(message, stamp), stamp)


def _command(robot: RobotConfig, step: Step, sequence: int, stamp: int) -> Record:
    message = Record(
        kind=int(Kind.MOVE),
        names=list(robot.action.names),
        values=[float(v) for v in step.action],
        source=step.source,
        sequence=sequence,
        chunk_id=step.chunk_id,
        chunk_step=step.chunk_step,
        reason="",
    )
    return _stamped(message, stamp)


def _plans(episode: Episode, stamps: list[int], number: int) -> Iterator[Outgoing]:
    """Chunk, candidates and decision of every plan, when the first of its steps is sent."""
    recorded = {plan["chunk_id"]: plan for plan in episode.metadata.get("plans", [])}
    seen: set[int] = set()
    for step, stamp in zip(episode.steps, stamps, strict=True):
        if step.chunk_id < 0 or step.chunk_id in seen:
            continue
        seen.add(step.chunk_id)
        plan = recorded.get(step.chunk_id, {})
        chunk = step.planned_chunk if step.planned_chunk is not None else step.action[None]
        request = int(plan.get("request_id", step.chunk_id))
        seen_at = int(plan.get("stamp_ns", step.observation.stamp_ns))
        start = int(plan.get("start", step.chunk_step))
        shared = {"request_id": request, "episode_id": number, "action_dim": chunk.shape[1]}
        if step.candidates is not None:
            yield Outgoing(CANDIDATES, _stamped(_candidates(step, episode, shared, start), seen_at), stamp)
        if step.decision is not None:
            yield Outgoing(DECISION, _stamped(_decision(step, shared), seen_at), stamp)
        message = Record(
            **shared,
            chunk_id=step.chunk_id,
            horizon=len(chunk),
            actions=[float(v) for v in chunk.ravel()],
            start=start,
            end=int(plan.get("end", start + step.executed_length)),
            policy_version=step.policy_version,
            critic_version=step.critic_version,
        )
        yield Outgoing(CHUNK, _stamped(message, seen_at), stamp)


def _candidates(step: Step, episode: Episode, shared: dict[str, int], start: int) -> Record:
    assert step.candidates is not None
    k, horizon, _ = step.candidates.actions.shape
    return Record(
        **shared,
        instruction=episode.task,
        mode=str(episode.metadata.get("mode", "")),
        k=k,
        horizon=horizon,
        actions=[float(v) for v in step.candidates.actions.ravel()],
        start=start,
        seed=0,
        policy_s=0.0,
        policy_version=step.policy_version,
    )


def _decision(step: Step, shared: dict[str, int]) -> Record:
    decision = step.decision
    assert decision is not None
    q = np.zeros((0, 0), np.float32) if decision.scores is None else decision.scores.q
    values = [] if decision.values is None else [float(v) for v in decision.values]
    return Record(
        request_id=shared["request_id"],
        episode_id=shared["episode_id"],
        chunk_id=step.chunk_id,
        index=decision.index,
        preferred=decision.preferred,
        reason=decision.reason,
        scores=Record(members=len(q), k=q.shape[1], q=[float(v) for v in q.ravel()], values=values),
        seed=decision.seed,
        policy_s=0.0,
        critic_s=0.0,
        latency_s=decision.latency_s,
        critic_version=step.critic_version,
    )


def _stamped(message: Record, stamp: int) -> Record:
    seconds, nanoseconds = divmod(stamp, 1_000_000_000)
    message.header = Record(stamp=Record(sec=seconds, nanosec=nanoseconds), frame_id="")
    return message


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
