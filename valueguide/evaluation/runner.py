"""Runs many episodes of many arms in parallel processes and keeps every finished one on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError, ValueguideError
from valueguide.evaluation.arms import ArmFactory, ArmSettings, sampling_seed
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.suite import Suite

SuiteMaker = Callable[[str], Suite]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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

    def jobs(self) -> list[tuple[str, str, int]]:
        """(arm, task, episode), with all arms of an episode next to each other."""
        return [(a, t, j) for j in range(self.episodes) for t in self.tasks for a in self.arms]

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def run_plan(
    plan: Plan,
    make_suite: SuiteMaker,
    out: Path,
    workers: int,
    on_episode: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """All episode rows of the plan; those already in `out/episodes.jsonl` are not run again.

    make_suite must be importable in a new process. Raises ConfigError when `out` holds an evaluation
    with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = _finished(out, plan)
    known = {(r["arm"], r["task"], r["episode"]) for r in rows}
    todo = [job for job in plan.jobs() if job not in known]
    for row in rows:
        on_episode(row)
    if not todo:
        return rows
    with (out / "episodes.jsonl").open("a") as log:
        for row in _simulate_all(plan, make_suite, todo, workers):
            log.write(json.dumps(row) + "\n")
            log.flush()
            rows.append(row)
            on_episode(row)
    return rows


def _finished(out: Path, plan: Plan) -> list[dict[str, Any]]:
    settings = out / "plan.json"
    if settings.exists():
        found = json.loads(settings.read_text())
        if found != plan.to_json():
            different = [k for k, v in plan.to_json().items() if found.get(k) != v]
            raise ConfigError(
                f"{out}: holds an evaluation with other settings ({', '.join(different)}). Use another --out"
            )
    else:
        settings.write_text(json.dumps(plan.to_json(), indent=1))
    path = out / "episodes.jsonl"
    if not path.exists():
        return []
    rows, lines = [], path.read_text().split("\n")
    for line in lines[:-1]:
        rows.append(json.loads(line))
    if lines[-1]:  # a line without its end was cut off by a crash
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return rows


def _simulate_all(
    plan: Plan, make_suite: SuiteMaker, todo: list[tuple[str, str, int]], workers: int
) -> Iterator[dict[str, Any]]:
    if workers <= 1 or len(todo) == 1:
        worker = Worker(plan, make_suite)
        yield from map(worker.run, todo)
        return
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        with context.Pool(workers, _start, (plan, make_suite)) as pool:
            for row in pool.imap_unordered(_run, todo):
                if "error" in row:
                    raise ValueguideError(row["error"])
                yield row
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Worker:
    """One process's environments and models."""

    def __init__(self, plan: Plan, make_suite: SuiteMaker) -> None:
        import torch

        torch.set_num_threads(1)
        self.plan = plan
        self.suite = make_suite(plan.suite)
        self._factory = ArmFactory(self.suite, plan.settings, plan.arms)
        self._steerers = {arm: self._factory.build(arm) for arm in plan.arms}
        self._environments: dict[str, Any] = {}

    def run(self, job: tuple[str, str, int]) -> dict[str, Any]:
        """One episode as a JSON-serialisable row."""
        arm, task, number = job
        seed = self.plan.seed + number
        if task not in self._environments:
            self._environments[task] = self.suite.make(task, self.plan.wording, self.plan.visuals)
        episode = rollout(
            self._environments[task],
            self._steerers[arm],
            seed,
            self.suite.max_steps,
            sampling_seed=sampling_seed(seed, task, self.suite.tasks),
        )
        last = episode.steps[-1]
        return {
            "arm": arm,
            "task": task,
            "episode": number,
            "success": episode.success,
            "any_time_success": any(step.success for step in episode.steps),
            "steps": len(episode.steps),
            "terminated": last.terminated,
            "truncated": last.truncated,
            **episode.metadata,
        }


_worker: Worker | None = None
_start_error: str | None = None


def _start(plan: Plan, make_suite: SuiteMaker) -> None:
    global _worker, _start_error
    try:
        _worker = Worker(plan, make_suite)
    except ValueguideError as error:
        # Raised here, the pool would start workers for ever; the first job reports it instead.
        _start_error = str(error)


def _run(job: tuple[str, str, int]) -> dict[str, Any]:
    if _worker is None:
        return {"error": _start_error or "worker did not start"}
    try:
        return _worker.run(job)
    except ValueguideError as error:
        return {"error": f"arm {job[0]}, task {job[1]}, episode {job[2]}: {error}"}
