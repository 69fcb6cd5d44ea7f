"""How good verdicts on success are, held against how episodes were recorded to end. Pure functions.

An undecided episode is neither right nor wrong in "accuracy", and wrong in "accuracy_of_all".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.evaluation.resample import auc_of, figure
from valueguide.evaluation.statistics import share
from valueguide.progress.rows import Row
from valueguide.progress.success import PAPER_VOC, RULES, Detector, undecided

_BINS = 10
Float64 = NDArray[np.float64]


def judge(detector: Detector, rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Figures of every rule on labelled rows that the detector was not calibrated on.

    {"episodes", "successes", "undecided": {"successes", "failures"}; "rules": {rule: see `_figures`, with
    "threshold"}, and "voc_paper" for VOC >= 0.5 as in GVL-SD; "calibration": of the probability of "both",
    see `reliability`; "tasks": {task: accuracy of the detector's own rule}}. Shares have Wilson intervals,
    AUC a bootstrap over episodes.
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
            task: _task(detector, rows, task) for task in sorted({r["task"] for r in rows if "task" in r})
        },
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


def _task(detector: Detector, rows: Sequence[Row], task: str) -> dict[str, Any]:
    found = [(detector.verdict(row), bool(row["success"])) for row in rows if row.get("task") == task]
    decided = [said == true for said, true in found if said is not None]
    return share(sum(decided), len(decided))
