"""STARC distance between rewards (Skalse et al., arXiv 2309.15257), on sampled transitions.

Two rewards that differ by potential shaping and a positive factor order all policies alike. The distance
removes both: canonicalise, divide by the norm, take half the length of the difference. It lies in [0, 1].

Canonicalisation: the minimal one for the L2 norm (the paper's section on minimal canonicalisations), that is
c(R) = R + discount * Phi(s') - Phi(s) with the Phi for which it is shortest. What is approximated:
- the norm is taken over the transitions that were recorded, not over all (s, a, s');
- Phi is linear in given features of the state, so that only such potentials are removed (exactly). With a
  free Phi for each state every reward along a trajectory could be explained away;
- the successor that was seen stands for the expectation over successors, which is exact for a deterministic
  environment only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch

Array = NDArray[np.float64]
#: A canonical reward this much smaller than the reward itself is zero up to rounding.
_ZERO = 1e-10


@dataclass(frozen=True)
class Transitions:
    """N sampled transitions.

    features, following: float64 (N, F), of the state before and after. discount: float64 (N,), gamma to the
    power of the steps between them, times 0 where the state after is terminal.
    Raises DataError when the shapes do not fit.
    """

    features: Array
    following: Array
    discount: Array

    def __post_init__(self) -> None:
        if self.features.shape != self.following.shape or self.discount.shape != self.features.shape[:1]:
            shapes = f"{self.features.shape}, {self.following.shape}, {self.discount.shape}"
            raise DataError(mismatch("transitions", "shapes", "(N, F), (N, F), (N,)", shapes))


def starc_distance(a: Array, b: Array, transitions: Transitions) -> float:
    """Of two rewards (N,): 0 for the same up to shaping and a positive factor, 1 for opposite ones.

    One canonical reward that is zero (nothing but shaping) is 0.5 from all others; two such are 0 apart.
    """
    return starc_measure(a, b, transitions, np.zeros(len(a), np.int64))(np.ones(1))


def starc_measure(
    a: Array, b: Array, transitions: Transitions, episode: NDArray[np.int64]
) -> Callable[[Array], float]:
    """The distance when episode i counts `counts[i]` times: a `resample.Measure`. episode: int64 (N,).

    NaN when nothing counts. Only second moments are summed, so that a draw costs one small linear system.
    """
    basis = transitions.discount[:, None] * transitions.following - transitions.features
    # Shaping out of the whole first: in the sums of squares below, a large one would drown what is left.
    rewards = np.column_stack([a, b])
    left = rewards - basis @ np.linalg.lstsq(basis, rewards, rcond=None)[0]
    columns = np.column_stack([basis, left, rewards])
    moments = np.zeros((int(episode.max(initial=-1)) + 1, columns.shape[1], columns.shape[1]))
    for number in range(len(moments)):
        rows = columns[episode == number]
        moments[number] = rows.T @ rows
    size = basis.shape[1]

    def measure(counts: Array) -> float:
        total = np.tensordot(counts[: len(moments)], moments, 1)
        mixed, inner = total[:size, size : size + 2], total[size : size + 2, size : size + 2]
        if not np.any(counts[: len(moments)]):
            return float("nan")
        explained = mixed.T @ np.linalg.pinv(total[:size, :size], rcond=_ZERO, hermitian=True) @ mixed
        canonical = np.asarray(inner - explained, np.float64)
        return _distance(canonical, np.diag(total)[-2:])

    return measure


def principal_features(states: Array, count: int) -> Array:
    """float64 (N, 1 + m): a constant and the first m <= count principal components of standardised states
    (N, D), each with unit variance; dimensions that do not vary say nothing."""
    spread = states.std(axis=0)
    varied = spread > 1e-9
    scaled = (states[:, varied] - states[:, varied].mean(axis=0)) / spread[varied]
    left, strength, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = min(count, int((strength > 1e-6 * strength.max(initial=0.0)).sum()))
    return np.column_stack([np.ones(len(states)), left[:, :kept] * np.sqrt(len(states))])


def _distance(canonical: Array, raw: Array) -> float:
    """From the inner products of two canonical rewards (2, 2), and squared lengths of the rewards (2,)."""
    squares = np.diag(canonical)
    zero = squares <= _ZERO * raw
    if zero.all():
        return 0.0
    if zero.any():
        return 0.5
    cosine = canonical[0, 1] / np.sqrt(squares[0] * squares[1])
    return float(0.5 * np.sqrt(max(0.0, 2.0 - 2.0 * min(1.0, cosine))))
