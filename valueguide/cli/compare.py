"""`valueguide compare`: evaluations that ran apart, such as those of several policies, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError, DataError, mismatch

EXAMPLES = """examples:
  # three training seeds each of policies trained on two datasets, evaluated from the same seed
  valueguide eval --suite wxai-state --policy outputs/all-0 --arms base --seed 85000 --out outputs/eval-all-0
  valueguide compare --run all=outputs/eval-all-0 --run all=outputs/eval-all-1 --run best=outputs/eval-best-0
"""

#: What must be alike for episodes of one number to begin alike and last as long.
_ALIKE = ("suite", "seed", "wording", "visuals")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="--out of `valueguide eval`; repeat; folders of one name are its training seeds",
    )
    parser.add_argument("--arm", default="base", help="which arm's episodes count")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints both tables. Raises ConfigError for evaluations that do not compare, DataError for none."""
    from valueguide.evaluation.comparison import Row, compare
    from valueguide.evaluation.learning_report import format_comparison

    named: dict[str, list[list[Row]]] = {}
    first: dict[str, Any] = {}
    for text in args.run:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ConfigError(mismatch("--run", "value", "NAME=FOLDER", repr(text)))
        plan, rows = _read(Path(folder))
        first = first or plan
        for key in _ALIKE:
            if plan.get(key) != first.get(key):
                raise ConfigError(mismatch(folder, key, f"{first.get(key)} as in the first", plan.get(key)))
        own = [row for row in rows if row["arm"] == args.arm]
        if not own:
            raise ConfigError(
                mismatch(folder, "--arm", ", ".join(sorted({r["arm"] for r in rows})), args.arm)
            )
        named.setdefault(name, []).append(own)
    comparison = compare(named)
    print(format_comparison(comparison))
    return {"arm": args.arm, "settings": {key: first.get(key) for key in _ALIKE}, **comparison}


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plan and rows of an evaluation. A last line without its end, of a run that was cut off, is left out."""
    try:
        plan = json.loads((folder / "plan.json").read_text())
        whole, _, _ = (folder / "episodes.jsonl").read_text().rpartition("\n")
        rows = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: expected --out of `valueguide eval`, found {error}") from error
    if not rows:
        raise DataError(f"{folder / 'episodes.jsonl'}: expected finished episodes, found none")
    return plan, rows
