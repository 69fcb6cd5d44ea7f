"""How long a chunk takes from request to arrival, in seconds and in control steps."""

from __future__ import annotations

import math
from collections import deque

import numpy as np


class DelayEstimate:
    """A high quantile of the last delays: a late chunk stops the arm, an early one only waits."""

    def __init__(self, first_s: float, window: int = 30, quantile: float = 0.9) -> None:
        """first_s: assumed before anything was measured."""
        self._measured: deque[float] = deque(maxlen=window)
        self._first, self._quantile = first_s, quantile

    def add(self, seconds: float) -> None:
        self._measured.append(seconds)

    @property
    def seconds(self) -> float:
        if not self._measured:
            return self._first
        return float(np.quantile(self._measured, self._quantile))

    def steps(self, period_s: float, most: int) -> int:
        """Control steps that pass meanwhile, 1 … most."""
        return max(1, min(most, math.ceil(self.seconds / period_s - 1e-9)))
