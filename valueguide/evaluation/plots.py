"""Small inline SVG plots for the report. No library, no external resource; colours follow the theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

COLORS = {
    "base": "#8b93a1",
    "guided": "#2f6fed",
    "random": "#d19a1c",
    "medoid": "#8a56d6",
    "qonly": "#d24b4b",
}
_FALLBACK = "#3aa58f"
_WIDTH = 960
_LEFT, _TOP = 46, 14
#: Room that a number under an axis needs.
_TICK = 36


#: Of a plot outside a page: dark on white, as a viewer of plain files or a README shows it.
_ALONE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#5d6778}.label,.value{text-anchor:middle}"
    ".end{text-anchor:end}"
    ".value{fill:#1b2330;font-weight:600}.start{fill:#1b2330}.grid{stroke:#e3e6ec;fill:none}"
    ".whisker{stroke:#1b2330;stroke-width:1.3;opacity:.75}</style>"
    '<rect width="100%" height="100%" fill="#fff"/>'
)


def write_plot(path: Path, plot: str) -> None:
    """One of this module's plots as an SVG file of its own; replaced atomically."""
    head, rest = plot.split(">", 1)
    whole = path.with_name(path.name + ".part")
    alone = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    whole.write_text(f"{alone}>{_ALONE}{rest}\n", encoding="utf-8")
    whole.replace(path)


def color(arm: str) -> str:
    """The arm's colour, the same in every table and plot."""
    return COLORS.get(arm.partition("@")[0], _FALLBACK)


def task_bars(
    arms: dict[str, Any],
    tasks: Sequence[str],
    title: str = "Success rate per task",
    paint: Callable[[str], str] = color,
) -> str:
    """Grouped bars of a rate per task, whiskers for the 95 % interval. arms: name -> results entry.

    paint: the arm's colour.
    """
    height, base = 250, 214
    group = (_WIDTH - _LEFT - 10) / max(len(tasks), 1)
    bar = min(30.0, 0.8 * group / max(len(arms), 1))
    parts = [_grid(base, _WIDTH)]
    for column, task in enumerate(tasks):
        middle = _LEFT + group * (column + 0.5)
        left = middle - bar * len(arms) / 2
        for number, (arm, entry) in enumerate(arms.items()):
            if task in entry["tasks"]:
                cell = entry["tasks"][task]
                parts.append(_bar(arm, cell, task, left + number * bar, bar, base, paint(arm)))
        parts.append(_wrapped(task.replace("_", " "), middle, base + 16, group))
    return _svg(_WIDTH, height, title, parts)


def _bar(arm: str, cell: dict[str, Any], task: str, left: float, width: float, base: float, fill: str) -> str:
    low, high = cell["wilson95"]
    top, middle = _y(cell["rate"], base), left + width / 2
    label = (
        f"{arm}, {task}: {100 * cell['rate']:.0f}% ({cell['successes']}/{cell['n']}), "
        f"95% {100 * low:.0f} to {100 * high:.0f}"
    )
    return (
        f"<g><title>{escape(label)}</title>"
        f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{max(base - top, 0.8):.1f}" '
        f'rx="2" fill="{fill}"/>'
        f'<path d="M{middle:.1f} {_y(low, base):.1f}V{_y(high, base):.1f}" class="whisker"/></g>'
    )


def sweep(points: Sequence[dict[str, Any]]) -> str:
    """Mean success against K on a logarithmic axis, with the 95 % band. points: k, mean, wilson95."""
    width, height, base = 560, 270, 220
    smallest, largest = min(p["k"] for p in points), max(p["k"] for p in points)
    octaves = math.log2(largest / smallest) or 1.0

    def x(k: int) -> float:
        return _LEFT + 24 + (width - _LEFT - 60) * math.log2(k / smallest) / octaves

    upper = [f"{x(p['k']):.1f},{_y(p['wilson95'][1], base):.1f}" for p in points]
    lower = [f"{x(p['k']):.1f},{_y(p['wilson95'][0], base):.1f}" for p in reversed(points)]
    line = [f"{x(p['k']):.1f},{_y(p['mean'], base):.1f}" for p in points]
    parts = [
        _grid(base, width),
        f'<polygon points="{" ".join(upper + lower)}" fill="{COLORS["guided"]}" opacity="0.16"/>',
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{COLORS["guided"]}" stroke-width="2.5"/>',
    ]
    for p in points:
        px, py = x(p["k"]), _y(p["mean"], base)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{COLORS["guided"]}"/>')
        parts.append(f'<text x="{px:.1f}" y="{py - 11:.1f}" class="value">{100 * p["mean"]:.0f}</text>')
        parts.append(f'<text x="{px:.1f}" y="{base + 18}" class="label">{p["k"]}</text>')
    parts.append(f'<text x="{width / 2}" y="{base + 40}" class="label">K, candidates per decision</text>')
    return _svg(width, height, "Success against the number of candidates", parts)


def curves(
    series: Mapping[str, Sequence[tuple[float, ...]]],
    paint: Mapping[str, str],
    axis: str,
    percent: bool = True,
) -> str:
    """Lines with 95 % whiskers and a legend. series: name -> (x, value, low, high), ascending in x.

    percent: the vertical axis is a rate; otherwise a number from 0 to the largest of them.
    """
    width, height, base = 640, 300, 230
    points = [point for line in series.values() for point in line]
    top = 1.0 if percent else max((high for _, _, _, high in points), default=1.0) * 1.05 or 1.0
    left = min((x for x, *_ in points), default=0.0)
    span = max((x for x, *_ in points), default=1.0) - left or 1.0
    parts = [_grid(base, width) if percent else _number_grid(base, width, top)]
    for number, (name, line) in enumerate(series.items()):
        fill, shift = paint.get(name, _FALLBACK), 4 * (number - len(series) / 2)
        at = [_LEFT + 24 + (width - _LEFT - 60) * (x - left) / span + shift for x, *_ in line]
        tops = [_y(value / top, base) for _, value, _, _ in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(at, tops, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{fill}" stroke-width="2.5"/>')
        for x, y, (step, value, low, high) in zip(at, tops, line, strict=True):
            shown = f"{100 * value:.0f}%" if percent else f"{value:.2f}"
            parts.append(
                f"<g><title>{escape(name)}, {axis} {step:g}: {shown}</title>"
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"/>'
                f'<path d="M{x:.1f} {_y(low / top, base):.1f}V{_y(high / top, base):.1f}" '
                f'stroke="{fill}"/></g>'
            )
        legend = _LEFT + 20 + 120 * number
        parts.append(f'<rect x="{legend}" y="{height - 14}" width="12" height="12" rx="2" fill="{fill}"/>')
        parts.append(f'<text x="{legend + 18}" y="{height - 4}" class="start">{escape(name)}</text>')
    ticks = sorted({x for x, *_ in points})
    for x in ticks[:: math.ceil(_TICK * len(ticks) / (width - _LEFT - 60)) or 1]:  # those that have room
        place = _LEFT + 24 + (width - _LEFT - 60) * (x - left) / span
        parts.append(f'<text x="{place:.1f}" y="{base + 18}" class="label">{x:g}</text>')
    parts.append(f'<text x="{width / 2}" y="{base + 38}" class="label">{escape(axis)}</text>')
    return _svg(width, height, f"By {axis}: {', '.join(series)}", parts)


def unit_square(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    paint: Mapping[str, str],
    axes: tuple[str, str],
    bars: Sequence[tuple[float, float, float, float]] = (),
) -> str:
    """Lines in the unit square with a legend and the diagonal. lines: name -> (x, y) along the line.

    bars: (x, y, low, high), a dot with a 95 % whisker each, in the colour of the first line.
    """
    width, height, base = 420, 430, 350
    right = _LEFT + (base - _TOP)

    def at(x: float, y: float) -> str:
        return f"{_LEFT + (right - _LEFT) * x:.1f} {_y(y, base):.1f}"

    parts = [_grid(base, right + 6), f'<path d="M{at(0, 0)}L{at(1, 1)}" class="grid"/>']
    for number, (name, line) in enumerate(lines.items()):
        fill = paint.get(name, _FALLBACK)
        path = "L".join(at(x, y) for x, y in line)
        if line:
            parts.append(f'<path d="M{path}" fill="none" stroke="{fill}" stroke-width="2.2"/>')
        legend = _LEFT + 110 * number
        parts.append(f'<rect x="{legend}" y="{height - 14}" width="12" height="12" rx="2" fill="{fill}"/>')
        parts.append(f'<text x="{legend + 18}" y="{height - 4}" class="start">{escape(name)}</text>')
    for x, y, low, high in bars:
        px, py = at(x, y).split()
        fill = paint.get(next(iter(lines), ""), _FALLBACK)
        parts.append(f'<circle cx="{px}" cy="{py}" r="4" fill="{fill}"/>')
        parts.append(f'<path d="M{px} {_y(low, base):.1f}V{_y(high, base):.1f}" class="whisker"/>')
    for tick in (0.0, 0.5, 1.0):
        px = at(tick, 0).split()[0]
        parts.append(f'<text x="{px}" y="{base + 18}" class="label">{100 * tick:.0f}%</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{base + 40}" class="label">{escape(axes[0])}</text>')
    return _svg(width, height, f"{axes[1]} against {axes[0]}", parts)


def _number_grid(base: float, width: float, top: float) -> str:
    parts = []
    for step in range(5):
        y = _y(step / 4, base)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{width - 6}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="end">{top * step / 4:.3g}</text>')
    return "".join(parts)


def latency_bars(latency: dict[str, Any]) -> str:
    """Median milliseconds of one decision per arm: policy, then critic. latency: arm -> part -> p50."""
    width, row = 560, 34
    longest = max((v["policy"]["p50"] + v["critic"]["p50"] for v in latency.values()), default=0) or 1.0
    scale = (width - 190) / longest
    parts = []
    for number, (arm, part) in enumerate(latency.items()):
        y, x = 10 + number * row, 92.0
        parts.append(f'<text x="{x - 10}" y="{y + 15}" class="end">{escape(arm)}</text>')
        for name, opacity in (("policy", 1.0), ("critic", 0.45)):
            length = part[name]["p50"] * scale
            parts.append(
                f"<g><title>{escape(arm)}, {name}: {part[name]['p50']:.1f} ms</title>"
                f'<rect x="{x:.1f}" y="{y}" width="{max(length, 0):.1f}" height="21" rx="2" '
                f'fill="{color(arm)}" opacity="{opacity}"/></g>'
            )
            x += length
        total = part["policy"]["p50"] + part["critic"]["p50"]
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}" class="start">{total:.1f} ms</text>')
    return _svg(width, 10 + row * len(latency), "Milliseconds per decision", parts)


def value_strips(groups: dict[str, dict[str, Sequence[float]]], paint: Callable[[str], str] = color) -> str:
    """A dot an episode at its value, a row for each outcome of each critic, a tick at the row's mean.

    groups: critic -> outcome -> finite values, one an episode. All rows share one axis.
    """
    left, right, row = 190, _WIDTH - 24, 30
    values = [v for rows in groups.values() for row_values in rows.values() for v in row_values]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    scale = (right - left) / ((high - low) or 1.0)
    parts, y = [], float(_TOP)
    for critic, rows in groups.items():
        for outcome, found in rows.items():
            label = f"{critic}, {outcome} ({len(found)})"
            parts.append(f'<text x="{left - 14}" y="{y + 19:.0f}" class="end">{escape(label)}</text>')
            parts.append(f'<path d="M{left} {y + row:.0f}H{right}" class="grid"/>')
            xs = [left + (v - low) * scale for v in found]
            # Dots are moved apart by the golden ratio, so that equal values do not hide each other.
            parts += [
                f'<circle cx="{x:.1f}" cy="{y + 5 + 20 * (i * 0.618034 % 1):.1f}" r="3.2" '
                f'fill="{paint(critic)}" opacity="0.55"/>'
                for i, x in enumerate(xs)
            ]
            if xs:
                middle = sum(xs) / len(xs)
                parts.append(f'<path d="M{middle:.1f} {y + 2:.0f}V{y + 28:.0f}" class="whisker"/>')
            y += row
        y += 10
    parts += [
        f'<text x="{left + share * (right - left):.0f}" y="{y + 10:.0f}" class="label">'
        f"{low + share * (high - low):.4g}</text>"
        for share in (0.0, 0.5, 1.0)
    ]
    return _svg(_WIDTH, round(y) + 18, "Values by outcome", parts)


def _y(rate: float, base: float) -> float:
    return base - (base - _TOP) * rate


def _grid(base: float, width: float) -> str:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100, base)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{width - 6}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="end">{percent}%</text>')
    return "".join(parts)


def _wrapped(text: str, x: float, y: float, width: float) -> str:
    """A label over as many lines as it takes, about 6 pixels a letter."""
    limit, lines = max(int(width / 6.4), 4), [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > limit:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    spans = (
        f'<tspan x="{x:.1f}" dy="{0 if i == 0 else 13}">{escape(t)}</tspan>' for i, t in enumerate(lines)
    )
    return f'<text x="{x:.1f}" y="{y}" class="label">{"".join(spans)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
