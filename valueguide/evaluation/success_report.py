"""The page and the table on detected success: ROC of every rule, calibration of the probability, accuracy."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from valueguide.evaluation.plots import unit_square
from valueguide.evaluation.report import plain_table, section, settings_table, write_page

_COLORS = {"both": "#2f6fed", "final": "#d19a1c", "voc": "#8a56d6"}
_NAMES = {"voc_paper": "VOC of 0.5 or more", "voc": "VOC", "final": "final value", "both": "both"}
_KIND_HEAD = ["ended by", "episodes", "called success", "mean VOC", "mean final value"]
_HEAD = ["rule", "threshold", "accuracy", "of all", "precision", "recall", "AUC"]


def write_success_report(path: Path, results: dict[str, Any]) -> None:
    """results: {"judged": of success.judge, "rule", "calibrated_on", "settings"}. One self-contained page."""
    judged = results["judged"]
    curves = {name: [(x, y) for x, y, _ in judged["rules"][name]["roc"]] for name in _COLORS}
    bins = judged["calibration"]["bins"]
    bars = [(cell["mean"], cell["rate"]["value"], *cell["rate"]["ci95"]) for cell in bins]
    line = {"both": [(x, y) for x, y, _, _ in bars]}
    sections = [
        "<header><h1>Detected success</h1>"
        f"<p>{escape(_counts(judged))}. Verdicts by: {escape(_NAMES[results['rule']])}.</p></header>",
        section(
            "Receiver operating characteristic",
            unit_square(curves, _COLORS, ("false alarms (failures called success)", "successes found")),
        ),
        section(
            "Calibration of the probability by VOC and final value",
            unit_square(line, _COLORS, ("mean probability of the bin", "successes"), bars)
            + f"<p>Brier score {_number(judged['calibration']['brier'])}, expected calibration error "
            f"{_number(judged['calibration']['ece'])}. Whiskers: 95 % (Wilson).</p>",
        ),
        section("Rules", plain_table(_HEAD, _rows(judged))),
        section("Accuracy by task", plain_table(["task", "accuracy"], _task_rows(judged))),
        *(
            [section("By how episodes ended", plain_table(_KIND_HEAD, _kind_rows(judged)))]
            * bool(judged["kinds"])
        ),
        section("Settings", settings_table(results["settings"])),
    ]
    write_page(path, "valueguide: detected success", sections)


def format_success(judged: dict[str, Any]) -> str:
    """Counts and the table of rules, for a terminal."""
    lines = [_counts(judged), *_aligned([_HEAD, *_rows(judged)])]
    if judged["kinds"]:
        lines += ["", *_aligned([_KIND_HEAD, *_kind_rows(judged)])]
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _counts(judged: dict[str, Any]) -> str:
    undecided = sum(judged["undecided"].values())
    failures = judged["episodes"] - judged["successes"]
    return (
        f"{judged['episodes']} labelled episodes ({judged['successes']} successes, {failures} failures), "
        f"{undecided} undecided"
    )


def _rows(judged: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name in _NAMES:
        found = judged["rules"][name]
        shares = [_rate(found[kind]) for kind in ("accuracy", "accuracy_of_all", "precision", "recall")]
        rows.append([_NAMES[name], f"{found['threshold']:.3f}", *shares, _figure(found["auc"])])
    return rows


def _kind_rows(judged: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            str(cell["episodes"]),
            _rate(cell["called_success"]),
            _figure(cell["voc"]),
            _figure(cell["final"]),
        ]
        for name, cell in judged["kinds"].items()
    ]


def _figure(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"] or (None, None)
    return _number(cell["value"]) + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def _task_rows(judged: dict[str, Any]) -> list[list[str]]:
    return [[task, _rate(cell)] for task, cell in judged["tasks"].items()]


def _rate(cell: dict[str, Any]) -> str:
    if not cell["of"]:
        return "-"
    low, high = cell["ci95"]
    return f"{100 * cell['value']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
