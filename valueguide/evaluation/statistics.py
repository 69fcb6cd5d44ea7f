"""Intervals and tests for success rates: Wilson, paired bootstrap, exact McNemar, Holm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_Z95 = 1.959963984540054
_DRAWS = 10_000
Key = tuple[str, int]


def wilson(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    denominator = 1 + z**2 / n
    centre = (rate + z**2 / (2 * n)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / denominator
    # Exactly 0 and 1 at the ends, where rounding would leave a crumb.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def share(count: int, of: int) -> dict[str, Any]:
    """{"count", "of", "value", "ci95"}: a rate with its Wilson interval; both None without cases."""
    value, interval = (count / of, list(wilson(count, of))) if of else (None, None)
    return {"count": count, "of": of, "value": value, "ci95": interval}


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of discordant pairs under a fair coin (McNemar 1947)."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def bootstrap_mean(by_task: Mapping[str, Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """The mean over tasks of each task's mean, and its percentile bootstrap 95 % interval, drawn within
    each task (10 000 draws). Raises ValueError for a task without values."""
    rng = np.random.default_rng(seed)
    means = np.zeros(_DRAWS)
    for values in by_task.values():
        array = np.array(values, float)
        means += array[rng.integers(len(array), size=(_DRAWS, len(array)))].mean(axis=1)
    low, high = np.quantile(means / len(by_task), [0.025, 0.975])
    return float(np.mean([np.mean(values) for values in by_task.values()])), float(low), float(high)


def paired_difference(a: Mapping[Key, bool], b: Mapping[Key, bool], seed: int = 0) -> dict[str, Any]:
    """How much better b is than a on the same episodes; keys are (task, episode).

    delta: mean over tasks of the success-rate difference. ci95: percentile bootstrap over episodes,
    drawn within each task. p: exact McNemar over all pairs. n: pairs, of which b alone succeeded in
    `gained` and a alone in `lost`. Only common keys count.
    """
    keys = sorted(a.keys() & b.keys())
    by_task: dict[str, list[int]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(int(b[key]) - int(a[key]))
    if not keys:
        return {"delta": float("nan"), "ci95": [float("nan")] * 2, "p": 1.0, "n": 0, "gained": 0, "lost": 0}
    delta, low, high = bootstrap_mean(by_task, seed)
    only_a = sum(a[k] and not b[k] for k in keys)
    only_b = sum(b[k] and not a[k] for k in keys)
    return {
        "delta": delta,
        "ci95": [low, high],
        "p": mcnemar(only_a, only_b),
        "n": len(keys),
        "gained": only_b,
        "lost": only_a,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
