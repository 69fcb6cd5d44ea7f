"""How a measurement is taken: warm-up, alternating runs, medians, and peak memory of the process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def turns(
    functions: Mapping[str, Callable[[], object]], repeats: int = 7, warm_up: int = 1
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each run of each function. They take turns, so a drifting machine speed hits all alike."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def medians(
    functions: Mapping[str, Callable[[], object]], repeats: int = 7, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each function, as `turns` takes them."""
    return {name: float(np.median(values)) for name, values in turns(functions, repeats, warm_up).items()}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, or since `reset_peak_memory`, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak_memory() -> None:
    """Forget sizes of the past. Does nothing where the kernel does not offer it (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
