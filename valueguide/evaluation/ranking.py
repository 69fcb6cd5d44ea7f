"""How well a critic ranks candidates whose true values are known: rank correlation, and regret of its choice.

Pure functions over N states with K candidates each. Intervals are percentile bootstraps over states, drawn
within each task; a figure over tasks is the mean of the tasks' figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.evaluation.statistics import bootstrap_mean
from valueguide.progress.voc import average_ranks

Array = NDArray[np.float64]
Chances = NDArray[np.float64]
_DRAWS = 2000


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two equally long series, ties at their mean rank; NaN when one is constant."""
    ranks = [average_ranks(np.ravel(series)) for series in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def kendall(a: Array, b: Array) -> float:
    """Kendall's tau-b of two equally long series (1945); NaN when one is constant."""
    whole = np.zeros(1, np.int64)
    return _kendall_of(np.reshape(a, (1, -1)), np.reshape(b, (1, -1)))(whole)


#: Correlation of the states with these numbers, which may repeat.
Resampled = Callable[[NDArray[np.int64]], float]


def _spearman_of(q: Array, truth: Array) -> Resampled:
    return lambda some: spearman(q[some], truth[some])


def _kendall_of(q: Array, truth: Array) -> Resampled:
    """Pairs of candidates are counted once for every two states, so that a draw of states is a mere sum."""
    n, k = q.shape
    signs = [np.sign(np.subtract.outer(series.ravel(), series.ravel())) for series in (q, truth)]
    parts = (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))
    agreeing, first_differ, second_differ = (part.reshape(n, k, n, k).sum(axis=(1, 3)) for part in parts)

    def value(some: NDArray[np.int64]) -> float:
        times = np.bincount(some, minlength=n)
        scale = float(np.sqrt(float(times @ first_differ @ times) * float(times @ second_differ @ times)))
        return float(times @ agreeing @ times) / scale if scale > 0 else float("nan")

    return value


_MEASURES = {"spearman": _spearman_of, "kendall": _kendall_of}


def rank_correlation(
    tasks: Sequence[str],
    q: Array,
    truth: Array,
    measure: str = "spearman",
    seed: int = 0,
) -> dict[str, Any]:
    """Of Q with the true values over all candidates of all states of a task. q, truth: (N, K).

    measure: "spearman" or "kendall".
    {"mean", "ci95", "tasks": {task: {"value", "ci95", "states"}}}; a task where it is undefined (all true
    values equal) has value None and does not count in the mean.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    draws = []
    for task, rows in _by_task(tasks).items():
        correlation, n = _MEASURES[measure](q[rows], truth[rows]), len(rows)
        value = correlation(np.arange(n))
        spread = np.array([correlation(rng.integers(n, size=n)) for _ in range(_DRAWS)])
        defined = bool(np.isfinite(value))
        out[task] = {
            "value": value if defined else None,
            "ci95": _interval(spread) if defined else None,
            "states": n,
        }
        if defined:
            draws.append(np.where(np.isfinite(spread), spread, value))
    values = [entry["value"] for entry in out.values() if entry["value"] is not None]
    return {
        "mean": float(np.mean(values)) if values else None,
        "ci95": _interval(np.mean(draws, axis=0)) if draws else None,
        "tasks": out,
    }


def within_state(tasks: Sequence[str], q: Array, truth: Array, seed: int = 0) -> dict[str, Any]:
    """Spearman over the K candidates of one state, averaged: what re-ranking lives on.

    {"mean", "ci95", "states"}, of the states whose candidates differ in truth and in Q; None without any.
    """
    by_task: dict[str, list[float]] = {}
    for task, values, true in zip(tasks, q, truth, strict=True):
        value = spearman(values, true)
        if np.isfinite(value):
            by_task.setdefault(task, []).append(value)
    if not by_task:
        return {"mean": None, "ci95": None, "states": 0}
    mean, low, high = bootstrap_mean(by_task, seed)
    return {"mean": mean, "ci95": [low, high], "states": sum(map(len, by_task.values()))}


def greedy(q: Array) -> Chances:
    """Probabilities (N, K) of taking the best by q: 1 for the first of the best."""
    chances = np.zeros_like(q)
    chances[np.arange(len(q)), q.argmax(axis=1)] = 1.0
    return chances


def uniform(n: int, k: int) -> Chances:
    """Probabilities (N, K) of a random choice."""
    return np.full((n, k), 1.0 / k)


def first(n: int, k: int) -> Chances:
    """Probabilities (N, K) of always taking candidate 0, the base policy."""
    return greedy(np.tile(-np.arange(float(k)), (n, 1)))


def regret(tasks: Sequence[str], truth: Array, chances: Chances, seed: int = 0) -> dict[str, Any]:
    """How much true value a choice gives away. truth: (N, K) true values; chances: (N, K).

    Mean over states of (best true value - expected true value of the choice): {"mean", "ci95", "value",
    "tasks": {task: mean}}, where value is the mean true value of the choice. With few rollouts a state the
    best is partly luck, so every choice's regret is too high; differences between choices are not.
    """
    chosen = (truth * chances).sum(axis=1)
    lost = truth.max(axis=1) - chosen
    by_task = {task: lost[rows].tolist() for task, rows in _by_task(tasks).items()}
    mean, low, high = bootstrap_mean(by_task, seed)
    value = float(np.mean([chosen[rows].mean() for rows in _by_task(tasks).values()]))
    return {
        "mean": mean,
        "ci95": [low, high],
        "value": value,
        "tasks": {task: float(np.mean(values)) for task, values in by_task.items()},
    }


def compare(tasks: Sequence[str], truth: Array, a: Chances, b: Chances, seed: int = 0) -> dict[str, Any]:
    """How much more true value choice b gets than choice a in the same states (a's regret less b's).

    {"delta", "ci95", "better", "worse", "n"}: states in which b's value is above or below a's.
    """
    difference = (truth * (b - a)).sum(axis=1)
    difference[np.abs(difference) < 1e-12] = 0.0  # sums of the same values in another order
    by_task = {task: difference[rows].tolist() for task, rows in _by_task(tasks).items()}
    delta, low, high = bootstrap_mean(by_task, seed)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return {"delta": delta, "ci95": [low, high], "better": better, "worse": worse, "n": len(difference)}


def rank_critics(
    tasks: Sequence[str], q: Mapping[str, Array], success: Array, returns: Array, seed: int = 0
) -> dict[str, Any]:
    """Everything about some critics on the same states. q: critic -> (N, K). success, returns: (N, K), true.

    {"states", "k", "informative", "critics": {name: {"spearman", "kendall", "within_state"}}, "regret":
    {choice: {"success", "return"}}, "paired": {"a_vs_b": {"success", "return"}}}. Correlations are with the
    returns. Choices are the critics', "random" and "candidate_0". informative: states whose candidates
    differ in success.
    """
    n, k = returns.shape
    choices = {"random": uniform(n, k), "candidate_0": first(n, k)}
    choices |= {name: greedy(values) for name, values in q.items()}
    kinds = {"success": success, "return": returns}
    names = list(q)
    pairs = [(base, name) for name in names for base in ("random", "candidate_0")]
    pairs += [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {
        "states": n,
        "k": k,
        "informative": int((np.ptp(success, axis=1) > 0).sum()),
        "critics": {
            name: {
                "spearman": rank_correlation(tasks, values, returns, "spearman", seed),
                "kendall": rank_correlation(tasks, values, returns, "kendall", seed),
                "within_state": within_state(tasks, values, returns, seed),
            }
            for name, values in q.items()
        },
        "regret": {
            name: {kind: regret(tasks, truth, chances, seed) for kind, truth in kinds.items()}
            for name, chances in choices.items()
        },
        "paired": {
            f"{a}_vs_{b}": {
                kind: compare(tasks, truth, choices[a], choices[b], seed) for kind, truth in kinds.items()
            }
            for a, b in pairs
        },
    }


def _by_task(tasks: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    return {task: np.array([i for i, t in enumerate(tasks) if t == task]) for task in dict.fromkeys(tasks)}


def _interval(draws: Array) -> list[float]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
