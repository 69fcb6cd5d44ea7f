"""Runs of `train online` side by side: success and takeovers over iterations, and the methods at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.comparison import Row, by_task, difference, rate
from valueguide.evaluation.statistics import bootstrap_mean

Run = dict[str, Any]
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
        "final": {name: rate(parts) for name, parts in finals.items()},
        "paired": {
            f"{a} - {b}": difference(finals[a], finals[b])
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
            points.append({"iteration": iteration, **rate(parts)})
    return points


def _takeover_curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    points = []
    for name in sorted(runs[0]["collected"], key=lambda n: int(n.rpartition("-")[2])):
        rows = [row for run in runs for row in run["collected"].get(name, [])]
        mean, low, high = bootstrap_mean(by_task(rows, "takeovers"))
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
