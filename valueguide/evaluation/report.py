"""The evaluation report: one HTML file with tables, plots and videos, that needs nothing else."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.drawing import score_colors
from valueguide.evaluation.plots import color, latency_bars, sweep, task_bars
from valueguide.evaluation.report_style import STYLE
from valueguide.evaluation.results import worse_line

_MEANING = {
    "base": "the policy alone: its own first proposal",
    "guided": "the critic's choice among K proposals",
    "random": "any of the K proposals: what sampling alone gives",
    "medoid": "the most typical of the K proposals: no learning",
    "qonly": "the critic's choice among uniformly random chunks: no policy",
}


@dataclass(frozen=True)
class Video:
    """One film of the report. mp4: H.264 bytes."""

    title: str
    caption: str
    mp4: bytes


def write_report(path: Path, results: dict[str, Any], videos: Sequence[Video] = ()) -> None:
    """Write `results` (see `results.build_results`) and the videos as one page; replaced atomically."""
    title = f"valueguide evaluation: {results['settings'].get('suite', '')}"
    write_page(path, title, _sections(results, videos))


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """One self-contained page in the report's style; sections: HTML. Replaced atomically."""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    whole = path.with_name(path.name + ".part")
    whole.write_text(text, encoding="utf-8")
    os.replace(whole, path)


def _sections(results: dict[str, Any], videos: Sequence[Video]) -> list[str]:
    # Arms with an own K belong to the sweep; the rest are compared with each other.
    plain = {arm: entry for arm, entry in results["arms"].items() if "@" not in arm}
    shown = plain or results["arms"]
    tasks = list(dict.fromkeys(t for entry in shown.values() for t in entry["tasks"]))
    return [
        _headline(results, shown),
        section("Videos", _videos(videos, results["paired"].get("base_vs_guided"))) if videos else "",
        section("Success per task", _legend(shown) + task_bars(shown, tasks) + _table(results, shown, tasks)),
        section("Paired comparisons", _paired(results)) if results["paired"] else "",
        _side_by_side(results, shown),
        section("Why the executed candidate was taken", _reasons(results, shown)),
        section("Settings", settings_table(results["settings"])),
    ]


def section(title: str, body: str) -> str:
    """A titled panel; body: HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _headline(results: dict[str, Any], arms: dict[str, Any]) -> str:
    settings = results["settings"]
    tasks = max((len(entry["tasks"]) for entry in arms.values()), default=0)
    facts = (
        f"Suite {settings.get('suite', '?')}, {tasks} tasks, {settings.get('episodes', '?')} episodes each, "
        f"K = {settings.get('k', '?')}, wordings {settings.get('wording', '?')}, "
        f"visuals {settings.get('visuals', '?')}. Every arm starts from the same initial states."
    )
    cards = [_card(arm, arms[arm]) for arm in ("base", "guided") if arm in arms]
    pair = results["paired"].get("base_vs_guided")
    if pair:
        low, high = pair["ci95"]
        tone = "good" if low > 0 else "bad" if high < 0 else ""
        cards.append(
            f'<div class="card {tone}"><span>difference, points</span><b>{_points(pair["delta"])}</b>'
            f"<small>95% {_points(low)} to {_points(high)}, p = {pair['p']:.2g}</small></div>"
        )
    return (
        f"<header><h1>{escape(_verdict(pair))}</h1><p>{escape(facts)}</p></header>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _verdict(pair: dict[str, Any] | None) -> str:
    if not pair:
        return "Evaluation"
    low, high = pair["ci95"]
    if low > 0:
        return f"Guidance adds {100 * pair['delta']:.1f} points of success"
    if high < 0:
        return f"Guidance costs {-100 * pair['delta']:.1f} points of success"
    return "No clear difference between guided and alone"


def _card(arm: str, entry: dict[str, Any]) -> str:
    low, high = entry["wilson95"]
    name = "policy alone" if arm == "base" else arm
    return (
        f'<div class="card" style="--arm:{color(arm)}"><span>{escape(name)}</span>'
        f"<b>{100 * entry['mean']:.1f}%</b>"
        f"<small>95% {100 * low:.1f} to {100 * high:.1f}, {entry['n']} episodes</small></div>"
    )


def _videos(videos: Sequence[Video], pair: dict[str, Any] | None) -> str:
    figures = "".join(
        f'<figure><video controls loop muted autoplay playsinline src="data:video/mp4;base64,'
        f'{base64.b64encode(video.mp4).decode("ascii")}"></video>'
        f"<figcaption><b>{escape(video.title)}</b> {escape(video.caption)}</figcaption></figure>"
        for video in videos
    )
    ramp = ",".join(f"rgb({r},{g},{b})" for r, g, b in score_colors(np.linspace(0, 1, 9)).tolist())
    key = (
        '<p class="note">Same initial state on both sides. Lines are the proposed hand paths, coloured by '
        f'score: low <i class="ramp" style="background:linear-gradient(90deg,{ramp})"></i> high; the one '
        f"with a dark edge runs.{_how_chosen(pair)}</p>"
    )
    return f'{key}<div class="videos">{figures}</div>'


def _how_chosen(pair: dict[str, Any] | None) -> str:
    """A few films are no sample: say what they were taken from."""
    if not pair or "gained" not in pair:
        return ""
    return (
        f" Films are chosen where the two differ, gains and losses in proportion: of {pair['n']} pairs of "
        f"episodes guidance saved {pair['gained']} and lost {pair['lost']}."
    )


def _legend(arms: dict[str, Any]) -> str:
    items = "".join(
        f'<li><i style="background:{color(arm)}"></i><b>{escape(arm)}</b> '
        f"{escape(_MEANING.get(arm, ''))}</li>"
        for arm in arms
    )
    return f'<ul class="legend">{items}</ul>'


def _table(results: dict[str, Any], arms: dict[str, Any], tasks: Sequence[str]) -> str:
    verdicts = results["per_task"].get("base_vs_guided", {})
    head = "".join(f"<th>{escape(arm)}</th>" for arm in arms)
    rows = []
    for task in tasks:
        cells = "".join(_cell(entry["tasks"].get(task)) for entry in arms.values())
        rows.append(f"<tr><th>{escape(task.replace('_', ' '))}</th>{cells}{_change(verdicts.get(task))}</tr>")
    means = "".join(
        f"<td><b>{100 * e['mean']:.1f}%</b><small>{100 * e['wilson95'][0]:.0f} to "
        f"{100 * e['wilson95'][1]:.0f}</small></td>"
        for e in arms.values()
    )
    pair = results["paired"].get("base_vs_guided")
    last = f"<td><b>{_points(pair['delta'])}</b></td>" if pair else ("<td></td>" if verdicts else "")
    extra = "<th>alone to guided</th>" if verdicts else ""
    return (
        f'<div class="scroll"><table><thead><tr><th>task</th>{head}{extra}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th>mean</th>{means}{last}</tr></tfoot></table></div>"
        f"<p>{escape(worse_line(results))}</p>"
        '<p class="note">Small print: 95% Wilson intervals, in percent. Changes are significant when the '
        "exact McNemar p, Holm-corrected over tasks, is at most 0.05.</p>"
    )


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "<td>-</td>"
    low, high = cell["wilson95"]
    return (
        f"<td>{100 * cell['rate']:.0f}% <span>{cell['successes']}/{cell['n']}</span>"
        f"<small>{100 * low:.0f} to {100 * high:.0f}</small></td>"
    )


def _change(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    tone = {"better": "good", "worse": "bad"}.get(entry["verdict"], "")
    word = entry["verdict"] if tone else "not significant"
    return (
        f'<td class="{tone}">{_points(entry["delta"])}<small>{word}, p = {entry["p_holm"]:.2g}</small></td>'
    )


def _paired(results: dict[str, Any]) -> str:
    rows = []
    for name, pair in results["paired"].items():
        first, _, second = name.partition("_vs_")
        low, high = pair["ci95"]
        tone = "good" if low > 0 else "bad" if high < 0 else ""
        verdicts = [entry["verdict"] for entry in results["per_task"].get(name, {}).values()]
        rows.append(
            f"<tr><th>{escape(second)} against {escape(first)}</th>"
            f'<td class="{tone}"><b>{_points(pair["delta"])}</b></td>'
            f"<td>{_points(low)} to {_points(high)}</td><td>{pair['p']:.2g}</td><td>{pair['n']}</td>"
            f"<td>{verdicts.count('better')} / {verdicts.count('worse')}</td></tr>"
        )
    return (
        '<div class="scroll"><table><thead><tr><th>arms</th><th>difference</th><th>95% interval</th>'
        "<th>p</th><th>pairs</th><th>tasks better / worse</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Differences in points of success, mean over tasks; intervals by bootstrap over '
        "pairs of episodes within tasks; p by exact McNemar test.</p>"
    )


def _side_by_side(results: dict[str, Any], arms: dict[str, Any]) -> str:
    latency = {a: v for a, v in results["latency_ms"].items() if a in arms}
    worst = "; ".join(f"{escape(a)} {v['total']['p95']:.1f} ms" for a, v in latency.items())
    panels = [
        section(
            "Time of one decision",
            f'{latency_bars(latency)}<p class="note">Medians; solid: proposing, pale: encoding and scoring. '
            f"95th percentile of the whole decision: {worst}.</p>",
        )
    ]
    if results.get("k_sweep"):
        panels.insert(0, section("More candidates", sweep(results["k_sweep"])))
    return f'<div class="columns">{"".join(panels)}</div>'


def _reasons(results: dict[str, Any], arms: dict[str, Any]) -> str:
    rows = []
    for arm, reasons in results["reasons"].items():
        if arm not in arms:
            continue
        total = max(sum(reasons.values()), 1)
        text = ", ".join(f"{escape(k)} {v} ({100 * v / total:.1f}%)" for k, v in sorted(reasons.items()))
        rows.append(f'<tr><th>{escape(arm)}</th><td class="wide">{text}</td></tr>')
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def settings_table(settings: dict[str, Any]) -> str:
    """The command that made the page, and every other setting folded away."""
    command = settings.get("command", "")
    rows = "".join(
        f'<tr><th>{escape(key)}</th><td class="wide">{escape(_plain(value))}</td></tr>'
        for key, value in settings.items()
        if key != "command"
    )
    made = f"<p>Made by</p><pre>{escape(str(command))}</pre>" if command else ""
    return (
        f"{made}<details><summary>All settings</summary>"
        f'<div class="scroll"><table>{rows}</table></div></details>'
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
