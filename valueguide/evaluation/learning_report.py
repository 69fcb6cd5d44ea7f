"""The page of a comparison of learning runs: curves with intervals, the end, and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from valueguide.evaluation.plots import curves, write_plot
from valueguide.evaluation.report import plain_table, section, settings_table, write_page

METHOD_COLORS = {"aloe": "#2f6fed", "dagger": "#d19a1c", "awr": "#8a56d6", "none": "#8b93a1"}


def write_learning_report(path: Path, comparison: dict[str, Any]) -> None:
    """comparison: of `learning.compare_runs`. One self-contained page; replaced atomically."""
    settings, (success, takeovers) = comparison["settings"], learning_curves(comparison)
    between = f"{settings['evaluations']} episodes a task; the last point {settings['final']} on other seeds"
    sections = [
        f"<header><h1>Learning online: {escape(str(settings['suite']))}</h1>"
        f"<p>{escape(_seeds(comparison['seeds']))}</p></header>",
        section(
            "Success of what works while it learns",
            f"<p>{escape(between)}. Whiskers: 95 %.</p>{success}",
        ),
        section("Takeovers an episode while collecting", takeovers),
        section("At the end", plain_table(*_final_rows(comparison))),
        section("Differences on the same initial states", plain_table(*_paired_rows(comparison))),
        section("Settings", settings_table(settings)),
    ]
    write_page(path, "valueguide: learning online", sections)


def write_learning_plots(folder: Path, comparison: dict[str, Any]) -> None:
    """The page's two plots as files: success.svg and takeovers.svg."""
    for name, plot in zip(("success", "takeovers"), learning_curves(comparison), strict=True):
        write_plot(folder / f"{name}.svg", plot)


def learning_curves(comparison: dict[str, Any]) -> tuple[str, str]:
    """SVG of success, and of takeovers an episode, over the iterations, a line for each method."""
    success = {
        method: [(p["iteration"], p["mean"], *p["wilson95"]) for p in points]
        for method, points in comparison["success"].items()
    }
    takeovers = {
        method: [(p["iteration"], p["takeovers"], *p["ci95"]) for p in points]
        for method, points in comparison["takeovers"].items()
    }
    return (
        curves(success, METHOD_COLORS, "iteration"),
        curves(takeovers, METHOD_COLORS, "iteration", percent=False),
    )


def format_comparison(comparison: dict[str, Any]) -> str:
    """The two tables of the page, for a terminal."""
    parts = []
    for head, rows in (_final_rows(comparison), _paired_rows(comparison)):
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)
        ]
        parts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(parts)


def _final_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    tasks = list(next(iter(comparison["final"].values()))["tasks"]) if comparison["final"] else []
    head = ["", *(task.replace("_", " ") for task in tasks), "mean", "95 %", "each seed"]
    rows = []
    for name, entry in comparison["final"].items():
        low, high = entry["wilson95"]
        cells = [f"{100 * entry['tasks'][task]:.0f}" for task in tasks]
        seeds = ", ".join(f"{100 * value:.0f}" for value in entry["seeds"])
        rows.append([name, *cells, f"{100 * entry['mean']:.1f}", f"{100 * low:.0f}-{100 * high:.0f}", seeds])
    return head, rows


def _paired_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, entry in comparison["paired"].items():
        low, high = entry["ci95"]
        interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        rows.append([name, f"{100 * entry['delta']:+.1f}", interval, str(entry["n"])])
    return ["difference", "points", "95 %", "pairs"], rows


def _seeds(seeds: dict[str, Sequence[int]]) -> str:
    return "Training seeds: " + "; ".join(f"{m}: {', '.join(map(str, own))}" for m, own in seeds.items())
