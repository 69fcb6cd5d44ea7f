"""Evaluations that ran apart, side by side: success of each, and what differs on the same episodes.

Several evaluations of one name are training seeds of one method. How much a result varies from one training
seed to the next, only the numbers of each seed can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.statistics import bootstrap_mean, wilson

Row = dict[str, Any]


def compare(named: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, Any]:
    """named: name -> the rows of each training seed, each with `task`, `episode` and `success`.

    Returns, JSON-ready, `final` (name -> see `rate`) and `paired` ("a - b" -> see `difference`; above 0, a is
    better). Raises ConfigError when two names have no episode in common.
    """
    names = list(named)
    paired = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if not _by_episode(named[a]).keys() & _by_episode(named[b]).keys():
                raise ConfigError(
                    mismatch("comparison", f"episodes of {a} and {b}", "some in common", "none")
                )
            paired[f"{a} - {b}"] = difference(named[a], named[b])
    return {"final": {name: rate(parts) for name, parts in named.items()}, "paired": paired}


def rate(parts: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Success: `mean` over tasks, `wilson95` over all episodes, `tasks`, and the mean of each of `seeds`.

    parts: the rows of each training seed.
    """
    rows = [row for part in parts for row in part]
    tasks = by_task(rows, "success")
    return {
        "mean": float(np.mean([np.mean(values) for values in tasks.values()])),
        "wilson95": list(wilson(sum(bool(row["success"]) for row in rows), len(rows))),
        "n": len(rows),
        "tasks": {task: float(np.mean(values)) for task, values in tasks.items()},
        "seeds": [float(np.mean([np.mean(v) for v in by_task(part, "success").values()])) for part in parts],
    }


def difference(a: Sequence[Sequence[Row]], b: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """a - b on the same episodes, each first averaged over its training seeds.

    `delta`, `ci95` (bootstrap over episodes within each task), `n` pairs.
    """
    mine, theirs = _by_episode(a), _by_episode(b)
    tasks: dict[str, list[float]] = {}
    for key in sorted(mine.keys() & theirs.keys()):
        tasks.setdefault(key[0], []).append(mine[key] - theirs[key])
    mean, low, high = bootstrap_mean(tasks)
    return {"delta": mean, "ci95": [low, high], "n": sum(len(values) for values in tasks.values())}


def _by_episode(parts: Sequence[Sequence[Row]]) -> dict[tuple[str, int], float]:
    collected: dict[tuple[str, int], list[float]] = {}
    for part in parts:
        for row in part:
            collected.setdefault((row["task"], row["episode"]), []).append(float(row["success"]))
    return {key: float(np.mean(values)) for key, values in collected.items()}


def by_task(rows: Sequence[Row], name: str) -> dict[str, list[float]]:
    """The entry `name` of every row, by task."""
    tasks: dict[str, list[float]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(float(row[name]))
    return tasks
