"""How a measurement is taken: warm-up, alternating runs, medians, and peak memory of the process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping

import numpy as np


def medians(
    functions: Mapping[str, Callable[[], object]], repeats: int = 7, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each function. They take turns, so a drifting machine speed hits all alike."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
