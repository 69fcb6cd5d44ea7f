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
    steps = [_step(dataset, frame, frame - start) for frame in range(start, end)]
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


def _step(dataset: EpisodeDataset, frame: int, step: int) -> Step:
    privileged = dataset.environment_state
    recorded = dataset.recorded
    observation = Observation(
        images={camera: dataset.image(frame, camera) for camera in dataset.cameras},
        state=dataset.state[frame],
        task=dataset.instructions[dataset.instruction[frame]],
        stamp_ns=int(recorded["vg.stamp_ns"][frame]) if "vg.stamp_ns" in recorded else _stamp(dataset, step),
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
        intervention=bool(recorded["intervention"][frame]) if "intervention" in recorded else False,
    )
    if dataset.spec is not None:
        _add_plan(made, recorded, frame)
    return made


def _add_plan(step: Step, recorded: dict[str, Any], frame: int) -> None:
    step.chunk_id = int(recorded["vg.chunk_id"][frame])
    step.chunk_step = int(recorded["vg.chunk_step"][frame])
    step.executed_length = int(recorded["vg.executed_length"][frame])
    planned = _without_unused_steps(recorded["vg.planned_chunk"][frame])
    step.planned_chunk = planned if len(planned) else None
    step.policy_version = recorded["vg.policy_version"][frame]
    step.critic_version = recorded["vg.critic_version"][frame]
    k = int(recorded["vg.num_candidates"][frame]) if "vg.candidates" in recorded else 0
    if k:
        stored = recorded["vg.candidates"][frame][:k]
        used = _without_unused_steps(stored)
        step.candidates = Candidates(used if used.shape[1] else stored)
    if recorded["vg.index"][frame] < 0:
        return
    members = int(recorded["vg.num_members"][frame]) if k else 0
    values: Float32 | None = recorded["vg.values"][frame][:k] if k else None
    step.decision = Decision(
        index=int(recorded["vg.index"][frame]),
        reason=recorded["vg.reason"][frame],
        preferred=int(recorded["vg.preferred"][frame]),
        values=None if values is None or np.isnan(values).all() else values,
        scores=Scores(recorded["vg.scores"][frame][:members, :k]) if members else None,
        seed=int(recorded["vg.seed"][frame]),
        latency_s=float(recorded["vg.latency_s"][frame]),
    )


def _without_unused_steps(chunks: np.ndarray) -> np.ndarray:
    """chunks (…, H, A) without the NaN steps at the end that pad them to the stored horizon."""
    others = tuple(axis for axis in range(chunks.ndim) if axis != chunks.ndim - 2)
    used = np.flatnonzero(~np.isnan(chunks).all(axis=others))
    return chunks[..., : int(used[-1]) + 1 if used.size else 0, :]


def _stamp(dataset: EpisodeDataset, step: int) -> int:
    return round(step / dataset.fps * 1e9)
