"""Counterfactual replay: the candidates of logged decisions, scored and chosen again by other rules.

What it can tell: at a state that the robot was in, with the candidates that it had, what another critic,
temperature or aggregation would have chosen. What it cannot: what would have happened. From the first
changed choice on, the logged states lie off the path that the new choice would have taken, so only the
decision points are comparable, each on its own; outcomes belong to the choices that ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.plans import CHUNK_STEP
from valueguide.data.reader import EpisodeDataset
from valueguide.data.rebuild import add_plan
from valueguide.data.transitions import episode_labels
from valueguide.errors import CheckpointError, ConfigError, DataError, mismatch
from valueguide.interfaces import BatchScorer, Critic
from valueguide.steering.decide import decide
from valueguide.types import SOURCES, Decision, Float32, Observation, Scores, Step

#: A human drove part of a "helped" episode, so its outcome is not the policy's alone.
OUTCOMES = ("success", "failure", "helped")
_BATCH = 64


@dataclass(frozen=True)
class LoggedDecision:
    """One replan of the log with at least two candidates.

    episode: position in the dataset. frame: global, of the observation that was scored; with prefetch it is
    before the first step of the plan that ran. candidates: float32 (K, E, A), the steps that are scored.
    decision: as logged, with its scores where there were any.
    """

    episode: int
    frame: int
    candidates: Float32
    decision: Decision
    critic_version: str


@dataclass(frozen=True)
class Log:
    """N decisions in the order of the dataset, and how their episodes went.

    executed_length: E of the run. tasks, outcomes: one an episode; outcomes are of OUTCOMES, and an episode
    that a limit ended is a failure. returns: float64 (N,), realised from the scored observation on, in the
    units of the critics (`data.transitions.sparse_labels`). skipped: replans left out, by cause.
    """

    decisions: list[LoggedDecision]
    executed_length: int
    tasks: list[str]
    outcomes: list[str]
    returns: NDArray[np.float64]
    skipped: dict[str, int]

    @property
    def episode(self) -> NDArray[np.int64]:
        """int64 (N,): the episode of each decision."""
        return np.array([logged.episode for logged in self.decisions], np.int64)


@dataclass(frozen=True)
class Rule:
    """How choices are made again. beta, aggregate: see `steering.decide`. seed: of softmax draws where the
    log has none. spread_limit: whether a critic's own limit sends it back to candidate 0, as on the robot."""

    beta: float = 0.0
    aggregate: str = "min"
    seed: int = 0
    spread_limit: bool = True


def read_log(dataset: EpisodeDataset, gamma: float = 0.98) -> Log:
    """Every decision of a dataset. Raises DataError when no replan has two candidates and a decision."""
    wanted = "replans with two or more candidates (`valueguide collect --k K`, or the recorder's k)"
    if "vg.candidates" not in dataset.features:
        raise DataError(mismatch(str(dataset.root), "candidates", wanted, "none logged"))
    length = _executed_length(dataset)
    decisions: list[LoggedDecision] = []
    skipped: Counter[str] = Counter()
    for episode in range(dataset.episodes):
        for found in _decisions_of(dataset, episode, length):
            if isinstance(found, str):
                skipped[found] += 1
            else:
                decisions.append(found)
    if not decisions:
        causes = ", ".join(f"{count} with {cause}" for cause, count in skipped.items()) or "no replans"
        raise DataError(mismatch(str(dataset.root), "candidates", wanted, causes))
    labels = episode_labels(
        dataset.episode_start,
        dataset.episode_end,
        dataset.episode_success,
        dataset.episode_terminated,
        gamma,
    )
    return Log(
        decisions=decisions,
        executed_length=length,
        tasks=[_task(dataset, episode) for episode in range(dataset.episodes)],
        outcomes=[_outcome(dataset, episode) for episode in range(dataset.episodes)],
        returns=labels.mc_return[[logged.frame for logged in decisions]].astype(np.float64),
        skipped=dict(skipped),
    )


def _executed_length(dataset: EpisodeDataset) -> int:
    """E: most plans are not cut short and end E steps after the scored observation."""
    replan = np.asarray(dataset.column("vg.replan"), bool)
    first, ran = (np.asarray(dataset.column(name)) for name in (CHUNK_STEP, "vg.executed_length"))
    counts = np.bincount((first + ran)[replan]) if replan.any() else np.ones(2, np.int64)
    return int(np.flatnonzero(counts == counts.max())[-1])


def _decisions_of(dataset: EpisodeDataset, episode: int, length: int) -> Iterator[LoggedDecision | str]:
    """The episode's decisions; for a replan that cannot be compared, why."""
    recorded = dataset.recorded(episode)
    start = int(dataset.episode_start[episode])
    stamps = {plan["chunk_id"]: plan["stamp_ns"] for plan in dataset.metadata[episode].get("plans", ())}
    for row in np.flatnonzero(recorded["vg.replan"]).tolist():
        step = Step(Observation({}, dataset.state[start + row], ""), dataset.action[start + row])
        add_plan(step, recorded, row)
        if step.candidates is None or step.candidates.k < 2:
            yield "fewer than two candidates"
            continue
        if step.decision is None:
            yield "no decision"
            continue
        chunks = np.ascontiguousarray(step.candidates.actions[:, :length])
        if chunks.shape[1] < length or not np.isfinite(chunks).all():
            where = f"{dataset.root}: episode {episode}, step {row}"
            raise DataError(mismatch(where, "candidates", f"{length} finite steps", "fewer"))
        scored = max(row - step.chunk_step, 0)
        if step.chunk_id in stamps:
            # Holds may lie between the observation and the plan: the stamp says which one it was.
            seen = np.asarray(recorded["vg.stamp_ns"][: row + 1])
            scored = max(int(np.searchsorted(seen, stamps[step.chunk_id], side="right")) - 1, 0)
        yield LoggedDecision(episode, start + scored, chunks, step.decision, step.critic_version)


def _task(dataset: EpisodeDataset, episode: int) -> str:
    instruction = dataset.instructions[dataset.instruction[dataset.episode_start[episode]]]
    return str(dataset.metadata[episode].get("task_name") or instruction)


def _outcome(dataset: EpisodeDataset, episode: int) -> str:
    rows = slice(int(dataset.episode_start[episode]), int(dataset.episode_end[episode]))
    if (dataset.source[rows] == SOURCES.index("human")).any():
        return "helped"
    return "success" if dataset.episode_success[episode] else "failure"


def load_critic(path: str, dataset: EpisodeDataset, log: Log, device: str = "cpu") -> Any:
    """A critic that fits the log: executed steps, action names, cameras, state sizes, instructions.

    Raises CheckpointError, or ConfigError for an instruction of no task it knows; one line naming the critic.
    """
    from valueguide.critics.scorer import LearnedCritic

    critic, spec, where = LearnedCritic.load(path, device), dataset.spec, f"critic {path}"
    if critic.executed_length != log.executed_length:
        raise CheckpointError(
            mismatch(where, "executed steps", f"{log.executed_length}, as in the log", critic.executed_length)
        )
    try:
        critic.check_compatible(
            action_names=spec.action if spec else None,
            cameras=spec.stored_cameras if spec else None,
            state_dim=dataset.state.shape[1],  # names differ between suites and robots: x, pose.x
        )
        privileged = 0 if dataset.environment_state is None else dataset.environment_state.shape[1]
        if critic.spec.environment_state_dim not in (0, privileged):
            wanted = critic.spec.environment_state_dim
            raise CheckpointError(mismatch(where, "environment state", f"{wanted} values", privileged))
        for row in sorted({int(dataset.instruction[logged.frame]) for logged in log.decisions}):
            critic.check_instruction(dataset.instructions[row])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return critic


def rescore(
    dataset: EpisodeDataset,
    log: Log,
    critics: Mapping[str, Critic],
    rule: Rule,
    cameras: Sequence[str] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, list[Decision]]:
    """Every decision made again by each critic: name -> N decisions, as `steering.decide` makes them.

    Pictures are decoded once for all critics. cameras: whose pictures the critics need. progress: called
    with the number of finished decisions.
    """
    made: dict[str, list[Decision]] = {name: [] for name in critics}
    number = 0
    for group in _batches(log.decisions):
        observations = [observation_at(dataset, logged.frame, cameras) for logged in group]
        actions = np.stack([logged.candidates for logged in group])
        for name, critic in critics.items():
            q = _score(critic, observations, actions)
            limit = getattr(critic, "spread_limit", None) if rule.spread_limit else None
            made[name] += [
                _decide(logged, number + i, Scores(q[:, i]), rule, limit) for i, logged in enumerate(group)
            ]
        number += len(group)
        progress(len(group))
    return made


def choose_again(log: Log, rule: Rule) -> list[Decision]:
    """N decisions from the logged scores, with the rule's temperature and aggregation; no critic is needed.

    Reason "no_critic" where none were logged. The logged critic's spread limit is not in the log: none holds.
    """
    return [
        _decide(logged, number, logged.decision.scores, rule, None)
        for number, logged in enumerate(log.decisions)
    ]


def observation_at(dataset: EpisodeDataset, frame: int, cameras: Sequence[str]) -> Observation:
    """What the robot knew at a frame, with the pictures of these cameras only."""
    privileged = dataset.environment_state
    return Observation(
        images={camera: dataset.image(frame, camera) for camera in cameras},
        state=dataset.state[frame],
        task=dataset.instructions[dataset.instruction[frame]],
        environment_state=None if privileged is None else privileged[frame],
    )


def _decide(
    logged: LoggedDecision, number: int, scores: Scores | None, rule: Rule, limit: float | None
) -> Decision:
    seed = logged.decision.seed
    if seed < 0 and rule.beta > 0:
        seed = int(np.random.default_rng([rule.seed, number]).integers(2**31))
    return decide(scores, beta=rule.beta, how=rule.aggregate, seed=seed, spread_limit=limit)


def _score(critic: Critic, observations: Sequence[Observation], actions: Float32) -> Float32:
    """q (M, B, K); each observation is encoded once. actions: (B, K, E, A)."""
    if isinstance(critic, BatchScorer):
        return critic.score_batch(observations, actions)
    rows = [
        critic.score(critic.encode(observation), chunks).q
        for observation, chunks in zip(observations, actions, strict=True)
    ]
    return np.stack(rows, axis=1)


def _batches(decisions: Sequence[LoggedDecision]) -> Iterator[list[LoggedDecision]]:
    """Neighbours with equally many candidates, so that a batch is one array."""
    for _, run in groupby(decisions, lambda logged: len(logged.candidates)):
        while group := list(islice(run, _BATCH)):
            yield group
