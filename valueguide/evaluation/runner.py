"""Runs many episodes of many arms in parallel processes and keeps every finished one on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from valueguide.errors import ConfigError
from valueguide.evaluation.arms import ArmFactory, ArmSettings, sampling_seed
from valueguide.evaluation.resume import finished_rows
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.suite import Suite
from valueguide.evaluation.workers import run_jobs
from valueguide.steering.steer import Steerer

Job = tuple[str, str, int]
SuiteMaker = Callable[[str], Suite]
#: What may change when an evaluation is continued: more of the same episodes.
_EXTENSIBLE = ("tasks", "arms", "episodes")


class Arms(Protocol):
    """Builds the steerer of an arm; `ArmFactory` is the one that loads checkpoints."""

    def build(self, arm: str) -> Steerer: ...


ArmsMaker = Callable[[Suite, ArmSettings, tuple[str, ...]], Arms]


@dataclass(frozen=True)
class Plan:
    """Everything that defines an evaluation. Episode j of every task and arm starts from seed + j."""

    suite: str
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    episodes: int
    seed: int
    settings: ArmSettings
    wording: str = "train"
    visuals: str = "train"

    def jobs(self) -> list[Job]:
        """(arm, task, episode), with all arms of an episode next to each other."""
        return [(a, t, j) for j in range(self.episodes) for t in self.tasks for a in self.arms]

    def to_json(self) -> dict[str, Any]:
        """What defines the results. Not the device: another machine may continue an evaluation."""
        plan = json.loads(json.dumps(asdict(self)))
        del plan["settings"]["device"]
        return plan


def run_plan(
    plan: Plan,
    make_suite: SuiteMaker,
    out: Path,
    workers: int,
    on_episode: Callable[[dict[str, Any]], None] = lambda row: None,
    make_arms: ArmsMaker = ArmFactory,
) -> list[dict[str, Any]]:
    """One row per job of the plan, in the order of `plan.jobs()`.

    Rows that `out/episodes.jsonl` holds already are not run again, so the same call continues what was
    interrupted, and a call with more episodes, tasks or arms extends it. make_suite and make_arms must
    be importable in a new process. Raises ConfigError when `out` holds an evaluation with other
    settings or other checkpoints.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "episodes.jsonl"
    rows_before = finished_rows(log, plan.to_json(), _EXTENSIBLE)
    known = {(row["arm"], row["task"], row["episode"]): row for row in rows_before}
    jobs = plan.jobs()
    rows = {job: known[job] for job in jobs if job in known}
    for row in rows.values():
        on_episode(row)
    todo = [job for job in jobs if job not in known]
    versions = {row["arm"]: _versions(row) for row in known.values()}
    start = partial(Worker, plan, make_suite, make_arms)
    with log.open("a") as file:
        for row in run_jobs(start, todo, workers, _name):
            if versions.setdefault(row["arm"], _versions(row)) != _versions(row):
                raise ConfigError(
                    f"{out}: holds episodes of arm {row['arm']} with policy and critic "
                    f"{versions[row['arm']]}, these are {_versions(row)}. Use another --out"
                )
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            rows[row["arm"], row["task"], row["episode"]] = row
            on_episode(row)
    return [rows[job] for job in jobs]


def _versions(row: dict[str, Any]) -> tuple[str, str]:
    return row["policy_version"], row["critic_version"]


def _name(job: Job) -> str:
    return f"arm {job[0]}, task {job[1]}, episode {job[2]}"


class Worker:
    """One process's environments and models; called with a job, returns its row."""

    def __init__(self, plan: Plan, make_suite: SuiteMaker, make_arms: ArmsMaker = ArmFactory) -> None:
        self.plan = plan
        self.suite = make_suite(plan.suite)
        arms = make_arms(self.suite, plan.settings, plan.arms)
        self._steerers = {arm: arms.build(arm) for arm in plan.arms}
        self._environments: dict[str, Any] = {}

    def __call__(self, job: Job) -> dict[str, Any]:
        """One episode as a JSON-serialisable row."""
        arm, task, number = job
        seed, steerer = self.plan.seed + number, self._steerers[arm]
        if task not in self._environments:
            self._environments[task] = self.suite.make(task, self.plan.wording, self.plan.visuals)
        episode = rollout(
            self._environments[task],
            steerer,
            seed,
            self.suite.max_steps,
            sampling_seed=sampling_seed(seed, task, self.suite.tasks),
        )
        last, facts = episode.steps[-1], dict(episode.metadata)
        facts["progress"] = facts["progress"] if math.isfinite(facts["progress"]) else None
        return {
            "arm": arm,
            "task": task,
            "episode": number,
            "success": episode.success,
            "any_time_success": any(step.success for step in episode.steps),
            "steps": len(episode.steps),
            "terminated": last.terminated,
            "truncated": last.truncated,
            "policy_version": last.policy_version,
            "critic_version": last.critic_version,
            **facts,
        }
