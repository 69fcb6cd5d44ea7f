"""What a soak comes to: growth of memory, drift of the slowest answers, and whether both are small enough."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.bench.soak import Record
from valueguide.bench.soak_watch import Usage

#: What is wanted, percent: of a process's private memory, and of the 99th percentile of a decision's time.
GROWTH, DRIFT = 2.0, 10.0
_WINDOW_S, _FEWEST = 60.0, 9
_DRAWS = 2000
_SIZES = ("private", "pss", "rss")
_COUNTS = ("files", "threads")
Floats = NDArray[np.float64]


def windows(seconds: float, warm_up: float) -> Floats:
    """Edges of windows of about a minute, shorter ones if there would be fewer than nine, from the end of
    the warm-up to the end."""
    start = warm_up * seconds
    count = max(_FEWEST, round((seconds - start) / _WINDOW_S))
    return np.linspace(start, seconds, count + 1, dtype=np.float64)


def report(record: Record, seconds: float, warm_up: float) -> dict[str, Any]:
    """Figures from after the warm-up, and the verdict. seconds: how long it took, warm_up a share of it."""
    edges = windows(seconds, warm_up)
    processes = {name: _process(seen, edges) for name, seen in record.usage.items()}
    latency = _latency(record.decisions, edges)
    late = [text for at, text in record.errors if at >= edges[0]]
    found = {
        "measured_s": float(edges[-1] - edges[0]),
        "processes": processes,
        "latency": latency,
        "decisions": len(record.decisions),
        "decisions_per_s": len(record.decisions) / seconds,
        "errors": {"count": len(late), "before": len(record.errors) - len(late), "first": late[:5]},
        "episodes": record.episodes,
        "successes": record.successes,
        "sessions": record.sessions + record.visits,
        "scrapes": record.scrapes,
    }
    return found | {"verdict": _verdict(found)}


def growth(times: Floats, values: Floats) -> dict[str, float]:
    """Of values at times (seconds), at least two. Percentages are of the first value.

    percent: by the median of the slopes between all pairs (Theil 1950, Sen 1968), over the whole time: a
    single step or spike does not make it. ends_percent: the last against the first. per_hour: that slope.
    """
    first, second = np.triu_indices(len(times), 1)
    slope = float(np.median((values[second] - values[first]) / (times[second] - times[first])))
    return {
        "percent": 100 * slope * float(times[-1] - times[0]) / float(values[0]),
        "ends_percent": 100 * float(values[-1] / values[0] - 1),
        "per_hour": 3600 * slope,
    }


def drift(parts: list[Floats], seed: int = 0) -> dict[str, Any] | None:
    """How much larger the 99th percentile is in the last third of the windows than in the first, percent.

    parts: milliseconds of each window's decisions. ci95: bootstrap over windows within each third, because
    what disturbs a computer lasts longer than one decision. None when there are too few windows.
    """
    third = len(parts) // 3
    ends = parts[:third], parts[-third:]
    if third < 1 or not all(len(part) for end in ends for part in end):
        return None
    rng = np.random.default_rng(seed)
    draws = np.array([[_p99(end, rng) for end in ends] for _ in range(_DRAWS)])
    low, high = np.quantile(100 * (draws[:, 1] / draws[:, 0] - 1), [0.025, 0.975])
    before, after = (float(np.quantile(np.concatenate(end), 0.99)) for end in ends)
    return {
        "percent": 100 * (after / before - 1),
        "ci95": [float(low), float(high)],
        "p99_ms": [before, after],
    }


def _p99(end: list[Floats], rng: np.random.Generator) -> float:
    drawn = [end[i] for i in rng.integers(len(end), size=len(end))]
    return float(np.quantile(np.concatenate(drawn), 0.99))


def _process(seen: list[tuple[float, Usage]], edges: Floats) -> dict[str, Any]:
    """Medians of each window, so that the garbage of a moment does not count."""
    at = np.array([at for at, _ in seen])
    found: dict[str, Any] = {}
    middles = 0.5 * (edges[:-1] + edges[1:])
    for name in (*_SIZES, *_COUNTS):
        values = np.array([getattr(one, name) for _, one in seen], np.float64)
        inside = [values[(low <= at) & (at < high)] for low, high in pairwise(edges)]
        kept = [(t, float(np.median(part))) for t, part in zip(middles, inside, strict=True) if len(part)]
        if len(kept) < 2:
            continue
        times, medians = np.array(kept).T
        found[name] = {"windows": medians.tolist()}
        if name in _SIZES:
            found[name] |= growth(times, medians)
    return found


def _latency(decisions: list[tuple[float, float]], edges: Floats) -> dict[str, Any]:
    at, took = (np.array(column) for column in zip(*decisions, strict=True)) if decisions else ([], [])
    at, took = np.asarray(at, np.float64), np.asarray(took, np.float64)
    parts = [took[(low <= at) & (at < high)] for low, high in pairwise(edges)]
    inside = np.concatenate(parts)
    return {
        "p50_ms": [_quantile(part, 0.5) for part in parts],
        "p99_ms": [_quantile(part, 0.99) for part in parts],
        "windows_at_s": (0.5 * (edges[:-1] + edges[1:])).tolist(),
        "all": {name: _quantile(inside, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
        "drift": drift(parts),
    }


def _quantile(values: Floats, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    """True, False, or None where it cannot be told: too few windows, or an interval around the limit."""
    grown = [
        max(one["private"]["percent"], one["private"]["ends_percent"])
        for one in found["processes"].values()
        if "private" in one
    ]
    more = [
        one[name]["windows"][-1] > one[name]["windows"][0]
        for one in found["processes"].values()
        for name in _COUNTS
        if name in one
    ]
    moved = found["latency"]["drift"]
    steady = None
    if moved is not None and moved["ci95"][1] < DRIFT:
        steady = True
    elif moved is not None and moved["ci95"][0] > DRIFT:
        steady = False
    complete = len(grown) == len(found["processes"]) > 0
    return {
        "memory": max(grown) < GROWTH if complete else None,
        "files_and_threads": not any(more) if complete else None,
        "latency": steady,
        "errors": found["errors"]["count"] == 0,
    }


def table(found: dict[str, Any]) -> str:
    """One line a process, one of latency, one of the verdict."""
    minutes = found["measured_s"] / 60
    lines = [
        f"{'':12}{'private, MB':>12}{f'growth in {minutes:.1f} min':>22}{'last to first':>15}"
        f"{'MB an hour':>12}{'RSS, MB':>10}{'files':>7}{'threads':>9}"
    ]
    for name, one in found["processes"].items():
        if "private" not in one:
            lines.append(f"{name:12} too short to tell")
            continue
        size = one["private"]
        lines.append(
            f"{name:12}{size['windows'][-1]:12.1f}{size['percent']:+20.2f} %{size['ends_percent']:+13.2f} %"
            f"{size['per_hour']:+12.2f}{one['rss']['windows'][-1]:10.1f}"
            f"{one['files']['windows'][-1]:7.0f}{one['threads']['windows'][-1]:9.0f}"
        )
    overall, moved = found["latency"]["all"], found["latency"]["drift"]
    if overall["p50"] is not None:
        lines.append(
            f"decisions {found['decisions']} ({found['decisions_per_s']:.1f} a second), "
            f"p50 {overall['p50']:.1f}, p99 {overall['p99']:.1f}, longest {overall['max']:.0f} ms; "
            + _drift_text(moved)
        )
    lines.append(
        f"{found['episodes']} episodes, {found['sessions']} sessions, {found['scrapes']} pages read, "
        f"{found['errors']['count']} errors" + "".join(f"\n  {text}" for text in found["errors"]["first"])
    )
    words = {True: "yes", False: "NO", None: "cannot be told"}
    verdict = found["verdict"]
    lines.append(
        f"memory grows by less than {GROWTH:g} %: {words[verdict['memory']]}; no more files and threads: "
        f"{words[verdict['files_and_threads']]}; p99 drifts by less than {DRIFT:g} %: "
        f"{words[verdict['latency']]}; no errors: {words[verdict['errors']]}"
    )
    return "\n".join(lines)


def _drift_text(moved: dict[str, Any] | None) -> str:
    if moved is None:
        return "too short for a drift"
    (before, after), (low, high) = moved["p99_ms"], moved["ci95"]
    return (
        f"p99 of the first and the last third {before:.1f} and {after:.1f} ms, "
        f"{moved['percent']:+.1f} % ({low:+.1f} to {high:+.1f})"
    )
