"""From dataset columns back to an `Episode`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from valueguide.types import SOURCES, Candidates, Decision, Episode, Float32, Observation, Scores, Step

if TYPE_CHECKING:
    from valueguide.data.finals import FinalObservations
    from valueguide.data.reader import EpisodeDataset


def rebuild_episode(dataset: EpisodeDataset, i: int, finals: FinalObservations | None) -> Episode:
    """Episode `i`. A plain LeRobotDataset has no chunks, decisions or true last successor to give back."""
    start, end = int(dataset.episode_start[i]), int(dataset.episode_end[i])
    recorded = dataset.recorded(i)
    steps = [_step(dataset, start, step, recorded) for step in range(end - start)]
    last = dataset.frames + i
    instruction = dataset.instructions[dataset.instruction[end - 1]]
    final_environment = dataset.final_environment_state
    final = Observation(
        images={camera: dataset.image(last, camera) for camera in dataset.cameras},
        state=dataset.final_state[i],
        task=finals.final_tasks[i] if finals else instruction,
        stamp_ns=finals.stamps_ns[i] if finals else _stamp(dataset, end - start),
        environment_state=None if final_environment is None else final_environment[i],
    )
    return Episode(steps, final, finals.tasks[i] if finals else instruction, dict(dataset.metadata[i]))


def _step(dataset: EpisodeDataset, start: int, step: int, recorded: dict[str, Any]) -> Step:
    frame = start + step
    privileged = dataset.environment_state
    observation = Observation(
        images={camera: dataset.image(frame, camera) for camera in dataset.cameras},
        state=dataset.state[frame],
        task=dataset.instructions[dataset.instruction[frame]],
        stamp_ns=int(recorded["vg.stamp_ns"][step]) if "vg.stamp_ns" in recorded else _stamp(dataset, step),
        environment_state=None if privileged is None else privileged[frame],
    )
    made = Step(
        observation=observation,
        action=dataset.action[frame],
        reward=float(dataset.reward[frame]),
        terminated=bool(dataset.terminated[frame]),
        truncated=bool(dataset.truncated[frame]),
        success=bool(dataset.success[frame]),
        source=SOURCES[int(dataset.source[frame])],
        intervention=bool(recorded["intervention"][step]) if "intervention" in recorded else False,
    )
    if "vg.chunk_id" in recorded:
        add_plan(made, recorded, step)
    return made


def add_plan(made: Step, recorded: dict[str, Any], step: int) -> None:
    """Put chunk, versions, candidates and decision of step number `step` into `made`.

    recorded: `EpisodeDataset.recorded` of the episode, of a dataset that valueguide wrote.
    """
    made.chunk_id = int(recorded["vg.chunk_id"][step])
    made.chunk_step = int(recorded["vg.chunk_step"][step])
    made.executed_length = int(recorded["vg.executed_length"][step])
    planned = _without_unused_steps(recorded["vg.planned_chunk"][step])
    made.planned_chunk = planned if len(planned) else None
    made.policy_version = recorded["vg.policy_version"][step]
    made.critic_version = recorded["vg.critic_version"][step]
    k = int(recorded["vg.num_candidates"][step]) if "vg.candidates" in recorded else 0
    if k:
        stored = recorded["vg.candidates"][step][:k]
        used = _without_unused_steps(stored)
        made.candidates = Candidates(used if used.shape[1] else stored)
    if recorded["vg.index"][step] < 0:
        return
    members = int(recorded["vg.num_members"][step]) if k else 0
    # A column of shape (1,) is read as scalars.
    values: Float32 | None = np.atleast_1d(recorded["vg.values"][step])[:k] if k else None
    made.decision = Decision(
        index=int(recorded["vg.index"][step]),
        reason=recorded["vg.reason"][step],
        preferred=int(recorded["vg.preferred"][step]),
        values=None if values is None or np.isnan(values).all() else values,
        scores=Scores(recorded["vg.scores"][step][:members, :k]) if members else None,
        seed=int(recorded["vg.seed"][step]),
        latency_s=float(recorded["vg.latency_s"][step]),
    )


def _without_unused_steps(chunks: np.ndarray) -> np.ndarray:
    """chunks (…, H, A) without the NaN steps at the end that pad them to the stored horizon."""
    others = tuple(axis for axis in range(chunks.ndim) if axis != chunks.ndim - 2)
    used = np.flatnonzero(~np.isnan(chunks).all(axis=others))
    return chunks[..., : int(used[-1]) + 1 if used.size else 0, :]


def _stamp(dataset: EpisodeDataset, step: int) -> int:
    return round(step / dataset.fps * 1e9)
