"""From scores to one index: pure functions, no clock, no model."""

from __future__ import annotations

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Decision, Float32, Scores

AGGREGATES = ("min", "mean", "lcb")


def aggregate(q: Float32, how: str = "min") -> Float32:
    """(M, K) -> (K,). min: pessimistic, as V-GPS. lcb: mean minus one standard deviation."""
    if how == "min":
        return q.min(axis=0)
    if how == "mean":
        return q.mean(axis=0)
    if how == "lcb":
        return q.mean(axis=0) - q.std(axis=0)
    raise ConfigError(mismatch("steering", "aggregate", AGGREGATES, repr(how)))


def decide(
    scores: Scores | None,
    *,
    beta: float = 0.0,
    how: str = "min",
    seed: int = 0,
    elapsed_s: float = 0.0,
    deadline_s: float = float("inf"),
    spread_limit: float | None = None,
    shadow: bool = False,
) -> Decision:
    """Choose a candidate: argmax at beta = 0, else drawn from softmax(Q / beta) (V-GPS, eq. 4).

    Falls back to candidate 0, which is the policy alone, with the reason: "no_critic", "deadline"
    (elapsed_s, the time since sampling began, is past deadline_s), "non_finite", "all_equal", or
    "spread" (the members disagree about the preferred candidate by more than spread_limit).
    shadow: decide and record, but execute candidate 0. Ties go to the lowest index.
    """
    check_beta(beta)
    if scores is None:
        return Decision(0, "no_critic", latency_s=elapsed_s)
    with np.errstate(invalid="ignore"):  # inf - inf is one of the findings below, not a warning
        values = aggregate(scores.q, how).astype(np.float32)
    if not np.isfinite(scores.q).all():
        return Decision(0, "non_finite", values=values, scores=scores, latency_s=elapsed_s)
    drawn = beta > 0
    preferred = _draw(values, beta, seed) if drawn else int(values.argmax())
    reason = _fallback(scores.q, values, preferred, elapsed_s, deadline_s, spread_limit)
    if reason is None and shadow:
        reason = "shadow"
    return Decision(
        index=preferred if reason is None else 0,
        reason=reason or ("softmax" if drawn else "argmax"),
        preferred=preferred,
        values=values,
        scores=scores,
        seed=seed if drawn else -1,
        latency_s=elapsed_s,
    )


def check_beta(beta: float) -> None:
    """Raises ConfigError for a softmax temperature that is negative or not finite."""
    if not np.isfinite(beta) or beta < 0:
        raise ConfigError(mismatch("steering", "beta", "a finite number >= 0", beta))


def softmax(values: Float32, beta: float) -> Float32:
    """Probabilities (K,) proportional to exp(values / beta), float64."""
    scaled = (values.astype(np.float64) - values.max()) / beta
    weights = np.exp(scaled)
    return weights / weights.sum()


def _draw(values: Float32, beta: float, seed: int) -> int:
    return int(np.random.default_rng(seed).choice(len(values), p=softmax(values, beta)))


def _fallback(
    q: Float32,
    values: Float32,
    preferred: int,
    elapsed_s: float,
    deadline_s: float,
    spread_limit: float | None,
) -> str | None:
    if elapsed_s > deadline_s:
        return "deadline"
    if len(values) > 1 and np.ptp(values) == 0:
        return "all_equal"
    if spread_limit is not None and np.ptp(q[:, preferred]) > spread_limit:
        return "spread"
    return None
