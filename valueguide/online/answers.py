"""What a critic says about a probe, in figures, and how far the figures of two critics differ by chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.evaluation.ranking import spearman
from valueguide.interfaces import BatchScorer
from valueguide.online.probe import Probe
from valueguide.steering.decide import aggregate
from valueguide.types import Float32

Float64 = NDArray[np.float64]
_BLOCK = 32
_DRAWS = 200


@dataclass(frozen=True)
class Answers:
    """Of one critic. `not_finite` scores out of all; when there is one, nothing else is known.

    values: float64 (N,), of the chunks that ran, aggregated over members.
    rank: Spearman's correlation with the returns, NaN where one of the two is constant.
    calibration: mean |value - return|. spread: mean difference between members.
    action_std: median over states of the standard deviation across the candidates' values.
    abstention: share of the states in which steering would fall back to the policy because the members differ
        about the best candidate by more than the critic's own limit; None for a critic without a limit.
    """

    not_finite: int
    values: Float64
    rank: float = float("nan")
    calibration: float = float("nan")
    spread: float = float("nan")
    action_std: float = float("nan")
    abstention: float | None = None


def ask(critic: BatchScorer, probe: Probe, how: str = "min") -> Answers:
    """how: to aggregate members, see `steering.decide.aggregate`. Raises what the critic raises."""
    q = _scores(critic, probe)
    bad = int(np.count_nonzero(~np.isfinite(q)))
    if bad:
        return Answers(bad, np.full(len(probe), np.nan))
    values = aggregate(q.reshape(len(q), -1), how).reshape(q.shape[1:])
    ran, candidates = values[:, 0].astype(float), values[:, 1:]
    spread, limit = np.ptp(q, axis=0), getattr(critic, "spread_limit", None)
    best = np.take_along_axis(spread[:, 1:], candidates.argmax(1)[:, None], 1)
    return Answers(
        not_finite=0,
        values=ran,
        rank=spearman(ran, probe.returns.astype(float)),
        calibration=float(np.abs(ran - probe.returns).mean()),
        spread=float(spread.mean()),
        action_std=float(np.median(candidates.std(axis=1))),
        abstention=None if limit is None else float((best > limit).mean()),
    )


def chance(probe: Probe, new: Answers, old: Answers) -> tuple[float, float]:
    """Standard errors of new - old: of the rank correlation, and of the calibration error.

    A bootstrap over episodes, because states of one episode share its luck. NaN where undefined.
    """
    rng, returns = np.random.default_rng(0), probe.returns.astype(float)
    groups = [np.flatnonzero(probe.episode == episode) for episode in np.unique(probe.episode)]
    ranks, errors = [], []
    for _ in range(_DRAWS):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        a, b, truth = new.values[rows], old.values[rows], returns[rows]
        ranks.append(spearman(a, truth) - spearman(b, truth))
        errors.append(float((np.abs(a - truth) - np.abs(b - truth)).mean()))
    defined = [rank for rank in ranks if np.isfinite(rank)]
    return float(np.std(defined)) if defined else float("nan"), float(np.std(errors))


def _scores(critic: BatchScorer, probe: Probe) -> Float32:
    """float32 (M, N, 1 + K): the chunk that ran, then the candidates; a few states at a time."""
    chunks = np.concatenate([probe.chunks[:, None], probe.candidates], axis=1)
    parts = [
        critic.score_batch(probe.observations[first : first + _BLOCK], chunks[first : first + _BLOCK])
        for first in range(0, len(probe), _BLOCK)
    ]
    return np.concatenate(parts, axis=1)
