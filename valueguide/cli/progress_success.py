"""`valueguide progress success`: which scored episodes succeeded, and how far the verdicts can be trusted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.data.layout import make_folder, write_bytes, write_json
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.controls import REAL
from valueguide.progress.rows import Row, read_plan, read_rows
from valueguide.progress.success import RULES, Detector, calibrate, undecided

_WORDS = {True: "success", False: "failure", None: "undecided"}


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--scores", type=Path, required=True, help="rows of `valueguide progress score` to give verdicts on"
    )
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--calibrate", type=Path, help="rows of labelled episodes; the same file as --scores is split"
    )
    source.add_argument("--detector", type=Path, help="detector.json of an earlier calibration")
    one.add_argument("--out", type=Path, required=True, help="folder for detector, verdicts and report")
    one.add_argument("--rule", default="", help=f"what decides: {', '.join(RULES)} (default: both)")
    one.add_argument("--camera", default="", help="whose rows count, where there are several")
    one.add_argument("--share", type=float, default=0.5, help="of a split file that is calibrated on")
    one.add_argument("--seed", type=int, default=0, help="of the split and of bootstrap draws")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Calibrates or loads a detector, writes verdicts, and judges them where outcomes are known.

    Files in --out: detector.json, verdicts.jsonl, success.json and, with labels, report.html.
    """
    rows = real_rows(args.scores, args.camera)
    plan = read_plan(args.scores)
    if args.detector:
        detector, tested = Detector.load(args.detector), rows
        if args.rule:
            detector = Detector(
                args.rule, detector.thresholds, detector.weights, detector.settings, detector.facts
            )
        detector.check_settings(plan, str(args.scores))
    else:
        known, tested = _calibration_rows(args, rows)
        detector = calibrate(known, args.rule or "both", read_plan(args.calibrate))
        detector.check_settings(plan, str(args.scores))
    verdicts = [verdict_of(detector, row) for row in tested]
    counts = {word: sum(v["verdict"] == word for v in verdicts) for word in _WORDS.values()}
    result: dict[str, Any] = {
        "rule": detector.rule,
        "thresholds": detector.thresholds,
        "weights": list(detector.weights),
        "calibrated_on": detector.facts,
        "settings": plan,
        "verdicts": counts,
        "judged": _judged(args, detector, tested),
    }
    make_folder(args.out.absolute())
    detector.save(args.out / "detector.json")
    lines = "".join(json.dumps(verdict) + "\n" for verdict in verdicts).encode()
    write_bytes(args.out / "verdicts.jsonl", lines)
    write_json(args.out / "success.json", result)
    _tell(args, result)
    return result


def real_rows(path: Path, camera: str) -> list[Row]:
    """The real clips' rows of one camera. Raises DataError without any, ConfigError for an unclear camera."""
    rows = [row for row in read_rows(path) if row["variant"] == REAL]
    cameras = sorted({row["camera"] for row in rows})
    if not rows:
        raise DataError(mismatch(str(path), "rows", "scored episodes", "none"))
    if (camera and camera not in cameras) or (not camera and len(cameras) > 1):
        raise ConfigError(mismatch("--camera", "value", f"one of {', '.join(cameras)}", repr(camera)))
    return [row for row in rows if row["camera"] == (camera or cameras[0])]


def verdict_of(detector: Detector, row: Row) -> Row:
    """One line about an episode."""
    return {
        "episode": row["episode"],
        "verdict": _WORDS[detector.verdict(row)],
        "score": detector.score(row),
        "reason": undecided(row),
        "voc": row["voc"],
        "final": row["final"],
        "recorded": row.get("success"),
    }


def _calibration_rows(args: argparse.Namespace, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to calibrate on and rows to judge. One file is split by episodes, each task and outcome alike."""
    if args.calibrate.resolve() != args.scores.resolve():
        return real_rows(args.calibrate, args.camera), rows
    if not 0.0 < args.share < 1.0:
        raise ConfigError(mismatch("--share", "value", "above 0 and below 1", args.share))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("task")), str(row.get("success"))), []).append(row)
    chosen: set[int] = set()
    rng = np.random.default_rng(args.seed)
    for name in sorted(groups):
        group = groups[name]
        picked = rng.permutation(len(group))[: round(args.share * len(group))]
        chosen |= {int(group[i]["episode"]) for i in picked}
    known = [row for row in rows if row["episode"] in chosen]
    return known, [row for row in rows if row["episode"] not in chosen]


def _judged(args: argparse.Namespace, detector: Detector, rows: Sequence[Row]) -> dict[str, Any] | None:
    from valueguide.evaluation.success import judge

    labelled = [row for row in rows if row.get("success") is not None]
    return judge(detector, labelled, args.seed) if labelled else None


def _tell(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from valueguide.evaluation.success_report import format_success, write_success_report

    counts = ", ".join(f"{count} {word}" for word, count in result["verdicts"].items())
    print(f"verdicts by {result['rule']}: {counts}")
    if result["judged"]:
        write_success_report(args.out / "report.html", result)
        print(format_success(result["judged"]))
    else:
        print("no recorded outcomes: the verdicts are not judged")
    print(f"files in {args.out}")
