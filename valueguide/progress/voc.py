"""VOC (value-order correlation, GVL arXiv 2411.04549): the rank correlation of values with time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def average_ranks(values: Float64) -> Float64:
    """float64 (n,): ranks from 1; equal values share the mean of their ranks."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2.0)[group]


def value_order_correlation(values: NDArray[np.floating]) -> float | None:
    """Spearman's correlation with average ranks between values (n,), in the order of time, and time.

    NaN (missing) values are left out. None when it is undefined: fewer than two values, or all equal.
    (Ranking with a stable argsort, as is often done, scores constant values +1.)
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if len(known) < 2 or np.all(known == known[0]):
        return None
    ranks = average_ranks(known)
    ranks -= ranks.mean()
    times = np.arange(len(known)) - (len(known) - 1) / 2.0
    correlation = ranks @ times / np.sqrt((ranks @ ranks) * (times @ times))
    return float(np.clip(correlation, -1.0, 1.0))
