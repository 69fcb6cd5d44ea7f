"""Bootstrap over whole episodes: measures that count every episode a number of times.

Decisions of one episode are not independent, so intervals come from drawing episodes, not decisions. A
measure is a function of how often each episode counts; a draw then costs a few sums and no copy of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Int64 = NDArray[np.int64]
#: float64 (episodes,), how often each counts -> a number, NaN where it is undefined.
Measure = Callable[[Array], float]
_DRAWS = 1000


def mean_of(values: Array, episode: Int64) -> Measure:
    """The mean of values (N,), each of the episode that `episode` (N,) names; NaN over none."""

    def measure(counts: Array) -> float:
        weight = counts[episode]
        total = weight.sum()
        return float(weight @ values / total) if total else float("nan")

    return measure


def difference(a: Measure, b: Measure) -> Measure:
    """a - b in the same draws: a paired comparison."""
    return lambda counts: a(counts) - b(counts)


def spearman_of(a: Array, b: Array, episode: Int64) -> Measure:
    """Rank correlation of a and b (N,), ties at their mean rank; NaN when one of them is constant."""
    first, second = _ranked(a), _ranked(b)

    def measure(counts: Array) -> float:
        weight = counts[episode]
        total = weight.sum()
        if not total:
            return float("nan")
        x, y = first(weight), second(weight)
        x, y = x - weight @ x / total, y - weight @ y / total
        scale = float(np.sqrt((weight @ x**2) * (weight @ y**2)))
        # Ranks are halves of integers: a spread below this is rounding.
        return float(weight @ (x * y)) / scale if scale > 1e-9 * total else float("nan")

    return measure


def auc_of(values: Array, positive: NDArray[np.bool_]) -> Measure:
    """The chance that a positive episode has a higher value than a negative one, ties counting half
    (Mann and Whitney 1947). values, positive: (episodes,). NaN when one kind is missing."""
    ranked = _ranked(values)

    def measure(counts: Array) -> float:
        ones, zeros = counts[positive].sum(), counts[~positive].sum()
        if not ones or not zeros:
            return float("nan")
        above = (counts * ranked(counts))[positive].sum() - ones * (ones + 1) / 2
        return float(above / (ones * zeros))

    return measure


def _ranked(values: Array) -> Callable[[Array], Array]:
    """Mean ranks (N,) of the values when each is there `weight` times."""
    _, group = np.unique(values, return_inverse=True)

    def ranks(weight: Array) -> Array:
        times = np.bincount(group, weight)
        return (np.cumsum(times) - (times - 1) / 2)[group]

    return ranks


def figure(measure: Measure, episodes: int, seed: int = 0) -> dict[str, Any]:
    """{"value", "ci95", "episodes"}: the measure, and its percentile bootstrap 95 % interval over episodes.

    value is None where it is undefined, ci95 also with fewer than two episodes. Draws in which the measure
    is undefined do not count.
    """
    value = measure(np.ones(episodes)) if episodes else float("nan")
    if not np.isfinite(value):
        return {"value": None, "ci95": None, "episodes": episodes}
    draws = _draws(measure, episodes, np.random.default_rng(seed))
    return {"value": float(value), "ci95": _interval(draws, episodes), "episodes": episodes}


def figure_within(tasks: Mapping[str, tuple[Measure, int]], seed: int = 0) -> dict[str, Any]:
    """The mean over tasks of a measure that is taken within each: {"value", "ci95", "episodes", "tasks"}.

    tasks: task -> (measure, episodes). Episodes are drawn within their task. Tasks where the measure is
    undefined (value None in "tasks") do not count.
    """
    rng = np.random.default_rng(seed)
    found = {name: measure(np.ones(n)) for name, (measure, n) in tasks.items()}
    defined = {name: value for name, value in found.items() if np.isfinite(value)}
    out: dict[str, Any] = {"value": None, "ci95": None, "episodes": 0}
    if defined:
        draws = [
            np.where(np.isfinite(spread), spread, defined[name])
            for name in defined
            for spread in (_draws(*tasks[name], rng),)
        ]
        counts = [tasks[name][1] for name in defined]
        out["value"], out["episodes"] = float(np.mean(list(defined.values()))), sum(counts)
        out["ci95"] = _interval(np.mean(draws, axis=0), min(counts))
    return {**out, "tasks": {name: defined.get(name) for name in found}}


def _draws(measure: Measure, episodes: int, rng: np.random.Generator) -> Array:
    counts = rng.multinomial(episodes, np.full(episodes, 1.0 / episodes), size=_DRAWS)
    return np.array([measure(row) for row in counts.astype(np.float64)])


def _interval(draws: Array, episodes: int) -> list[float] | None:
    draws = draws[np.isfinite(draws)]
    if episodes < 2 or not len(draws):
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
