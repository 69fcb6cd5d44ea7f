"""What the episodes of `bench link` come to: rates with intervals, differences in pairs, times."""

from __future__ import annotations

from typing import Any

import numpy as np

from valueguide.evaluation.statistics import paired_difference, share, wilson

Row = dict[str, Any]


def report(rows: list[Row], reference: str = "in_process") -> dict[str, Any]:
    """Per condition; `paired` is against `reference` on the same episodes, where that was run."""
    conditions = dict.fromkeys(row["condition"] for row in rows)
    return {name: _condition(rows, name, reference) for name in conditions}


def _condition(rows: list[Row], name: str, reference: str) -> dict[str, Any]:
    own = [row for row in rows if row["condition"] == name]
    other = {_key(row): row for row in rows if row["condition"] == reference}
    hits = [row["success"] for row in own]
    tasks = {}
    for task in dict.fromkeys(row["task"] for row in own):
        of_task = [row["success"] for row in own if row["task"] == task]
        tasks[task] = {"n": len(of_task), "successes": sum(of_task)}
    found: dict[str, Any] = {
        "n": len(own),
        "successes": sum(hits),
        "rate": sum(hits) / len(hits),
        "wilson95": list(wilson(sum(hits), len(hits))),
        "tasks": tasks,
        "mean_steps": float(np.mean([row["steps"] for row in own])),
        "truncated": sum(row["truncated"] for row in own),
    }
    if other and name != reference:
        both = [row for row in own if _key(row) in other]
        found["paired"] = paired_difference(
            {key: row["success"] for key, row in other.items()}, {_key(row): row["success"] for row in own}
        )
        found["same_actions"] = share(
            sum(row["actions"] == other[_key(row)]["actions"] for row in both), len(both)
        )
    if "holds" in own[0]:
        found |= _real_time(own)
    if "kill_step" in own[0]:
        found |= _kills([row for row in own if row["killed"]])
    return found


def _key(row: Row) -> tuple[str, int]:
    return row["task"], row["episode"]


def _real_time(own: list[Row]) -> dict[str, Any]:
    """late_periods: share of control periods that this computer began late; slip_ms: by how much."""
    trips = [s for row in own for s in row["round_trips_s"]]
    slips = [s for row in own for s in row["slips_s"]]
    steps = sum(row["steps"] for row in own)
    return {
        "holds": sum(row["holds"] for row in own) / steps,
        "unused": sum(row["unused"] for row in own),
        "round_trip_ms": _quantiles(trips, 1e3),
        "late_periods": len(slips) / steps,
        "slip_ms": _quantiles(slips, 1e3),
    }


def _kills(own: list[Row]) -> dict[str, Any]:
    return {
        "killed": len(own),
        "held_in_time": share(sum(row["held_in_time"] for row in own), len(own)),
        "resumed": share(sum(row["resume_s"] is not None for row in own), len(own)),
        **{
            name: _quantiles([row[name] for row in own if row[name] is not None])
            for name in ("hold_s", "served_s", "resume_s")
        },
    }


def _quantiles(values: list[float], times: float = 1.0) -> dict[str, float] | None:
    if not values:
        return None
    p50, p90 = np.quantile(values, [0.5, 0.9])
    return {"p50": times * float(p50), "p90": times * float(p90), "max": times * max(values)}


def table(result: dict[str, Any]) -> str:
    """One line a condition."""
    lines = [f"{'':12}{'succeed':>24}{'lost against in process':>36}{'steps':>8}{'holds':>8}{'trip, ms':>14}"]
    for name, found in result.items():
        low, high = (100 * bound for bound in found["wilson95"])
        cells = f"{found['successes']}/{found['n']} ({low:.0f} to {high:.0f} %)"
        line = f"{name:12}{cells:>24}{_lost(found.get('paired')):>36}{found['mean_steps']:8.1f}"
        if "holds" in found:
            trip = found["round_trip_ms"]
            trips = f"{trip['p50']:.0f}, {trip['p90']:.0f}" if trip else "none"
            line += f"{100 * found['holds']:6.1f} %{trips:>14}"
        lines.append(line)
    for name, found in result.items():
        if "killed" in found:
            hold, again = found["hold_s"], found["resume_s"]
            lines.append(
                f"{name}: killed {found['killed']}, held in time {found['held_in_time']['count']}; "
                + (f"latest after {hold['max']:.2f} s; " if hold else "")
                + f"went on {found['resumed']['count']}"
                + (f", median after {again['p50']:.1f} s" if again else "")
                + f"; ended truncated {found['truncated']}"
            )
        elif name == "serve" and "same_actions" in found:
            same = found["same_actions"]
            lines.append(f"serve: every action as in process in {same['count']} of {same['of']} episodes")
    return "\n".join(lines)


def _lost(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return ""
    low, high = (-100 * bound for bound in reversed(paired["ci95"]))
    return f"{-100 * paired['delta']:.1f} points ({low:.1f} to {high:.1f})"
