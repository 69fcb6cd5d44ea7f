"""Episodes cut at takeovers and hand-backs into segments of one commander, and what is learned from each.

A segment holds raw facts; labels are derived when it is read, so that a reward rule can change without
touching what was recorded. The rule at a takeover follows ALOE (arXiv 2602.12691), whose figure closes the
policy's segment as a failure and starts the human's from the same state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from valueguide.data.reader import EpisodeDataset
from valueguide.data.shaping import shape_rewards
from valueguide.data.transitions import ChunkTransitions, sparse_labels
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import SOURCES, Episode, Float32, Observation, Source, Step, UInt8

Int64 = NDArray[np.int64]
Store = Literal["offline", "rollout", "correction"]
STORES: tuple[Store, ...] = ("offline", "rollout", "correction")
End = Literal["success", "failure", "truncated", "takeover", "handback"]
ENDS: tuple[End, ...] = ("success", "failure", "truncated", "takeover", "handback")
TakeoverRule = Literal["failure", "bootstrap"]
TAKEOVER_RULES: tuple[TakeoverRule, ...] = ("failure", "bootstrap")


@dataclass(frozen=True)
class Segment:
    """T consecutive steps of one source, and the observation after the last. Raises DataError if malformed.

    state: float32 (T+1, S). action: float32 (T, A), what was sent to the motors.
    environment_state: float32 (T+1, N) or None. features: float32 (T+1, F) or None.
    images: camera -> uint8 (T+1, height, width, 3), RGB; empty for state-only suites.
    potential: float32 (T+1,) or None: makes rewards dense, see `shape_rewards`; NaN where it is missing.
    chunk_id, chunk_step: int64 (T,), the plan of each step (-1: none) and the step in it.
    planned: float32 (R, H, A), the plans that start here, NaN beyond a plan's length.
    planned_start: int64 (R,), ascending, the step at which each of them starts.
    end: "success" or "failure" (terminal), "truncated" (time limit, stop, lost link, or a pause after which
        the same source goes on), "takeover" (policy, then a human or expert) or "handback" (a human or
        expert, then another source).
    episode, first_step: the episode it is part of, and its first step's number there.
    episode_steps, episode_success, episode_terminated: how long that episode was, holds included, and how
        it ended, whoever commanded then; None while that is unknown.
    policy_version, critic_version: of the first step.
    """

    state: Float32
    action: Float32
    chunk_id: Int64
    chunk_step: Int64
    planned: Float32
    planned_start: Int64
    source: Source
    end: End
    store: Store
    task: str
    episode: str
    first_step: int = 0
    environment_state: Float32 | None = None
    images: dict[str, UInt8] = field(default_factory=dict)
    features: Float32 | None = None
    potential: Float32 | None = None
    policy_version: str = ""
    critic_version: str = ""
    episode_steps: int | None = None
    episode_success: bool | None = None
    episode_terminated: bool | None = None

    def __post_init__(self) -> None:
        where = f"segment of episode {self.episode!r} at step {self.first_step}"
        for name, allowed in (("source", SOURCES), ("end", ENDS), ("store", STORES)):
            if getattr(self, name) not in allowed:
                raise DataError(mismatch(where, name, allowed, repr(getattr(self, name))))
        steps, plans = self.steps, len(self.planned_start)
        if steps < 1:
            raise DataError(mismatch(where, "steps", "1 or more", steps))
        if self.episode_steps is not None and self.first_step + steps > self.episode_steps:
            raise DataError(
                mismatch(where, "steps of its episode", self.first_step + steps, self.episode_steps)
            )
        expected: list[tuple[str, NDArray[Any] | None, type, int, int]] = [
            ("state", self.state, np.float32, steps + 1, 2),
            ("action", self.action, np.float32, steps, 2),
            ("chunk_id", self.chunk_id, np.int64, steps, 1),
            ("chunk_step", self.chunk_step, np.int64, steps, 1),
            ("planned", self.planned, np.float32, plans, 3),
            ("planned_start", self.planned_start, np.int64, plans, 1),
            ("environment_state", self.environment_state, np.float32, steps + 1, 2),
            ("features", self.features, np.float32, steps + 1, 2),
            ("potential", self.potential, np.float32, steps + 1, 1),
            *((f"camera {c!r}", picture, np.uint8, steps + 1, 4) for c, picture in self.images.items()),
        ]
        for name, values, dtype, rows, dimensions in expected:
            if values is None:
                continue
            if values.dtype != dtype or values.ndim != dimensions or len(values) != rows:
                wanted = f"{np.dtype(dtype)} of {dimensions} dimensions and {rows} rows"
                raise DataError(mismatch(where, name, wanted, f"{values.dtype} {values.shape}"))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.action)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.state, self.action, self.chunk_id, self.chunk_step, self.planned, self.planned_start,
                  self.environment_state, self.features, self.potential, *self.images.values())  # fmt: skip
        return sum(values.nbytes for values in arrays if values is not None)

    def shapes(self) -> dict[str, Any]:
        """What all segments of one replay must share: sizes of a step, JSON-ready."""

        def width(values: NDArray[Any] | None) -> int | None:
            return None if values is None else values.shape[1]

        return {
            "state": width(self.state),
            "action": width(self.action),
            "environment_state": width(self.environment_state),
            "features": width(self.features),
            "cameras": {camera: list(picture.shape[1:3]) for camera, picture in sorted(self.images.items())},
        }

    def observation(self, frame: int) -> Observation:
        """The observation before step `frame`; `frame` = T is the one after the last step."""
        privileged = self.environment_state
        return Observation(
            images={camera: pictures[frame] for camera, pictures in self.images.items()},
            state=self.state[frame],
            task=self.task,
            environment_state=None if privileged is None else privileged[frame],
        )


def segments_of(
    episode: Episode, episode_id: str, *, store: Store | None = None, has_final: bool = True
) -> list[Segment]:
    """The episode's segments in order; hold steps end a segment and are in none.

    store: where all of them belong. By default the policy's steps are "rollout"; those of a human or an
        expert are "correction" in an episode in which the policy acted too, and "offline" otherwise.
    has_final: False where `episode.final_observation` was not recorded and the last frame stands in for
        it. Nothing may be learned from it as a successor, so a truncated episode ends a step earlier.
    Raises DataError: no steps, or observations that lack pictures which others have.
    """
    if not episode.steps:
        raise DataError(f"episode {episode_id!r}: it has no steps; no segments")
    steps = episode.steps
    usable = len(steps) - (not has_final and not steps[-1].terminated)
    with_policy = any(step.source == "policy" for step in steps)
    made = []
    for first, stop, source in _runs(steps, usable):
        default: Store = "rollout" if source == "policy" else "correction" if with_policy else "offline"
        end = _end(steps, stop, source)
        made.append(_segment(episode, episode_id, first, stop, end, store or default))
    return made


def dataset_segments(dataset: EpisodeDataset, i: int, *, store: Store | None = None) -> list[Segment]:
    """`segments_of` for episode `i` of a dataset, pictures decoded. Its id is "<dataset_id>:<i>"."""
    return segments_of(
        dataset.to_episode(i), f"{dataset.dataset_id}:{i}", store=store, has_final=bool(dataset.has_final[i])
    )


def _runs(steps: list[Step], usable: int) -> Iterator[tuple[int, int, Source]]:
    """Half-open ranges of the first `usable` steps with one source, without holds."""
    first = 0
    for source, group in groupby(step.source for step in steps[:usable]):
        stop = first + len(list(group))
        if source != "hold":
            yield first, stop, source
        first = stop


def _end(steps: list[Step], stop: int, source: Source) -> End:
    """How the run of `source` before step `stop` ended: by whoever acts next, or with the episode.

    Holds in between change neither: a takeover usually begins with one, and an outcome that shows only
    while the arm rests is that of the last to move it.
    """
    following = next((step.source for step in steps[stop:] if step.source != "hold"), None)
    if following is None:
        last = steps[-1]
        return "success" if last.success else "failure" if last.terminated else "truncated"
    if following == source:
        return "truncated"
    return "takeover" if source == "policy" else "handback"


def _segment(episode: Episode, episode_id: str, first: int, stop: int, end: End, store: Store) -> Segment:
    steps = episode.steps[first:stop]
    after = episode.steps[stop].observation if stop < len(episode.steps) else episode.final_observation
    observations = [step.observation for step in steps] + [after]
    seen = {step.chunk_id for step in episode.steps[:first]}
    starts = [t for t, step in enumerate(steps) if step.source == "policy" and _new(step.chunk_id, seen)]
    privileged = observations[0].environment_state
    last = episode.steps[-1]
    return Segment(
        state=np.array([o.state for o in observations], np.float32),
        action=np.array([step.action for step in steps], np.float32),
        chunk_id=np.array([step.chunk_id for step in steps], np.int64),
        chunk_step=np.array([step.chunk_step for step in steps], np.int64),
        planned=_plans([steps[t] for t in starts], len(steps[0].action)),
        planned_start=np.array(starts, np.int64),
        source=steps[0].source,
        end=end,
        store=store,
        task=observations[0].task or episode.task,
        episode=episode_id,
        first_step=first,
        environment_state=None
        if privileged is None
        else np.array([o.environment_state for o in observations], np.float32),
        images=_pictures(observations, f"episode {episode_id!r}", first),
        policy_version=steps[0].policy_version,
        critic_version=steps[0].critic_version,
        episode_steps=len(episode.steps),
        episode_success=bool(last.success),
        episode_terminated=bool(last.terminated),
    )


def _new(chunk_id: int, seen: set[int]) -> bool:
    """A plan starts at its first step in the whole episode: one resumed after a pause does not start anew."""
    if chunk_id < 0 or chunk_id in seen:
        return False
    seen.add(chunk_id)
    return True


def _plans(steps: list[Step], action_size: int) -> Float32:
    """float32 (R, H, A), padded with NaN to the longest plan."""
    chunks = [step.planned_chunk for step in steps]
    horizon = max((len(chunk) for chunk in chunks if chunk is not None), default=0)
    padded = np.full((len(steps), horizon, action_size), np.nan, np.float32)
    for row, chunk in zip(padded, chunks, strict=True):
        if chunk is not None:
            row[: len(chunk)] = chunk
    return padded


def _pictures(observations: list[Observation], where: str, first: int) -> dict[str, UInt8]:
    cameras = observations[0].images
    for t, observation in enumerate(observations):
        if observation.images.keys() != cameras.keys():
            found = sorted(observation.images) or "none"
            hint = "Record every picture, not only those at replans"
            raise DataError(mismatch(f"{where}, step {first + t}", "cameras", sorted(cameras), found, hint))
    return {camera: np.stack([o.images[camera] for o in observations]) for camera in cameras}


@dataclass(frozen=True)
class SegmentTransitions:
    """What is learned from one segment.

    chunks: for each of its T steps the transition that would start there; `successor` T is the observation
        after the last step. Its `mc_return` follows the true episode to its end, whoever commanded; -inf
        where that end is unknown.
    starts: int64 (n,), the steps where transitions start.
    plans: float32 (n, E, A), the E steps that were planned from each start on, NaN where that is not known;
        for steps of no plan, what the segment went on to do.
    cut: bool (T,), set at starts whose plan a takeover cut short: fewer of its steps ran than
        min(E, its length), so what the policy would have done next has no support in the data.
    """

    chunks: ChunkTransitions
    starts: Int64
    plans: Float32
    cut: NDArray[np.bool_]


def segment_transitions(
    segment: Segment,
    executed_length: int,
    gamma: float = 0.98,
    success_steps: int = 3,
    takeover: TakeoverRule = "failure",
    *,
    every_step: bool = True,
) -> SegmentTransitions:
    """Labels and chunks of at most E = `executed_length` steps; see `sparse_labels` for the rewards.

    With potentials, a step's reward is shaped by them; where the segment is terminal, by the rule at a
    takeover too, they end at 0.

    takeover: "failure" ends the policy's segment as a terminal failure, reward -1/(1-gamma) at the last
        step before the human. "bootstrap" gives no penalty: the last chunk bootstraps from the state at
        the takeover, to be valued by the policy's own proposals, never by the human's rewards.
        The end of a human's segment by a hand-back, and a truncated one, bootstrap under both.
    every_step: a human's or expert's steps all start transitions; False lays them end to end. The policy's
        start where its plans do, and stay within the plan; steps that belong to no plan count as a human's.
    """
    if takeover not in TAKEOVER_RULES:
        raise ConfigError(mismatch("segment transitions", "takeover", TAKEOVER_RULES, repr(takeover)))
    success = segment.end == "success"
    terminated = segment.end in ("success", "failure") or (
        segment.end == "takeover" and takeover == "failure"
    )
    labels = sparse_labels(segment.steps, success, terminated, gamma, success_steps)
    first, count = np.zeros(1, np.int64), np.array([segment.steps], np.int64)
    if segment.potential is not None:
        labels = shape_rewards(labels, first, count, segment.potential, gamma).labels
    policy = segment.source == "policy"
    chunks = ChunkTransitions.build(
        labels,
        first,
        count,
        executed_length,
        gamma,
        chunk_id=segment.chunk_id if policy else None,
    )
    free = np.ones(segment.steps, bool)
    if not every_step:
        free[:] = np.arange(segment.steps) % executed_length == 0
    if policy:
        free &= segment.chunk_id < 0
        free[segment.planned_start] = True
    starts = np.flatnonzero(free)
    return SegmentTransitions(
        chunks=replace(chunks, mc_return=_episode_return(segment, gamma, success_steps)),
        starts=starts,
        plans=_plans_from(segment, starts, executed_length),
        cut=_cut(segment, chunks) & np.isin(np.arange(segment.steps), starts),
    )


def _plans_from(segment: Segment, starts: Int64, executed_length: int) -> Float32:
    plans = np.full((len(starts), executed_length, segment.action.shape[1]), np.nan, np.float32)
    of_start = {int(start): plan for start, plan in zip(segment.planned_start, segment.planned, strict=True)}
    for row, start in zip(plans, starts, strict=True):
        plan = of_start.get(int(start))
        rest = segment.action[start:] if plan is None else plan[segment.chunk_step[start] :]
        row[: len(rest)] = rest[:executed_length]
    return plans


def _episode_return(segment: Segment, gamma: float, success_steps: int) -> Float32:
    """float32 (T,), the discounted return of the whole episode from each step on."""
    if segment.episode_steps is None or segment.episode_success is None or segment.episode_terminated is None:
        return np.full(segment.steps, -np.inf, np.float32)
    labels = sparse_labels(
        segment.episode_steps, segment.episode_success, segment.episode_terminated, gamma, success_steps
    )
    following = labels.mc_return[segment.first_step : segment.first_step + segment.steps]
    # Shaping moves every value by -Phi of its state (Ng, Harada and Russell 1999).
    return following if segment.potential is None else following - np.nan_to_num(segment.potential[:-1])


def _cut(segment: Segment, chunks: ChunkTransitions) -> NDArray[np.bool_]:
    if segment.end != "takeover":
        return np.zeros(segment.steps, bool)
    meant = np.full(segment.steps, chunks.executed_length)
    for start, plan in zip(segment.planned_start, segment.planned, strict=True):
        length = np.count_nonzero(~np.isnan(plan).all(1))
        if length:
            # With prefetch a plan's first steps may have passed before it began to run.
            mine = np.flatnonzero(segment.chunk_id == segment.chunk_id[start])
            meant[mine] = np.minimum(meant[mine], length - segment.chunk_step[mine])
    return (chunks.successor == segment.steps) & (chunks.length < meant)
