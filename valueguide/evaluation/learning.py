"""Runs of `train online` side by side: success and takeovers over iterations, and the methods at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.statistics import bootstrap_mean, wilson

Run = dict[str, Any]
Row = dict[str, Any]
#: Settings in which runs that are compared may differ.
_OWN = ("method", "seed", "collect_seed", "weights", "critic_steps", "policy_steps", "learning_rate",
        "backup", "start", "proposals")  # fmt: skip


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """runs: results of finished runs, as `train online --json` writes them.

    Returns, JSON-ready: `success` and `takeovers` (method -> one point an iteration), `final` (method and arm
    -> success), `paired` (each against each; above 0, the first named is better). Rates are means over tasks;
    their intervals are Wilson's over all episodes of all seeds. Those of differences and takeovers are
    bootstrapped over episodes within each task, those with equal initial states paired. How much a result
    varies from one training seed to the next, only the numbers of each seed can say.
    Raises ConfigError for runs of different tasks or budgets.
    """
    if not runs:
        raise ConfigError(mismatch("comparison", "runs", "1 or more", "none"))
    _check_alike(runs)
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run["settings"]["method"], []).append(run)
    last = runs[0]["settings"]["iterations"]
    finals = {
        f"{method}, {_arm_name(arm)}": [_rows(run, last, arm) for run in own]
        for method, own in methods.items()
        for arm in ("base", "guided")
        if _rows(own[0], last, arm)
    }
    return {
        "settings": {k: v for k, v in runs[0]["settings"].items() if k not in _OWN},
        "seeds": {method: [run["settings"]["seed"] for run in own] for method, own in methods.items()},
        "success": {method: _success_curve(own, last) for method, own in methods.items()},
        "takeovers": {method: _takeover_curve(own) for method, own in methods.items()},
        "final": {name: _rate(parts) for name, parts in finals.items()},
        "paired": {
            f"{a} - {b}": _difference(finals[a], finals[b])
            for i, a in enumerate(finals)
            for b in list(finals)[i + 1 :]
        },
    }


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]["settings"]
    for run in runs[1:]:
        for name, value in first.items():
            if name not in _OWN and run["settings"].get(name) != value:
                found = run["settings"].get(name)
                raise ConfigError(mismatch("comparison", name, f"{value} as in the first run", found))


def _arm_name(arm: str) -> str:
    return "policy and critic" if arm == "guided" else "policy alone"


def _rows(run: Run, iteration: int, arm: str) -> list[Row]:
    return [row for row in run["evaluated"].get(f"eval-{iteration}", []) if row["arm"] == arm]


def _success_curve(runs: Sequence[Run], last: int) -> list[dict[str, Any]]:
    """Of the arm that works while the method learns."""
    arm = "guided" if runs[0]["settings"]["method"] == "aloe" else "base"
    points = []
    for iteration in range(last + 1):
        parts = [_rows(run, iteration, arm) for run in runs]
        if all(parts):
            points.append({"iteration": iteration, **_rate(parts)})
    return points


def _takeover_curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    points = []
    for name in sorted(runs[0]["collected"], key=lambda n: int(n.rpartition("-")[2])):
        rows = [row for run in runs for row in run["collected"].get(name, [])]
        mean, low, high = bootstrap_mean(_by_task(rows, "takeovers"))
        human = sum(row["human_steps"] for row in rows) / max(sum(row["steps"] for row in rows), 1)
        success = float(np.mean([row["success"] for row in rows]))
        points.append(
            {
                "iteration": int(name.rpartition("-")[2]),
                "takeovers": mean,
                "ci95": [low, high],
                "human_share": human,
                "success": success,
                "n": len(rows),
            }
        )
    return points


def _rate(parts: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """parts: the rows of each training seed."""
    rows = [row for part in parts for row in part]
    by_task = _by_task(rows, "success")
    return {
        "mean": float(np.mean([np.mean(values) for values in by_task.values()])),
        "wilson95": list(wilson(sum(bool(row["success"]) for row in rows), len(rows))),
        "n": len(rows),
        "tasks": {task: float(np.mean(values)) for task, values in by_task.items()},
        "seeds": [float(np.mean([np.mean(v) for v in _by_task(part, "success").values()])) for part in parts],
    }


def _difference(a: Sequence[Sequence[Row]], b: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """a - b on the same episodes, each first averaged over its training seeds."""
    mine, theirs = _by_episode(a), _by_episode(b)
    by_task: dict[str, list[float]] = {}
    for key in sorted(mine.keys() & theirs.keys()):
        by_task.setdefault(key[0], []).append(mine[key] - theirs[key])
    mean, low, high = bootstrap_mean(by_task)
    return {"delta": mean, "ci95": [low, high], "n": sum(len(values) for values in by_task.values())}


def _by_episode(parts: Sequence[Sequence[Row]]) -> dict[tuple[str, int], float]:
    collected: dict[tuple[str, int], list[float]] = {}
    for part in parts:
        for row in part:
            collected.setdefault((row["task"], row["episode"]), []).append(float(row["success"]))
    return {key: float(np.mean(values)) for key, values in collected.items()}


def _by_task(rows: Sequence[Row], name: str) -> dict[str, list[float]]:
    by_task: dict[str, list[float]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(float(row[name]))
    return by_task
