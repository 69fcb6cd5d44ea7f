"""Did the episode succeed? By order (VOC), final value or both, with thresholds from labelled episodes.

VOC alone says order, not success: an episode that fails late has a high one (arXiv 2602.19313). The rule
"both" is a logistic regression on the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.layout import read_json, write_json
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.rows import Row

FORMAT = "valueguide-success-1"
RULES = ("voc", "final", "both")
#: GVL-SD (arXiv 2411.04549) calls VOC of 0.5 or more success, without calibration.
PAPER_VOC = 0.5
_ENOUGH = 5
_RIDGE, _STEPS = 1e-4, 100
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """Thresholds, and the weights of the rule "both".

    rule: which of RULES gives the verdict. thresholds: rule -> least score of a success.
    weights: of 1, VOC and final value; the logistic function of their sum is the probability of success.
    settings: under which the calibration rows were made; see `check_settings`.
    facts: how many episodes it was calibrated on.
    """

    rule: str
    thresholds: dict[str, float]
    weights: tuple[float, float, float]
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(mismatch("detector", "rule", f"one of {', '.join(RULES)}", repr(self.rule)))
        numbers = [*self.weights, *self.thresholds.values()]
        if set(self.thresholds) != set(RULES) or len(self.weights) != 3 or not np.isfinite(numbers).all():
            found = f"{self.thresholds}, {self.weights}"
            raise ConfigError(mismatch("detector", "numbers", f"thresholds of {RULES}, three weights", found))

    def score(self, row: Row, rule: str = "") -> float | None:
        """The number that is held against the threshold; None for an episode that is undecided."""
        if undecided(row):
            return None
        voc, final = _features(row)
        rule = rule or self.rule
        if rule == "both":
            return _logistic(self.weights[0] + self.weights[1] * voc + self.weights[2] * final)
        return voc if rule == "voc" else final

    def verdict(self, row: Row, rule: str = "") -> bool | None:
        """True for success, False for failure, None for undecided."""
        score = self.score(row, rule)
        return None if score is None else score >= self.thresholds[rule or self.rule]

    def check_settings(self, plan: Row, where: str) -> None:
        """Raises ConfigError when rows made under `plan` are of another model, prompt or choice of frames.

        The dataset, the address of an endpoint and the device may differ.
        """
        mine, theirs = _comparable(self.settings), _comparable(plan)
        different = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        if different:
            raise ConfigError(
                f"{where}: made with other settings than the detector ({', '.join(different)}). "
                "Calibrate again on labelled episodes scored in the same way"
            )

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Detector:
        """Raises DataError for a file that is missing, damaged or of another kind."""
        found = read_json(path) if path.is_file() else None
        if not isinstance(found, dict) or found.pop("format", "") != FORMAT:
            raise DataError(mismatch(str(path), "file", FORMAT, "none" if found is None else "another kind"))
        try:
            return cls(**{**found, "weights": tuple(found["weights"])})
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged: {error}") from error


def undecided(row: Row) -> str:
    """Why nothing is said about an episode, "" where something is."""
    if row["status"] not in ("ok", "partial"):
        return str(row["status"])
    return "the last value is missing" if row["final"] is None else ""


def calibrate(rows: Sequence[Row], rule: str, settings: Row) -> Detector:
    """A detector from labelled rows (`success` true or false). Undecided episodes are left out.

    Each threshold gives the most right verdicts on these rows; of several that do, the middle one.
    Raises DataError with fewer than 5 successes or failures.
    """
    known = [row for row in rows if row.get("success") is not None and not undecided(row)]
    label = np.array([bool(row["success"]) for row in known], bool)
    counts = f"{int(label.sum())} successes, {int((~label).sum())} failures"
    if min(label.sum(), (~label).sum()) < _ENOUGH:
        raise DataError(mismatch("calibration", "episodes", f"{_ENOUGH} or more of each outcome", counts))
    features = np.array([_features(row) for row in known])
    weights = _fit(features, label)
    scores = {"voc": features[:, 0], "final": features[:, 1]}
    scores["both"] = np.array([_logistic(weights[0] + weights[1] * v + weights[2] * f) for v, f in features])
    facts = {
        "episodes": len(rows),
        "successes": int(label.sum()),
        "failures": int((~label).sum()),
        "left_out": len(rows) - len(known),
    }
    thresholds = {name: _threshold(scores[name], label) for name in RULES}
    return Detector(rule, thresholds, weights, dict(settings), facts)


def _features(row: Row) -> tuple[float, float]:
    """VOC and final value. Constant values have no order, and none is what they show: 0."""
    return (0.0 if row["voc"] is None else float(row["voc"])), float(row["final"])


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _fit(features: Float64, label: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Logistic regression by Newton's method; a small ridge keeps separable episodes finite.

    Minimises mean log loss + ridge / 2 * (squared weights without the intercept).
    """
    x = np.column_stack([np.ones(len(features)), features])
    ridge = np.array([0.0, _RIDGE, _RIDGE])

    def loss(w: Float64) -> float:
        z = x @ w
        return float(np.mean(np.logaddexp(0.0, z) - label * z) + ridge @ w**2 / 2)

    weights = np.zeros(3)
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -700, 700)))
        gradient = x.T @ (p - label) / len(x) + ridge * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + np.diag(ridge + 1e-12)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if np.abs(gradient).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1]), float(weights[2])


def _threshold(scores: Float64, label: NDArray[np.bool_]) -> float:
    """Between two neighbouring scores, where most verdicts are right; beyond the ends is allowed too."""
    levels = np.unique(scores)
    cuts = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:] + 1e-6])
    ones, zeros = np.sort(scores[label]), np.sort(scores[~label])
    right = len(ones) - np.searchsorted(ones, cuts) + np.searchsorted(zeros, cuts)
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])


def _comparable(plan: Row) -> dict[str, Any]:
    backend = {k: v for k, v in plan.get("backend", {}).items() if k not in ("endpoint", "device", "version")}
    kept = {k: v for k, v in plan.items() if k not in ("dataset", "wrong_instruction", "seed", "backend")}
    return json.loads(json.dumps({**kept, **{f"backend.{k}": v for k, v in backend.items()}}))
