"""Do value functions agree? Rank correlation and STARC distance of several curves along the same episodes.

A curve is a number for each of an episode's frames: progress by a model, the simulator's true progress, a
critic's value. Intervals are percentile bootstraps over episodes, drawn within each task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.evaluation.ranking import spearman
from valueguide.evaluation.resample import Measure, figure, figure_within, mean_of, spearman_of
from valueguide.evaluation.starc import Transitions, principal_features, starc_measure

Array = NDArray[np.float64]
Int64 = NDArray[np.int64]
MEASURES = ("within", "pooled", "starc")
_POTENTIALS = 16


@dataclass(frozen=True)
class Curves:
    """One episode.

    positions: int64 (n,), ascending: which frames. values: curve -> float64 (n,), NaN where it is not known.
    states: float64 (n, D), what potentials may depend on.
    """

    task: str
    episode: int
    success: bool
    positions: Int64
    values: Mapping[str, Array]
    states: Array

    def __post_init__(self) -> None:
        shapes = {len(self.states), *(len(v) for v in self.values.values())}
        if shapes != {len(self.positions)} or np.any(np.diff(self.positions) <= 0):
            raise DataError(mismatch("curves", "positions", "ascending, one a value and state", shapes))


def agreement(episodes: Sequence[Curves], gamma: float = 0.98, seed: int = 0) -> dict[str, Any]:
    """For each pair of curves {"a ~ b": {measure: figure}}; only frames where both are known count.

    within: the mean over episodes of the rank correlation along the episode; episodes where it is undefined
        (a constant curve, fewer than three frames) do not count.
    pooled: the rank correlation over all frames of a task, so that levels of different episodes count too.
    starc: see `starc`. A value function f stands for the reward f(s'); its gain f(s') - f(s) is the same
        up to shaping and a factor. Transitions lead from one known frame to the next, discounted by gamma to
        the power of the frames between; potentials are linear in 16 principal components of the states.
        Undefined with less than two transitions for each of these.
    Each figure is {"value", "ci95", "episodes", "tasks": {task: figure}}; the value is the mean over tasks.
    Raises ConfigError for gamma outside (0, 1), DataError without episodes or with fewer than two curves.
    """
    if not 0.0 < gamma < 1.0:
        raise ConfigError(mismatch("agreement", "gamma", "above 0, below 1", gamma))
    names = list(episodes[0].values) if episodes else []
    if len(names) < 2 or any(list(e.values) != names for e in episodes):
        raise DataError(mismatch("agreement", "curves", "the same two or more in each episode", names))
    tasks: dict[str, list[Curves]] = {}
    for one in episodes:
        tasks.setdefault(one.task, []).append(one)
    makers: dict[str, Callable[[list[Curves], str, str], tuple[Measure, int]]] = {
        "within": _within,
        "pooled": _pooled,
        "starc": lambda some, a, b: _starc(some, a, b, gamma),
    }
    return {
        f"{a} ~ {b}": {name: _figure(tasks, make, a, b, seed) for name, make in makers.items()}
        for a, b in itertools.combinations(names, 2)
    }


def _figure(
    tasks: Mapping[str, list[Curves]],
    make: Callable[[list[Curves], str, str], tuple[Measure, int]],
    a: str,
    b: str,
    seed: int,
) -> dict[str, Any]:
    made = {task: make(some, a, b) for task, some in tasks.items()}
    total = figure_within(made, seed)
    return {**total, "tasks": {task: figure(measure, n, seed) for task, (measure, n) in made.items()}}


def _both(one: Curves, a: str, b: str) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The values of both where both are known, and where that is."""
    known = ~np.isnan(one.values[a]) & ~np.isnan(one.values[b])
    return one.values[a][known], one.values[b][known], known


def _within(episodes: list[Curves], a: str, b: str) -> tuple[Measure, int]:
    pairs = [_both(one, a, b)[:2] for one in episodes]
    found = np.array([spearman(x, y) if len(x) > 2 else np.nan for x, y in pairs])
    found = found[~np.isnan(found)]
    return mean_of(found, np.arange(len(found))), len(found)


def _pooled(episodes: list[Curves], a: str, b: str) -> tuple[Measure, int]:
    pairs = [pair for pair in (_both(one, a, b)[:2] for one in episodes) if len(pair[0])]
    if not pairs:
        return _undefined, 0
    owner = np.repeat(np.arange(len(pairs)), [len(x) for x, _ in pairs])
    return spearman_of(
        np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]), owner
    ), len(pairs)


def _starc(episodes: list[Curves], a: str, b: str, gamma: float) -> tuple[Measure, int]:
    parts = [(one, *_both(one, a, b)) for one in episodes]
    parts = [part for part in parts if len(part[1]) > 1]
    if not parts:
        return _undefined, 0
    sizes = [len(x) - 1 for _, x, _, _ in parts]
    states = np.concatenate([one.states[known] for one, _, _, known in parts])
    features = principal_features(states, _POTENTIALS)
    ends = np.cumsum([size + 1 for size in sizes]) - 1
    before = np.delete(np.arange(len(states)), ends)
    if len(before) < 2 * features.shape[1]:
        return _undefined, len(parts)
    gaps = np.concatenate([np.diff(one.positions[known]) for one, _, _, known in parts])
    moves = Transitions(features[before], features[before + 1], gamma**gaps)
    first = np.concatenate([x[1:] for _, x, _, _ in parts])
    second = np.concatenate([y[1:] for _, _, y, _ in parts])
    owner = np.repeat(np.arange(len(parts)), sizes)
    return starc_measure(first, second, moves, owner), len(parts)


def _undefined(counts: Array) -> float:
    return float("nan")
