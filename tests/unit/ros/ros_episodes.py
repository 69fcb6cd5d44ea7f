"""A small robot, random episodes that the graph can produce, and their messages in any order of arrival."""

from __future__ import annotations

from typing import Any

import numpy as np

from valueguide.config.robot import ActionSpec, Camera, Joints, RobotConfig, Sync
from valueguide.errors import DataError
from valueguide.ros.assemble import EpisodeAssembler
from valueguide.ros.export import Outgoing, episode_messages
from valueguide.safety.limits import Limits
from valueguide.types import Candidates, Decision, Episode, Observation, Scores, Step

PERIOD = 100_000_000
START = 1_700_000_000_000_000_000
ROBOT = RobotConfig(
    name="small",
    rate_hz=10.0,
    action=ActionSpec("cartesian_delta", ["dx", "dy", "grip"]),
    limits=Limits((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0)),
    state=["pose.x", "pose.yaw", "position.j1", "gripper", "gripper_command"],
    joints=Joints(names=["j1", "j2"], gripper="g", gripper_closed=0.0, gripper_open=0.044),
    pose_topic="ee_pose",
    environment_state_topic="environment_state",
    cameras={"front": Camera("front/image"), "wrist": Camera("wrist/image", "compressed")},
    sync=Sync(tolerance_s=0.06, stale_s=0.5),
)
SIZES = {"front": (6, 8), "wrist": (4, 4)}


def observation(rng: np.random.Generator, stamp: int, command: float, task: str) -> Observation:
    state = [rng.normal(), rng.uniform(-3.1, 3.1), rng.normal(), rng.uniform(), command]
    return Observation(
        {name: rng.integers(0, 256, (*size, 3)).astype(np.uint8) for name, size in SIZES.items()},
        np.array(state, np.float32),
        task,
        stamp,
        rng.normal(size=2).astype(np.float32),
    )


def make_episode(
    seed: int, sources: str = "PPPHH-PP", ending: str = "success", executed: int = 3, start: int = START
) -> Episode:
    """sources: one letter a step: P policy, H human, - hold. A plan runs at most `executed` steps."""
    rng = np.random.default_rng(seed)
    task = ("open the drawer", "put the carrot on the plate")[seed % 2]
    names = {"P": "policy", "H": "human", "-": "hold"}
    steps: list[Step] = []
    chunk, number, grip = -1, 0, float(np.float32(rng.uniform()))
    for i, letter in enumerate(sources):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        action[2] = abs(action[2])
        if letter == "-":
            action = np.array([0, 0, steps[-1].action[2]], np.float32)
        seen = observation(rng, start + i * PERIOD, grip, task)
        step = Step(seen, action, source=names[letter], intervention=letter == "H")  # type: ignore[arg-type]
        if letter == "P":
            fresh = i == 0 or steps[-1].source != "policy" or number == executed - 1
            chunk, number = (chunk + 1, 0) if fresh else (chunk, number + 1)
            _plan(rng, step, steps, chunk, number)
        grip = float(action[2])
        steps.append(step)
    for step in steps:
        if step.chunk_id >= 0:
            step.executed_length = sum(other.chunk_id == step.chunk_id for other in steps)
    last = steps[-1]
    last.success, last.reward = ending == "success", float(ending == "success")
    last.truncated = ending == "time_limit"
    last.terminated = not last.truncated
    final = observation(rng, start + len(steps) * PERIOD, grip, task)
    return Episode(steps, final, task, {"mode": "guided", "reason": ending, "seed": seed})


def _plan(rng: np.random.Generator, step: Step, steps: list[Step], chunk: int, number: int) -> None:
    step.chunk_id, step.chunk_step = chunk, number
    step.policy_version, step.critic_version = "base-1", "calql-2"
    if number:
        step.planned_chunk = steps[-1].planned_chunk
        return
    q = rng.normal(size=(2, 3)).astype(np.float32)
    step.candidates = Candidates(rng.normal(size=(3, 4, 3)).astype(np.float32))
    step.planned_chunk = step.candidates.actions[1]
    step.decision = Decision(1, "argmax", 1, q.min(0), Scores(q), -1, 0.25)


def arrivals(
    messages: list[Outgoing], rng: np.random.Generator | None = None, late_ns: int = 0
) -> list[tuple[Outgoing, int]]:
    """(message, when it arrives): delayed at random by up to `late_ns`, but in order within a topic."""
    last: dict[str, int] = {}
    found = []
    for entry in messages:
        delay = 0 if rng is None or entry.role == "environment_state" else int(rng.integers(0, late_ns + 1))
        last[entry.role] = max(last.get(entry.role, 0), entry.stamp + delay)
        found.append((entry, last[entry.role]))
    return sorted(found, key=lambda pair: pair[1])


def feed(
    messages: list[tuple[Outgoing, int]], assembler: EpisodeAssembler | None = None, **settings: Any
) -> list[Episode | DataError]:
    assembler = assembler or EpisodeAssembler(ROBOT, **settings)
    return [r for entry, at in messages for r in assembler.feed(entry.role, entry.message, at)]


def assembled(episode: Episode, **settings: Any) -> Episode:
    """The episode told in messages and put together again."""
    (found,) = feed(arrivals(episode_messages(ROBOT, episode, 7)), **settings)
    assert isinstance(found, Episode), found
    return found


def assert_same_observation(a: Observation, b: Observation) -> None:
    assert a.images.keys() == b.images.keys()
    for name in a.images:
        np.testing.assert_array_equal(a.images[name], b.images[name])
    np.testing.assert_array_equal(a.state, b.state)
    assert (a.environment_state is None) == (b.environment_state is None)
    if a.environment_state is not None:
        np.testing.assert_array_equal(a.environment_state, b.environment_state)
    assert (a.task, a.stamp_ns) == (b.task, b.stamp_ns)


def assert_same_episode(a: Episode, b: Episode) -> None:
    assert a.task == b.task
    assert len(a.steps) == len(b.steps)
    outcome = ("reward", "terminated", "truncated", "success", "source", "intervention")
    plan = ("chunk_id", "chunk_step", "executed_length", "policy_version", "critic_version")
    for i, (x, y) in enumerate(zip(a.steps, b.steps, strict=True)):
        assert_same_observation(x.observation, y.observation)
        np.testing.assert_array_equal(x.action, y.action)
        for name in (*outcome, *plan):
            assert getattr(x, name) == getattr(y, name), f"step {i}: {name}"
        assert (x.planned_chunk is None) == (y.planned_chunk is None), f"step {i}"
        if x.planned_chunk is not None:
            np.testing.assert_array_equal(x.planned_chunk, y.planned_chunk)
        _same_decision(x, y)
    assert_same_observation(a.final_observation, b.final_observation)


def _same_decision(a: Step, b: Step) -> None:
    assert (a.candidates is None) == (b.candidates is None)
    if a.candidates is not None and b.candidates is not None:
        np.testing.assert_array_equal(a.candidates.actions, b.candidates.actions)
    assert (a.decision is None) == (b.decision is None)
    if a.decision is None or b.decision is None:
        return
    for name in ("index", "reason", "preferred", "seed", "latency_s"):
        assert getattr(a.decision, name) == getattr(b.decision, name)
    np.testing.assert_array_equal(a.decision.values, b.decision.values)
    np.testing.assert_array_equal(a.decision.scores.q, b.decision.scores.q)
