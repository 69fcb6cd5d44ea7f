"""One episode from its parts: steps that were taken, the plans behind them, and how it ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from valueguide import __version__
from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError, mismatch
from valueguide.ros.messages import candidates_from, chunk_from, decision_from, stamp_ns
from valueguide.ros.topics import CANDIDATES, CHUNK, DECISION, HELP
from valueguide.types import SOURCES, Episode, Observation, Step


@dataclass(frozen=True)
class Taken:
    """One control period. command: the message, or None for a hold. observation: before the action."""

    stamp: int
    command: Any
    observation: Observation


@dataclass
class Plans:
    """An episode's messages about plans: chunks and decisions by chunk_id, candidates by request_id.

    helps: requests for the operator's help, as they came.
    """

    chunks: dict[int, Any] = field(default_factory=dict)
    decisions: dict[int, Any] = field(default_factory=dict)
    candidates: dict[int, Any] = field(default_factory=dict)
    helps: list[Any] = field(default_factory=list)

    def add(self, role: str, message: Any) -> None:
        if role == CHUNK:
            self.chunks[int(message.chunk_id)] = message
        elif role == DECISION:
            self.decisions[int(message.chunk_id)] = message
        elif role == CANDIDATES:
            self.candidates[int(message.request_id)] = message
        elif role == HELP:
            self.helps.append(message)


@dataclass(frozen=True)
class Ending:
    """task: the message that began the episode. end: the one that ended it. held: (stamp, HOLD command)."""

    task: Any
    end: Any
    held: Sequence[tuple[int, Any]]
    rejected: int


def build_episode(
    robot: RobotConfig, taken: Sequence[Taken], final: Observation, plans: Plans, ending: Ending
) -> Episode:
    """Raises DataError for a command of another robot or of a plan that was never received."""
    steps: list[Step] = []
    for entry in taken:
        held = entry.command is None
        steps.append(_hold(robot, entry, steps, ending) if held else _move(robot, entry, plans))
    executed = Counter(step.chunk_id for step in steps)
    seen: set[int] = set()
    for step in steps:
        if step.chunk_id < 0:
            continue
        step.executed_length = executed[step.chunk_id]
        if step.chunk_id not in seen:
            seen.add(step.chunk_id)
            _add_decision(step, plans)
    end, last = ending.end, steps[-1]
    last.success = bool(end.success)
    last.reward = 1.0 if last.success else 0.0
    last.truncated = bool(end.truncated) and not last.success
    last.terminated = not last.truncated
    facts = _facts(robot, taken, steps, plans, ending)
    return Episode(steps, final, str(ending.task.instruction), facts)


def _move(robot: RobotConfig, entry: Taken, plans: Plans) -> Step:
    command = entry.command
    where = f"command {command.sequence}"
    if list(command.names) != list(robot.action.names):
        raise DataError(mismatch(where, "names", robot.action.names, list(command.names)))
    action = np.array(command.values, np.float32)
    if action.shape != (len(robot.action.names),):
        raise DataError(mismatch(where, "values", f"{len(robot.action.names)} numbers", action.size))
    if command.source not in SOURCES:
        raise DataError(mismatch(where, "source", " or ".join(SOURCES), repr(command.source)))
    human = command.source == "human"
    step = Step(entry.observation, action, source=command.source, intervention=human)
    if command.chunk_id >= 0:
        chunk = plans.chunks.get(int(command.chunk_id))
        if chunk is None:
            raise DataError(f"{where}: it belongs to chunk {command.chunk_id}, which was never received")
        step.chunk_id, step.chunk_step = int(command.chunk_id), int(command.chunk_step)
        step.planned_chunk = chunk_from(chunk).actions
        step.policy_version, step.critic_version = str(chunk.policy_version), str(chunk.critic_version)
    return step


def _hold(robot: RobotConfig, entry: Taken, steps: Sequence[Step], ending: Ending) -> Step:
    """What the arm was told while nothing passed: not to move, the gripper to stay as it is."""
    last = steps[-1].action
    if robot.action.kind == "cartesian_delta":
        action = np.zeros_like(last)
        action[-1] = last[-1]
    else:
        action = last.copy()
        for stamp, message in ending.held:
            period = 1e9 / robot.rate_hz
            if entry.stamp - period < stamp < entry.stamp + period / 2 and len(message.values) == last.size:
                action = np.array(message.values, np.float32)
    return Step(entry.observation, action, source="hold")


def _add_decision(step: Step, plans: Plans) -> None:
    """Candidates and decision belong to the first step of a plan that ran."""
    decision = plans.decisions.get(step.chunk_id)
    if decision is not None:
        step.decision = decision_from(decision)
    candidates = plans.candidates.get(int(plans.chunks[step.chunk_id].request_id))
    if candidates is not None:
        step.candidates = candidates_from(candidates)


def _facts(
    robot: RobotConfig, taken: Sequence[Taken], steps: Sequence[Step], plans: Plans, ending: Ending
) -> dict[str, Any]:
    """The episode's metadata, JSON-ready.

    observation_age_ns: command's stamp less the observation's, one a step. plans: each chunk that ran, with
    the stamp of the observation it was made for and its first uncommitted step (`start`). help: each request
    for the operator, value and progress None where unknown.
    """
    ran = dict.fromkeys(step.chunk_id for step in steps if step.chunk_id >= 0)
    commanders = ["policy", *(step.source for step in steps if step.source != "hold")]
    return {
        "robot": robot.name,
        "episode_id": int(ending.task.episode_id),
        "instruction": str(ending.task.instruction),
        "mode": str(ending.task.mode),
        "seed": int(ending.task.seed),
        "reason": str(ending.end.reason),
        "takeovers": sum(b == "human" != a for a, b in pairwise(commanders)),
        "holds": sum(step.source == "hold" for step in steps),
        "rejected": ending.rejected,
        "help": [_help_facts(message) for message in plans.helps],
        "versions": {
            "valueguide": __version__,
            "policy": sorted({step.policy_version for step in steps if step.policy_version}),
            "critic": sorted({step.critic_version for step in steps if step.critic_version}),
        },
        "observation_age_ns": [entry.stamp - entry.observation.stamp_ns for entry in taken],
        "plans": [
            {
                "chunk_id": number,
                "request_id": int(plans.chunks[number].request_id),
                "stamp_ns": stamp_ns(plans.chunks[number]),
                "start": int(plans.chunks[number].start),
                "end": int(plans.chunks[number].end),
            }
            for number in ran
        ],
    }


def _help_facts(message: Any) -> dict[str, Any]:
    numbers = {name: float(getattr(message, name)) for name in ("value", "progress")}
    return {
        "stamp_ns": stamp_ns(message),
        "step": int(message.step),
        "reason": str(message.reason),
        **{name: number if math.isfinite(number) else None for name, number in numbers.items()},
    }
