"""Guided episodes in which nobody helps, with value and true progress at every decision.

They tell when asking for help would have been right. One set of seeds is for calibration, another for the
test. Every finished episode is kept as a line of JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.arms import ArmFactory, ArmSettings, sampling_seed
from valueguide.evaluation.resume import finished_rows
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.runner import ArmsMaker, SuiteMaker
from valueguide.evaluation.workers import run_jobs
from valueguide.execution.help import pessimistic_value
from valueguide.execution.help_calibration import LabelledEpisode
from valueguide.types import Candidates, Decision, Observation

CALIBRATION, TEST = "calibration", "test"
Job = tuple[str, str, int]
Row = dict[str, Any]
_LOG = "episodes.jsonl"
_ARM = "guided"
#: What may change when a measurement is continued: more of the same episodes.
_EXTENSIBLE = ("tasks", "episodes")


@dataclass(frozen=True)
class HelpPlan:
    """What defines the episodes: `episodes` of each task and set, episode j from the set's seed + j."""

    suite: str
    tasks: tuple[str, ...]
    episodes: int
    calibration_seed: int
    test_seed: int
    settings: ArmSettings

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("calibration_seed", 0), ("test_seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(mismatch("help", name, f"{least} or more", getattr(self, name)))
        if abs(self.calibration_seed - self.test_seed) < self.episodes:
            found = f"{self.calibration_seed} and {self.test_seed} with {self.episodes} episodes each"
            raise ConfigError(mismatch("help", "seeds", "no seed in both sets", found))

    def seed(self, part: str, number: int) -> int:
        return number + (self.calibration_seed if part == CALIBRATION else self.test_seed)

    def jobs(self) -> list[Job]:
        """(set, task, episode), both sets of an episode next to each other."""
        return [(s, t, j) for j in range(self.episodes) for t in self.tasks for s in (CALIBRATION, TEST)]

    def to_json(self) -> dict[str, Any]:
        """What defines the results; not the device."""
        plan = json.loads(json.dumps(asdict(self)))
        del plan["settings"]["device"]
        return plan


def watch_episodes(
    plan: HelpPlan,
    make_suite: SuiteMaker,
    out: Path,
    workers: int,
    on_episode: Callable[[Row], None] = lambda row: None,
    make_arms: ArmsMaker = ArmFactory,
) -> list[Row]:
    """One row per job of the plan, in the order of `plan.jobs()`.

    What `out` holds already is not run again. make_suite and make_arms must be importable in a new process.
    Raises ConfigError when `out` holds episodes of another plan, policy or critic.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / _LOG
    rows = {_job(row): row for row in finished_rows(log, plan.to_json(), _EXTENSIBLE)}
    versions = {_versions(row) for row in rows.values()}
    jobs = plan.jobs()
    for job in jobs:
        if job in rows:
            on_episode(rows[job])
    start = partial(HelpWorker, plan, make_suite, make_arms)
    todo = [job for job in jobs if job not in rows]
    with log.open("a") as file:
        for row in run_jobs(
            start, todo, workers, lambda job: f"{job[0]} set, task {job[1]}, episode {job[2]}"
        ):
            versions.add(_versions(row))
            if len(versions) > 1:
                found = " and ".join(map(str, sorted(versions)))
                raise ConfigError(f"{out}: expected one policy and critic, found {found}. Use another --out")
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            rows[_job(row)] = row
            on_episode(row)
    return [rows[job] for job in jobs]


def labelled(rows: Sequence[Row], part: str) -> list[LabelledEpisode]:
    """The episodes of one set."""
    fields = ("task", "success", "steps", "at", "value", "progress", "instruction")
    return [LabelledEpisode(**{name: row[name] for name in fields}) for row in rows if row["set"] == part]


class HelpWorker:
    """One process's environments and models; called with a job, returns its row."""

    def __init__(self, plan: HelpPlan, make_suite: SuiteMaker, make_arms: ArmsMaker = ArmFactory) -> None:
        self.plan, self.suite = plan, make_suite(plan.suite)
        self._steerer = make_arms(self.suite, plan.settings, (_ARM,)).build(_ARM)
        self._environments: dict[str, _Remembering] = {}

    def __call__(self, job: Job) -> Row:
        """One episode as a JSON-serialisable row; value and progress that are not finite are None."""
        part, task, number = job
        if task not in self._environments:
            self._environments[task] = _Remembering(self.suite.make(task))
        env, seed = self._environments[task], self.plan.seed(part, number)
        seen = _Seen(env)
        noise = sampling_seed(seed, task, self.suite.tasks)
        episode = rollout(
            env, self._steerer, seed, self.suite.max_steps, sampling_seed=noise, watch=seen.decision
        )
        last = episode.steps[-1]
        return {
            "set": part,
            "task": task,
            "episode": number,
            "seed": seed,
            "instruction": episode.task,
            "success": episode.success,
            "failure": episode.metadata["failure"],
            "steps": len(episode.steps),
            "truncated": last.truncated,
            "policy_version": last.policy_version,
            "critic_version": last.critic_version,
            "at": seen.at,
            "value": seen.value,
            "progress": seen.progress,
        }


class _Remembering:
    """An environment that remembers how many steps were taken, and its last info."""

    def __init__(self, env: Any) -> None:
        self._env, self.steps = env, 0
        self.info: dict[str, Any] = {}

    def reset(self, **arguments: Any) -> Any:
        raw, self.info = self._env.reset(**arguments)
        self.steps = 0
        return raw, self.info

    def step(self, action: Any) -> Any:
        *rest, self.info = self._env.step(action)
        self.steps += 1
        return (*rest, self.info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


class _Seen:
    """What a detector would have been given, decision by decision."""

    def __init__(self, env: _Remembering) -> None:
        self._env = env
        self.at: list[int] = []
        self.value: list[float | None] = []
        self.progress: list[float | None] = []

    def decision(self, observation: Observation, candidates: Candidates, decision: Decision) -> None:
        self.at.append(self._env.steps)
        self.value.append(_finite(pessimistic_value(decision)))
        self.progress.append(_finite(self._env.info.get("progress")))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _job(row: Row) -> Job:
    return row["set"], row["task"], row["episode"]


def _versions(row: Row) -> tuple[str, str]:
    return row["policy_version"], row["critic_version"]
