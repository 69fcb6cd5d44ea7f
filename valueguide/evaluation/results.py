"""From episode rows to the stable results JSON (docs/evaluation.md) and a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from valueguide.evaluation.statistics import Key, holm, mcnemar, paired_difference, wilson

Row = dict[str, Any]
_ALPHA = 0.05


def build_results(settings: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """settings are stored as they are. Arms appear in the order of their first row's appearance."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    outcome = {arm: _outcomes(rows, arm) for arm in arms}
    plain = [arm for arm in arms if "@" not in arm]
    pairs = [("base", arm) for arm in plain if arm != "base" and "base" in plain]
    if {"medoid", "guided"} <= set(plain):
        pairs.append(("medoid", "guided"))
    results: dict[str, Any] = {
        "settings": settings,
        "arms": {arm: _arm(rows, arm) for arm in arms},
        "paired": {f"{a}_vs_{b}": paired_difference(outcome[a], outcome[b]) for a, b in pairs},
        "per_task": {f"{a}_vs_{b}": _per_task(outcome[a], outcome[b]) for a, b in pairs},
        "latency_ms": {arm: _latency(rows, arm) for arm in arms},
        "reasons": {arm: _reasons(rows, arm) for arm in arms},
    }
    sweep = _sweep(arms, int(settings.get("k", 0)))
    if sweep:
        results["k_sweep"] = [
            {"k": k, "mean": results["arms"][a]["mean"], "wilson95": results["arms"][a]["wilson95"]}
            for k, a in sorted(sweep.items())
        ]
    return results


def _sweep(arms: list[str], k: int) -> dict[int, str]:
    """K -> arm. With a sweep, `base` is its K = 1 and `guided` the K of the settings: nothing runs twice."""
    own = {int(arm.partition("@")[2]): arm for arm in arms if arm.startswith("guided@")}
    if not own:
        return {}
    return {number: arm for number, arm in ((1, "base"), (k, "guided")) if arm in arms} | own


def _outcomes(rows: list[Row], arm: str) -> dict[Key, bool]:
    return {(r["task"], r["episode"]): bool(r["success"]) for r in rows if r["arm"] == arm}


def _arm(rows: list[Row], arm: str) -> dict[str, Any]:
    own = [r for r in rows if r["arm"] == arm]
    tasks = {}
    for task in dict.fromkeys(r["task"] for r in own):
        hits = [bool(r["success"]) for r in own if r["task"] == task]
        tasks[task] = _rate(hits)
    every = [bool(r["success"]) for r in own]
    mean = float(np.mean([t["rate"] for t in tasks.values()]))
    return {
        "tasks": tasks,
        "mean": mean,
        "wilson95": _rate(every)["wilson95"],
        "n": len(every),
        "any_time": float(np.mean([bool(r["any_time_success"]) for r in own])),
        "mean_steps": float(np.mean([r["steps"] for r in own])),
    }


def _rate(hits: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(hits), len(hits))
    return {"n": len(hits), "successes": sum(hits), "rate": sum(hits) / len(hits), "wilson95": [low, high]}


def _per_task(a: dict[Key, bool], b: dict[Key, bool]) -> dict[str, Any]:
    """Per-task difference with Holm-corrected McNemar p and a verdict."""
    tasks = list(dict.fromkeys(task for task, _ in a))
    deltas, raw = [], []
    for task in tasks:
        keys = [k for k in a if k[0] == task and k in b]
        deltas.append(float(np.mean([int(b[k]) - int(a[k]) for k in keys])) if keys else float("nan"))
        raw.append(mcnemar(sum(a[k] and not b[k] for k in keys), sum(b[k] and not a[k] for k in keys)))
    out = {}
    for task, delta, p, corrected in zip(tasks, deltas, raw, holm(raw), strict=True):
        verdict = "same" if corrected > _ALPHA else ("better" if delta > 0 else "worse")
        out[task] = {"delta": delta, "p": p, "p_holm": corrected, "verdict": verdict}
    return out


def _latency(rows: list[Row], arm: str) -> dict[str, dict[str, float]]:
    out = {}
    for part in ("policy", "critic", "total"):
        seconds = [s for r in rows if r["arm"] == arm for s in r[f"{part}_s"]]
        p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000 if seconds else (float("nan"),) * 2
        out[part] = {"p50": float(p50), "p95": float(p95)}
    return out


def _reasons(rows: list[Row], arm: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows:
        if row["arm"] == arm:
            for reason, count in row["reasons"].items():
                total[reason] = total.get(reason, 0) + count
    return total


def format_table(results: dict[str, Any]) -> str:
    """Success per task and arm in percent, the means with intervals, and the paired differences."""
    arms = results["arms"]
    tasks = list(dict.fromkeys(t for arm in arms.values() for t in arm["tasks"]))
    width = max(len(t) for t in (*tasks, "95% interval"))
    lines = [_line("task", arms, width), "-" * (width + 10 * len(arms))]
    for task in tasks:
        cells = [arms[a]["tasks"].get(task) for a in arms]
        lines.append(_line(task, (f"{100 * c['rate']:.0f}" if c else "-" for c in cells), width))
    lines.append(_line("mean", (f"{100 * a['mean']:.1f}" for a in arms.values()), width))
    intervals = (f"{100 * a['wilson95'][0]:.0f}-{100 * a['wilson95'][1]:.0f}" for a in arms.values())
    lines.append(_line("95% interval", intervals, width))
    for name, pair in results["paired"].items():
        low, high = pair["ci95"]
        lines.append(
            f"{name.replace('_vs_', ' -> ')}: {100 * pair['delta']:+.1f} points "
            f"(95% {100 * low:+.1f} to {100 * high:+.1f}, p = {pair['p']:.2g}, {pair['n']} pairs)"
        )
    lines.append(worse_line(results))
    return "\n".join(filter(None, lines))


def worse_line(results: dict[str, Any]) -> str:
    """Which tasks guidance made worse, in one sentence; empty when guided and base were not both run."""
    verdicts = results["per_task"].get("base_vs_guided")
    if not verdicts:
        return ""
    lower = sorted((v["delta"], task) for task, v in verdicts.items() if v["delta"] < 0)
    if not lower:
        return "No task succeeds less often with guidance."
    named = ", ".join(
        f"{task} ({100 * delta:+.0f}{', significant' if verdicts[task]['verdict'] == 'worse' else ''})"
        for delta, task in lower
    )
    return f"Less often with guidance: {named}."


def _line(head: str, cells: Iterable[str], width: int) -> str:
    return head.ljust(width) + "".join(cell.rjust(10) for cell in cells)
