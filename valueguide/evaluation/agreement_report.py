"""Agreement of value functions for people: a table for the terminal, a page with some episodes' curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.evaluation.agreement import MEASURES, Curves
from valueguide.evaluation.report import section, settings_table, write_page

_PALETTE = ("#2f6fed", "#3aa58f", "#d19a1c", "#8b93a1", "#8a56d6", "#d24b4b")
_WIDTH, _HEIGHT = 480, 190
_LEFT, _TOP, _RIGHT, _BASE = 30, 12, 470, 150
_NOTES = {
    "within": "Rank correlation along an episode, mean over episodes.",
    "pooled": "Rank correlation over all frames of a task: levels of different episodes count too.",
    "starc": "STARC distance of the rewards that the curves stand for: 0 the same preferences, 1 opposite. "
    "Minimal L2 canonicalisation on the recorded transitions, potentials linear in the state.",
}


def agreement_table(pairs: dict[str, Any]) -> str:
    """One line for each pair and measure: the value, its interval and the number of episodes."""
    lines = [f"{'curves':20}{'measure':10}{'value':>8}  {'95 % interval':18}{'episodes':>9}"]
    for pair, measures in pairs.items():
        for name in MEASURES:
            found = measures[name]
            value, interval = _words(found)
            lines.append(f"{pair:20}{name:10}{value:>8}  {interval:18}{found['episodes']:>9}")
    return "\n".join(lines)


def write_agreement_page(
    path: Path, pairs: dict[str, Any], shown: Sequence[Curves], settings: dict[str, Any]
) -> None:
    """pairs: of `agreement`. shown: episodes that are drawn."""
    names = list(shown[0].values) if shown else []
    legend = " ".join(
        f'<span style="color:{color}">&#9632;</span> {escape(name)}'
        for name, color in zip(names, _PALETTE, strict=False)
    )
    ranges = value_ranges(shown)
    drawn = "".join(f"<figure>{episode_curves(one, ranges)}</figure>" for one in shown)
    sections = [
        "<header><h1>Do the value functions agree?</h1><p>"
        "Mean over tasks, 95 % bootstrap over episodes in brackets.</p></header>",
        *(section(_NOTES[name].split(":")[0].rstrip("."), _measure(pairs, name)) for name in MEASURES),
        section(
            "Episodes",
            f'<p class="note">{legend}. Each curve from its least to its greatest value over the episodes '
            f'shown.</p><div class="columns">{drawn}</div>',
        ),
        section("Settings", settings_table(settings)),
    ]
    write_page(path, "valueguide progress: agreement", sections)


def _measure(pairs: dict[str, Any], name: str) -> str:
    tasks = list(next(iter(pairs.values()))[name]["tasks"])
    head = "".join(f"<th>{escape(pair)}</th>" for pair in pairs)
    rows = "".join(
        f"<tr><th>{escape(task)}</th>"
        + "".join(_cell(found[name]["tasks"][task]) for found in pairs.values())
        + "</tr>"
        for task in tasks
    )
    total = "".join(_cell(found[name]) for found in pairs.values())
    return (
        f'<p class="note">{escape(_NOTES[name])}</p><div class="scroll"><table>'
        f"<thead><tr><th>Task</th>{head}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><th>Mean over tasks</th>{total}</tr></tfoot></table></div>"
    )


def _cell(found: dict[str, Any]) -> str:
    value, interval = _words(found)
    return f"<td>{value}<small>{interval} n={found['episodes']}</small></td>"


def _words(found: dict[str, Any]) -> tuple[str, str]:
    value = "-" if found["value"] is None else f"{found['value']:.2f}"
    interval = "" if found["ci95"] is None else "[{:.2f}, {:.2f}]".format(*found["ci95"])
    return value, interval


def episode_curves(one: Curves, ranges: dict[str, tuple[float, float]]) -> str:
    """Inline SVG of one episode; ranges: curve -> the values at the bottom and the top."""
    last = max(int(one.positions[-1]), 1)
    parts = [f'<path d="M{_LEFT} {y}H{_RIGHT}" class="grid"/>' for y in (_TOP, (_TOP + _BASE) / 2, _BASE)]
    for (name, values), color in zip(one.values.items(), _PALETTE, strict=False):
        low, high = ranges[name]
        known = ~np.isnan(values)
        x = _LEFT + (_RIGHT - _LEFT) * one.positions[known] / last
        y = _BASE - (_BASE - _TOP) * (values[known] - low) / ((high - low) or 1.0)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(
            f'<g><title>{escape(name)}</title><polyline points="{points}" fill="none" stroke="{color}" '
            f'stroke-width="2"/></g>'
        )
    ending = "success" if one.success else "no success"
    label = f"{one.task}, episode {one.episode}, {ending}"
    parts.append(f'<text x="{_LEFT}" y="{_BASE + 18}" class="start">0</text>')
    parts.append(f'<text x="{_RIGHT}" y="{_BASE + 18}" class="end">{last} steps</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" class="label">{escape(label)}</text></svg>'
    )


def value_ranges(shown: Sequence[Curves]) -> dict[str, tuple[float, float]]:
    """Curve -> its least and greatest known value over the episodes; (0, 1) where none is known."""
    out = {}
    for name in shown[0].values if shown else ():
        values = np.concatenate([one.values[name] for one in shown])
        values = values[~np.isnan(values)]
        out[name] = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return out
