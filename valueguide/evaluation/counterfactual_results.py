"""From decisions made again to figures: what changed, how values and outcomes relate, who agrees with whom.

Rates carry Wilson intervals, as if decisions were independent, which within an episode they are not; all
other intervals are bootstraps over episodes. Values are compared with outcomes over episodes that no human
touched, and the value is always that of the candidate that ran, since the outcome is its.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.evaluation.counterfactual import OUTCOMES, Log
from valueguide.evaluation.ranking import spearman
from valueguide.evaluation.resample import (
    Measure,
    auc_of,
    difference,
    figure,
    figure_within,
    mean_of,
    spearman_of,
)
from valueguide.evaluation.statistics import wilson
from valueguide.types import Decision, Float32

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Int64 = NDArray[np.int64]
#: The name of the log's own scores among the critics.
LOGGED = "logged critic"
CAVEAT = (
    "From the first changed choice of an episode on, the logged states are off the path that the new choice "
    "would have taken. Only the decision points are comparable, each on its own: nothing here says how an "
    "episode would have ended. Values and outcomes relate through the candidates that ran."
)


@dataclass(frozen=True)
class _Rated:
    """One critic's decisions as arrays over N. rated: all its scores are finite numbers.

    changed: it takes another candidate than the one that ran. value: of the candidate that ran. regret: how
    much more its best candidate is worth. value and regret are NaN where not rated.
    """

    decisions: Sequence[Decision]
    rated: Bools
    changed: Bools
    value: Array
    regret: Array

    def values(self, number: int) -> Float32:
        values = self.decisions[number].values
        assert values is not None
        return values


def build_results(
    settings: dict[str, Any],
    log: Log,
    made: Mapping[str, Sequence[Decision]],
    versions: Mapping[str, str],
    seed: int = 0,
) -> dict[str, Any]:
    """made: critic -> N decisions; LOGGED may be among them. versions: critic -> content hash.

    {"settings", "caveat", "log", "critics": {name: …}, "versus_logged": {name: {"auc", "spearman"}},
    "between": {"a_vs_b": {"same", "rank"}}}; docs/online.md names the figures. JSON-ready.
    """
    logged = _rated(log, [entry.decision for entry in log.decisions])
    critics = {name: _rated(log, decisions) for name, decisions in made.items()}
    return {
        "settings": settings,
        "caveat": CAVEAT,
        "log": _log(log),
        "critics": {
            name: _critic(log, rated, logged, versions.get(name, ""), seed) for name, rated in critics.items()
        },
        "versus_logged": {
            name: _versus(log, rated, critics[LOGGED], seed)
            for name, rated in critics.items()
            if LOGGED in critics and name != LOGGED
        },
        "between": {
            f"{a}_vs_{b}": _between(log, critics[a], critics[b], seed)
            for a, b in combinations([name for name in critics if name != LOGGED], 2)
        },
    }


def _rated(log: Log, decisions: Sequence[Decision]) -> _Rated:
    rated = np.array([d.values is not None and bool(np.isfinite(d.values).all()) for d in decisions], bool)
    ran = [entry.decision.index for entry in log.decisions]
    changed = np.array([d.index != index for d, index in zip(decisions, ran, strict=True)], bool)
    value, best = np.full((2, len(decisions)), np.nan)
    for number in np.flatnonzero(rated):
        values = decisions[number].values
        assert values is not None
        value[number], best[number] = values[ran[number]], values.max()
    return _Rated(decisions, rated, changed, value, best - value)


def _log(log: Log) -> dict[str, Any]:
    sizes = [len(entry.candidates) for entry in log.decisions]
    present = np.unique(log.episode)
    return {
        "episodes": len(log.tasks),
        "decisions": len(log.decisions),
        "tasks": dict(Counter(log.tasks)),
        "outcomes": {kind: log.outcomes.count(kind) for kind in OUTCOMES},
        "episodes_with_decisions": len(present),
        "k": [min(sizes), max(sizes)],
        "executed_length": log.executed_length,
        "reasons": dict(Counter(entry.decision.reason for entry in log.decisions)),
        "critic_versions": dict(Counter(entry.critic_version for entry in log.decisions)),
        "skipped": log.skipped,
    }


def _critic(log: Log, rated: _Rated, logged: _Rated, version: str, seed: int) -> dict[str, Any]:
    episode, rows = log.episode, np.flatnonzero(rated.rated)
    tasks, outcomes = np.array(log.tasks)[episode], np.array(log.outcomes)[episode]
    hits = rated.changed
    preferred = np.array([entry.decision.preferred for entry in log.decisions])
    chosen = np.array([decision.index for decision in rated.decisions])
    scored = rated.rated & (preferred >= 0)
    return {
        "version": version,
        "rated": len(rows),
        "reasons": dict(Counter(decision.reason for decision in rated.decisions)),
        "changed": {
            "all": _rate(hits[rows]),
            "tasks": {t: _rate(hits[rows][tasks[rows] == t]) for t in dict.fromkeys(log.tasks)},
            "outcomes": {kind: _rate(hits[rows][outcomes[rows] == kind]) for kind in OUTCOMES},
            "on_path": _on_path(episode[rows], hits[rows]),
        },
        "against_logged_critic": _rate((chosen != preferred)[scored]),
        "regret": _over_episodes(rated.regret[rows], episode[rows], seed),
        "agreement": _agreement(log, rated, logged, seed),
        "same_version": _same_version(log, rated, logged, version),
        "outcome": _outcome(log, rated, seed),
        "first_values": _first_values(log, rated),
        "episodes": _episodes(log, rated),
    }


def _rate(hits: Bools) -> dict[str, Any]:
    """rate is None of no decisions."""
    n, found = len(hits), int(hits.sum())
    low, high = wilson(found, n)
    return {"n": n, "successes": found, "rate": found / n if n else None, "wilson95": [low, high]}


def _on_path(episode: Int64, changed: Bools) -> dict[str, Any]:
    """The decisions up to the first changed one of their episode: the new choice would meet them too."""
    before = 0
    for number in np.unique(episode):
        own = np.flatnonzero(changed[episode == number])
        before += int(own[0]) + 1 if len(own) else int((episode == number).sum())
    return {"decisions": before, "n": len(episode)}


def _over_episodes(values: Array, episode: Int64, seed: int) -> dict[str, Any]:
    names, own = np.unique(episode, return_inverse=True)
    return figure(mean_of(values, own), len(names), seed)


def _agreement(log: Log, a: _Rated, b: _Rated, seed: int) -> dict[str, Any]:
    """Spearman of two critics' values over the candidates of one decision, averaged over decisions."""
    both = np.flatnonzero(a.rated & b.rated)
    ranks = np.array([spearman(*(np.asarray(r.values(n), float) for r in (a, b))) for n in both])
    defined = np.isfinite(ranks)
    found = _over_episodes(ranks[defined], log.episode[both][defined], seed)
    return {**found, "decisions": int(defined.sum())}


def _same_version(log: Log, rated: _Rated, logged: _Rated, version: str) -> dict[str, Any] | None:
    """How exactly the log's values come back where this very critic made them; None where it made none."""
    rows = [
        n
        for n in np.flatnonzero(rated.rated & logged.rated)
        if version and log.decisions[n].critic_version == version
    ]
    if not rows:
        return None
    apart = max(float(np.abs(rated.values(n) - logged.values(n)).max()) for n in rows)
    return {"decisions": len(rows), "largest_difference": apart}


def _untouched(log: Log, rated: Bools) -> Int64:
    """Rated decisions of episodes that no human touched."""
    own = np.array(log.outcomes)[log.episode] != "helped"
    return np.flatnonzero(rated & own)


def _outcome(log: Log, rated: _Rated, seed: int) -> dict[str, Any]:
    """Spearman of the value with the realised return, AUC of the first value for success, mean values."""
    rows = _untouched(log, rated.rated)
    means = {kind: _mean_value(log, rated, rows, kind) for kind in ("success", "failure")}
    names = np.unique(log.episode[rows])
    return {
        "spearman": _figure(log, rows, _spearman(log, rated), seed),
        "spearman_within_tasks": _within(log, rows, _spearman(log, rated), seed),
        "auc": _figure(log, rows, _auc(log, rated), seed),
        "auc_within_tasks": _within(log, rows, _auc(log, rated), seed),
        "mean_value": {
            **{kind: figure(measure, len(names), seed) for kind, measure in means.items()},
            "difference": figure(difference(means["success"], means["failure"]), len(names), seed),
        },
    }


#: (decisions, the episode of each counted from 0) -> a measure over those episodes.
Builder = Callable[[Int64, Int64], Measure]


def _spearman(log: Log, rated: _Rated) -> Builder:
    return lambda rows, own: spearman_of(rated.value[rows], log.returns[rows], own)


def _auc(log: Log, rated: _Rated) -> Builder:
    def build(rows: Int64, own: Int64) -> Measure:
        _, first = np.unique(own, return_index=True)
        won = np.array(log.outcomes)[log.episode[rows[first]]] == "success"
        return auc_of(rated.value[rows[first]], won)

    return build


def _figure(log: Log, rows: Int64, build: Builder, seed: int) -> dict[str, Any]:
    names, own = np.unique(log.episode[rows], return_inverse=True)
    return figure(build(rows, own), len(names), seed)


def _within(log: Log, rows: Int64, build: Builder, seed: int) -> dict[str, Any]:
    tasks = np.array(log.tasks)[log.episode[rows]]
    measures = {}
    for task in dict.fromkeys(tasks.tolist()):
        some = rows[tasks == task]
        names, own = np.unique(log.episode[some], return_inverse=True)
        measures[task] = (build(some, own), len(names))
    return figure_within(measures, seed)


def _mean_value(log: Log, rated: _Rated, rows: Int64, kind: str) -> Measure:
    """The mean over episodes that ended like this of their mean value; every episode counts alike."""
    names, own = np.unique(log.episode[rows], return_inverse=True)
    means = np.bincount(own, rated.value[rows]) / np.maximum(np.bincount(own), 1)
    chosen = np.flatnonzero(np.array(log.outcomes)[names] == kind)
    return mean_of(means[chosen], chosen)


def _first_values(log: Log, rated: _Rated) -> dict[str, list[float]]:
    """outcome -> the value of each episode's first rated decision; outcomes without episodes are left out."""
    rows = np.flatnonzero(rated.rated)
    _, first = np.unique(log.episode[rows], return_index=True)
    out: dict[str, list[float]] = {}
    for kind in OUTCOMES:
        found = [float(rated.value[n]) for n in rows[first] if log.outcomes[log.episode[n]] == kind]
        if found:
            out[kind] = found
    return out


def _episodes(log: Log, rated: _Rated) -> list[dict[str, Any]]:
    """Most changed first: by share of changed decisions, then by regret."""
    table = []
    for number in np.unique(log.episode).tolist():
        rows = np.flatnonzero((log.episode == number) & rated.rated)
        if not len(rows):
            continue
        hits = np.flatnonzero(rated.changed[rows])
        table.append(
            {
                "episode": number,
                "task": log.tasks[number],
                "outcome": log.outcomes[number],
                "decisions": len(rows),
                "changed": len(hits),
                "first_change": int(hits[0]) if len(hits) else None,
                "regret": float(rated.regret[rows].mean()),
            }
        )
    return sorted(table, key=lambda row: (-row["changed"] / row["decisions"], -row["regret"], row["episode"]))


def _versus(log: Log, rated: _Rated, logged: _Rated, seed: int) -> dict[str, Any]:
    """The critic's figure less the logged one's over the same decisions, in the same draws of episodes."""
    rows = _untouched(log, rated.rated & logged.rated)
    builders = {"auc": _auc, "spearman": _spearman}

    def paired(of: Callable[[Log, _Rated], Builder]) -> Builder:
        new, old = of(log, rated), of(log, logged)
        return lambda rows, own: difference(new(rows, own), old(rows, own))

    return {name: _figure(log, rows, paired(of), seed) for name, of in builders.items()}


def _between(log: Log, a: _Rated, b: _Rated, seed: int) -> dict[str, Any]:
    both = a.rated & b.rated
    same = np.array([x.index == y.index for x, y in zip(a.decisions, b.decisions, strict=True)])
    return {"same": _rate(same[both]), "rank": _agreement(log, a, b, seed)}
