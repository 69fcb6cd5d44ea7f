"""`valueguide train report`: runs of `train online` side by side, as tables and a page with plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from valueguide.errors import DataError


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train report`."""
    parser.add_argument(
        "--run", type=Path, action="append", required=True, help="what `train online --json` wrote; repeat"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for comparison.json, report.html and plots"
    )


def report_runs(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the tables and writes the page; returns the comparison. DataError for another kind of file."""
    from valueguide.evaluation.learning import compare_runs
    from valueguide.evaluation.learning_report import (
        format_comparison,
        write_learning_plots,
        write_learning_report,
    )

    comparison = compare_runs([_read(path) for path in args.run])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    write_learning_report(args.out / "report.html", comparison)
    write_learning_plots(args.out, comparison)
    print(format_comparison(comparison))
    print(f"\n{args.out / 'report.html'}")
    return comparison


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected the result of `train online --json`, found {error}") from error
    missing = [name for name in ("settings", "evaluated", "collected") if name not in run]
    if missing:
        raise DataError(f"{path}: expected the result of `train online --json`, found no {missing[0]!r}")
    return run
