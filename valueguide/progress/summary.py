"""What many rows say together: order, final value and parse rate of the real clips and of each control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from valueguide.progress.controls import CONTROLS, REAL
from valueguide.progress.rows import Row


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in whatever currency."""

    input: float = 0.0
    output: float = 0.0


def summarise(rows: Sequence[Row], prices: Prices) -> dict[str, Any]:
    """{"variants": {name: figures}, "tokens": {...}, "cost": float}; see docs/progress.md for the figures."""
    names = [name for name in (REAL, *CONTROLS) if any(row["variant"] == name for row in rows)]
    tokens = {kind: sum(row["tokens"][kind] for row in rows) for kind in _TOKENS}
    cost = (tokens["input"] * prices.input + tokens["output"] * prices.output) / 1e6
    return {
        "variants": {name: _figures([row for row in rows if row["variant"] == name]) for name in names},
        "tokens": tokens,
        "cost": cost,
    }


def table(summary: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'variant':18}{'clips':>6}{'VOC':>8}{'undefined':>11}{'final':>8}{'parsed':>8}{'failed':>8}"]
    for name, found in summary["variants"].items():
        figures = [found["mean_voc"], found["mean_final"], found["parse_rate"]]
        voc, final, parsed = ("-" if value is None else f"{value:.2f}" for value in figures)
        lines.append(
            f"{name:18}{found['clips']:>6}{voc:>8}{found['undefined']:>11}{final:>8}{parsed:>8}"
            f"{found['failed']:>8}"
        )
    tokens = summary["tokens"]
    unknown = f", {tokens['unknown']} answers did not tell" if tokens["unknown"] else ""
    lines.append(
        f"{tokens['input']} input and {tokens['output']} output tokens{unknown}; {tokens['answers']} "
        f"answers, {tokens['cached']} of them from the cache; cost {summary['cost']:.4f}"
    )
    return "\n".join(lines)


_TOKENS = ("input", "output", "answers", "cached", "unknown")


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    defined = [row["voc"] for row in rows if row["voc"] is not None]
    malformed = sum(row["status"] == "malformed" for row in rows)
    failed = sum(row["status"] == "failed" for row in rows)
    shuffles = [s["status"] for row in rows for s in row["shuffles"] if s["status"] != "failed"]
    undefined = sum(row["voc"] is None and row["status"] in ("ok", "partial") for row in rows)
    return {
        "clips": len(rows),
        "mean_voc": _mean(defined),
        "undefined": undefined,
        "malformed": malformed,
        "failed": failed,
        # Two conventions that others report; see docs/progress.md before comparing.
        "mean_voc_malformed_minus_one": _mean([*defined, *[-1.0] * malformed]),
        "mean_voc_rest_zero": _mean([*defined, *[0.0] * (malformed + undefined)]),
        "mean_final": _mean([row["final"] for row in rows if row["final"] is not None]),
        "parse_rate": _mean([float(status == "ok") for status in shuffles]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
