"""The truth about K candidates: each is run from the same simulator state, then the base policy goes on.

States are those that the base policy comes to. What is measured is kept with the observation and the
candidates, so that another critic can be held against the same truth without simulating again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.transitions import sparse_labels
from valueguide.disk import flush
from valueguide.errors import CheckpointError, ConfigError, mismatch
from valueguide.evaluation.arms import load_policy, sampling_seed
from valueguide.evaluation.resume import finished_rows
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.suite import Suite
from valueguide.evaluation.workers import run_jobs
from valueguide.interfaces import Critic, Policy
from valueguide.steering.decide import aggregate
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.types import Candidates, Decision, Float32, Observation

Job = tuple[str, int]
Row = dict[str, Any]
PolicyMaker = Callable[[str, Suite, str], Any]
_LOG, _FOLDER = "states.jsonl", "states"
#: What may change when a measurement is continued: more states.
_EXTENSIBLE = ("tasks", "states")


@dataclass(frozen=True)
class BranchPlan:
    """What defines a measurement: `states` states in all, one an episode, spread evenly over the tasks.

    k: candidates of each state. rollouts: continuations of each candidate, R, with other policy noise.
    execute: E, steps run of each chunk. gamma: of the returns. State j of a task comes from seed + j.
    """

    suite: str
    policy: str
    tasks: tuple[str, ...]
    states: int
    k: int
    rollouts: int
    seed: int
    execute: int = 4
    gamma: float = 0.98
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("states", 1), ("k", 2), ("rollouts", 1), ("seed", 0), ("execute", 1)):
            if getattr(self, name) < least:
                raise ConfigError(mismatch("ranking", name, f"{least} or more", getattr(self, name)))

    def jobs(self) -> list[Job]:
        """(task, number) of every state; the tasks take turns."""
        return [(self.tasks[i % len(self.tasks)], i // len(self.tasks)) for i in range(self.states)]

    def to_json(self) -> dict[str, Any]:
        """What defines the truth; not the device."""
        plan = json.loads(json.dumps(asdict(self)))
        del plan["device"]
        return plan


@dataclass(frozen=True)
class BranchPoint:
    """One state with the truth about its candidates.

    candidates: float32 (K, H, A). success: bool (K, R). returns: float64 (K, R), discounted with the labels
    of `data.transitions.sparse_labels`: -1 a step, 0 at success, -1/(1-gamma) for what is never done.
    """

    task: str
    number: int
    observation: Observation
    candidates: Float32
    success: NDArray[np.bool_]
    returns: NDArray[np.float64]


def measure(
    plan: BranchPlan,
    make_suite: Callable[[str], Suite],
    out: Path,
    workers: int,
    on_state: Callable[[Row], None] = lambda row: None,
    make_policy: PolicyMaker = load_policy,
) -> list[BranchPoint]:
    """One point per job of the plan, in the order of `plan.jobs()`.

    What `out` holds already is not run again. make_suite and make_policy must be importable in a new
    process. Raises ConfigError when `out` holds another plan or policy, or when the suite's states cannot
    be restored, and CheckpointError when the policy does not fit.
    """
    (out / _FOLDER).mkdir(parents=True, exist_ok=True)
    rows = {(r["task"], r["number"]): r for r in finished_rows(out / _LOG, plan.to_json(), _EXTENSIBLE)}
    jobs = plan.jobs()
    versions = {row["policy_version"] for row in rows.values()}
    for row in rows.values():
        on_state(row)
    todo = [job for job in jobs if job not in rows]
    start = partial(BranchWorker, plan, make_suite, out, make_policy)
    with (out / _LOG).open("a") as log:
        for row in run_jobs(start, todo, workers, lambda job: f"task {job[0]}, state {job[1]}"):
            versions.add(row["policy_version"])
            if len(versions) > 1:
                raise ConfigError(f"{out}: holds states of policy {sorted(versions)[0]}. Use another --out")
            log.write(json.dumps(row, allow_nan=False) + "\n")
            log.flush()
            rows[row["task"], row["number"]] = row
            on_state(row)
    return [_load(out, rows[job]) for job in jobs]


def score(critic: Critic, points: Sequence[BranchPoint], how: str = "min") -> NDArray[np.float64]:
    """The critic's value of every candidate, float64 (N, K); how: `steering.decide.aggregate` of members."""
    values = []
    for point in points:
        scores = critic.score(critic.encode(point.observation), np.ascontiguousarray(point.candidates))
        values.append(aggregate(scores.q, how))
    return np.array(values, np.float64)


class BranchWorker:
    """One process's environments and policy; called with a job, returns its row and keeps its arrays."""

    def __init__(
        self,
        plan: BranchPlan,
        make_suite: Callable[[str], Suite],
        out: Path,
        make_policy: PolicyMaker = load_policy,
    ) -> None:
        self.plan, self.suite, self._out = plan, make_suite(plan.suite), out
        policy = make_policy(plan.policy, self.suite, plan.device)
        if int(getattr(policy, "history", 1)) > 1:
            raise CheckpointError(
                mismatch(f"policy {plan.policy}", "history", "1 observation, all a state has", policy.history)
            )
        # Without a critic candidate 0 runs, whatever K: the base policy, with its alternatives beside it.
        self._walker = Steerer(policy, None, SteeringConfig(k=plan.k, execute=plan.execute))
        self._policy: Policy = policy
        self._environments: dict[str, Any] = {}

    def __call__(self, job: Job) -> Row:
        """One state: come to it, then run every candidate from it R times."""
        task, number = job
        env, seed = self._environment(task), self.plan.seed + number
        noise = sampling_seed(seed, task, self.suite.tasks)
        visit = _Visit(env, np.random.default_rng([seed, self.suite.tasks.index(task), 1]))
        rollout(env, self._walker, seed, self.suite.max_steps, sampling_seed=noise, watch=visit)
        left = self.suite.max_steps - visit.decision * self.plan.execute
        ends = []
        for chunk in visit.candidates.actions:
            for r in range(self.plan.rollouts):
                # The same noise for every candidate: they differ by their first chunk alone.
                again = int(np.random.default_rng([noise, visit.decision, r]).integers(2**31))
                ends.append(self._continue(_Restored(env, visit.snapshot), chunk, left, again))
        shape = (self.plan.k, self.plan.rollouts)
        success, returns = (np.reshape(values, shape).tolist() for values in zip(*ends, strict=True))
        self._keep(_name(task, number), visit.observation, visit.candidates.actions)
        return {
            "task": task,
            "number": number,
            "seed": seed,
            "decision": visit.decision,
            "decisions": visit.count,
            "success": success,
            "returns": returns,
            "instruction": visit.observation.task,
            "stamp_ns": visit.observation.stamp_ns,
            "policy_version": self._policy.version,
        }

    def _environment(self, task: str) -> Any:
        if task not in self._environments:
            env = self.suite.make(task)
            if not hasattr(env, "snapshot") or not hasattr(env, "restore"):
                raise ConfigError(
                    mismatch("ranking", "suite", "one whose states can be restored", self.suite.name)
                )
            self._environments[task] = env
        return self._environments[task]

    def _continue(self, env: Any, chunk: Float32, left: int, noise: int) -> tuple[bool, float]:
        steerer = Steerer(
            _FirstChunk(self._policy, chunk), None, SteeringConfig(k=1, execute=self.plan.execute)
        )
        episode = rollout(env, steerer, 0, left, sampling_seed=noise)
        ended = episode.steps[-1].terminated
        labels = sparse_labels(len(episode.steps), episode.success, ended, self.plan.gamma)
        return episode.success, float(labels.mc_return[0])

    def _keep(self, name: str, observation: Observation, candidates: Float32) -> None:
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {"candidates": candidates, "state": observation.state}
        if observation.environment_state is not None:
            arrays["environment_state"] = observation.environment_state
        arrays |= {f"image.{camera}": image for camera, image in observation.images.items()}
        whole = self._out / _FOLDER / name
        part = whole.with_suffix(f".{os.getpid()}.part")
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, part)
        flush(part)
        os.replace(part, whole)


class _Visit:
    """Watches an episode and keeps one of its decisions, each equally likely."""

    snapshot: Any
    observation: Observation
    candidates: Candidates

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng
        self.count = self.decision = 0

    def __call__(self, observation: Observation, candidates: Candidates, decision: Decision) -> None:
        self.count += 1
        if self._rng.random() * self.count < 1.0:  # a reservoir of one
            self.decision, self.snapshot = self.count - 1, self._env.snapshot()
            self.observation, self.candidates = observation, candidates


class _Restored:
    """An environment whose episodes begin at a snapshot."""

    def __init__(self, env: Any, snapshot: Any) -> None:
        self._env, self._snapshot = env, snapshot

    def reset(self, *, seed: int | None = None) -> Any:
        return self._env.restore(self._snapshot)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


class _FirstChunk:
    """A policy whose first proposal of an episode is given."""

    def __init__(self, policy: Policy, chunk: Float32) -> None:
        self._policy, self._chunk, self._used = policy, chunk, False
        self.version, self.action_dim, self.horizon = policy.version, policy.action_dim, policy.horizon

    def reset(self) -> None:
        self._policy.reset()
        self._used = False

    def observe(self, observation: Observation) -> None:
        self._policy.observe(observation)

    def sample(self, k: int, seed: int) -> Candidates:
        if self._used:
            return self._policy.sample(k, seed)
        self._used = True
        return Candidates(self._chunk[None])


def _name(task: str, number: int) -> str:
    return f"{task}-{number:05d}.safetensors"


def _load(out: Path, row: Row) -> BranchPoint:
    from safetensors.numpy import load_file

    arrays = load_file(out / _FOLDER / _name(row["task"], row["number"]))
    images = {key.removeprefix("image."): a for key, a in arrays.items() if key.startswith("image.")}
    observation = Observation(
        images, arrays["state"], row["instruction"], row["stamp_ns"], arrays.get("environment_state")
    )
    success, returns = np.array(row["success"], bool), np.array(row["returns"], np.float64)
    return BranchPoint(row["task"], row["number"], observation, arrays["candidates"], success, returns)
