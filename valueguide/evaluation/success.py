"""How good verdicts on success are, held against how episodes were recorded to end. Pure functions.

An undecided episode is neither right nor wrong in "accuracy", and wrong in "accuracy_of_all".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.evaluation.resample import auc_of, figure, mean_of
from valueguide.evaluation.statistics import share
from valueguide.progress.rows import Row
from valueguide.progress.success import PAPER_VOC, RULES, Detector, undecided

_BINS = 10
Float64 = NDArray[np.float64]


def judge(detector: Detector, rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Figures of every rule on labelled rows that the detector was not calibrated on.

    {"episodes", "successes", "undecided": {"successes", "failures"}; "rules": {rule: see `_figures`, with
    "threshold"}, and "voc_paper" for VOC >= 0.5 as in GVL-SD; "calibration": of the probability of "both",
    see `reliability`; "tasks": {task: accuracy of the detector's own rule}; "kinds": {how episodes ended, see
    progress.rows.kind_of: see `_kind`}}. Shares have Wilson intervals, AUC and means a bootstrap over
    episodes.
    """
    label = np.array([bool(row["success"]) for row in rows], bool)
    known = np.array([not undecided(row) for row in rows], bool)
    rules: dict[str, Any] = {}
    for rule in RULES:
        scores = _scores(detector, rows, known, rule)
        rules[rule] = _figures(scores, label[known], detector.thresholds[rule], label, seed)
    rules["voc_paper"] = _figures(_scores(detector, rows, known, "voc"), label[known], PAPER_VOC, label, seed)
    return {
        "episodes": len(rows),
        "successes": int(label.sum()),
        "undecided": {"successes": int((~known & label).sum()), "failures": int((~known & ~label).sum())},
        "rules": rules,
        "calibration": reliability(_scores(detector, rows, known, "both"), label[known]),
        "tasks": {
            name: _accuracy(detector, group) for name, group in _groups(rows, ("task_name", "task")).items()
        },
        "kinds": {name: _kind(detector, group, seed) for name, group in _groups(rows, ("kind",)).items()},
    }


def roc(scores: Float64, label: NDArray[np.bool_]) -> list[list[float]]:
    """[[false positive rate, true positive rate, threshold], …] from (0, 0) to (1, 1), one for each distinct
    score; the first threshold is the highest score. Empty when one kind is missing."""
    ones, zeros = int(label.sum()), int((~label).sum())
    if not ones or not zeros:
        return []
    levels = np.unique(scores)[::-1]
    points = [
        [float(np.sum(scores[~label] >= cut) / zeros), float(np.sum(scores[label] >= cut) / ones), float(cut)]
        for cut in levels
    ]
    return [[0.0, 0.0, float(levels[0])], *points]


def reliability(probability: Float64, label: NDArray[np.bool_]) -> dict[str, Any]:
    """{"brier", "ece", "bins": [{"low", "high", "mean", "rate": see statistics.share}, …]} in ten equal bins.

    ece: the mean over episodes of the difference between the mean probability of an episode's bin and the
    rate of successes in it. Both None without episodes.
    """
    if not len(probability):
        return {"brier": None, "ece": None, "bins": []}
    place = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for i in np.unique(place):
        inside = place == i
        mean, count = float(probability[inside].mean()), int(label[inside].sum())
        bins.append(
            {
                "low": i / _BINS,
                "high": (i + 1) / _BINS,
                "mean": mean,
                "rate": share(count, int(inside.sum())),
            }
        )
        error += abs(float(label[inside].sum()) - float(probability[inside].sum()))
    return {
        "brier": float(np.mean((probability - label) ** 2)),
        "ece": error / len(probability),
        "bins": bins,
    }


def _scores(detector: Detector, rows: Sequence[Row], known: NDArray[np.bool_], rule: str) -> Float64:
    chosen = [row for row, kept in zip(rows, known, strict=True) if kept]
    return np.array([detector.score(row, rule) for row in chosen], np.float64)


def _figures(
    scores: Float64, label: NDArray[np.bool_], threshold: float, every: NDArray[np.bool_], seed: int
) -> dict[str, Any]:
    """scores, label: of decided episodes. every: labels of all."""
    said = scores >= threshold
    right, hits = int((said == label).sum()), int((said & label).sum())
    return {
        "threshold": threshold,
        "accuracy": share(right, len(label)),
        "accuracy_of_all": share(right, len(every)),
        "precision": share(hits, int(said.sum())),
        "recall": share(hits, int(label.sum())),
        "false_alarms": share(int((said & ~label).sum()), int((~label).sum())),
        "auc": figure(auc_of(scores, label), len(label), seed),
        "roc": roc(scores, label),
    }


def _groups(rows: Sequence[Row], names: tuple[str, ...]) -> dict[str, list[Row]]:
    """Rows by the first of the entries `names` that they have, sorted."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        found = [str(row[name]) for name in names if row.get(name)]
        if found:
            groups.setdefault(found[0], []).append(row)
    return dict(sorted(groups.items()))


def _accuracy(detector: Detector, rows: Sequence[Row]) -> dict[str, Any]:
    found = [(detector.verdict(row), bool(row["success"])) for row in rows]
    decided = [said == true for said, true in found if said is not None]
    return share(sum(decided), len(decided))


def _kind(detector: Detector, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """{"episodes", "accuracy", "called_success", "voc", "final"}: all but the first of decided episodes; the
    means of VOC, where it is defined, and of the final value."""
    known = [row for row in rows if not undecided(row)]
    said = sum(detector.verdict(row) is True for row in known)
    return {
        "episodes": len(rows),
        "accuracy": _accuracy(detector, rows),
        "called_success": share(said, len(known)),
        **{
            name: _mean([row[name] for row in known if row[name] is not None], seed)
            for name in ("voc", "final")
        },
    }


def _mean(values: list[float], seed: int) -> dict[str, Any]:
    return figure(mean_of(np.array(values, np.float64), np.arange(len(values))), len(values), seed)
