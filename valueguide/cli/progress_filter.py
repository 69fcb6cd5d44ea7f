"""`valueguide progress filter`: the episodes worth keeping as a new dataset, and why the others are not."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.data.layout import read_json
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.columns import FILE, ProgressColumns, read_progress, write_progress
from valueguide.progress.filtering import (
    MEASURES,
    Candidate,
    Choice,
    counts_of,
    keep_above,
    keep_detected,
    keep_random,
    keep_top,
)
from valueguide.progress.rows import Row, read_plan
from valueguide.progress.success import Detector

_REPORT = "meta/valueguide/subset.json"


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--dataset", type=Path, required=True, help="LeRobotDataset v3 folder, or an MCAP bag")
    one.add_argument("--scores", type=Path, help="rows of `valueguide progress score` of it")
    rule = one.add_mutually_exclusive_group(required=True)
    rule.add_argument("--top", type=float, metavar="SHARE", help="keep this share, best first")
    rule.add_argument("--above", type=float, metavar="VALUE", help="keep values of this or more")
    rule.add_argument(
        "--detected", type=Path, metavar="DETECTOR", help="keep what detector.json calls success"
    )
    rule.add_argument(
        "--random",
        metavar="SHARE",
        help="control: so many at random; or the folder of a filtered dataset: as many as it kept",
    )
    one.add_argument("--by", default="final", help=f"what --top and --above go by: {', '.join(MEASURES)}")
    one.add_argument("--per-task", action="store_true", help="--top and --random: the share of each task")
    one.add_argument("--seed", type=int, default=0, help="of --random")
    one.add_argument("--camera", default="", help="whose rows count, where there are several")
    one.add_argument("--out", type=Path, required=True, help="folder of the new dataset")
    one.add_argument("--robot", default="", help="for a bag that does not describe its robot")
    one.add_argument("--namespace", default=None, help="of the recorded graph, where the bag does not say")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the new dataset; returns its report, which lies in it as meta/valueguide/subset.json.

    Raises DataError when nothing would be kept.
    """
    from valueguide.cli.common import progress_bar
    from valueguide.cli.progress_setup import dataset_folder
    from valueguide.data.subset import write_subset

    dataset = EpisodeDataset.open(dataset_folder(args))
    candidates = _candidates(args, dataset)
    choice = _choose(args, candidates)
    if not choice.kept:
        reason = Counter(choice.dropped.values()).most_common(1)[0][0]
        raise DataError(mismatch(str(args.dataset), "episodes to keep", "one or more", f"none ({reason})"))
    report = _report(args, dataset, candidates, choice)
    place = {int(number): i for i, number in enumerate(dataset.episode_index)}
    kept = [place[episode] for episode in choice.kept]
    with progress_bar(len(kept), "episodes") as bar:
        write_subset(dataset, args.out, kept, report, bar.update)
    _carry_progress(dataset, kept, args.out)
    _tell(args, report)
    return report


def _candidates(args: argparse.Namespace, dataset: EpisodeDataset) -> list[Candidate]:
    rows: dict[int, Row] = {}
    if args.scores:
        from valueguide.cli.progress_success import real_rows

        scored = read_plan(args.scores).get("dataset")
        if scored != dataset.dataset_id:
            raise ConfigError(mismatch(str(args.scores), "scores of dataset", dataset.dataset_id, scored))
        rows = {row["episode"]: row for row in real_rows(args.scores, args.camera)}
    elif args.random is None:
        raise ConfigError("expected --scores with --top, --above and --detected, found none")
    return [
        Candidate(
            int(number),
            dataset.instructions[dataset.instruction[dataset.episode_start[i]]],
            rows.get(int(number)),
        )
        for i, number in enumerate(dataset.episode_index)
    ]


def _choose(args: argparse.Namespace, candidates: list[Candidate]) -> Choice:
    if args.per_task and (args.above is not None or args.detected):
        raise ConfigError("--per-task: expected --top or --random with it; the other rules look at no share")
    if args.top is not None:
        return keep_top(candidates, args.top, args.by, args.per_task)
    if args.above is not None:
        return keep_above(candidates, args.above, args.by)
    if args.detected:
        detector = Detector.load(args.detected)
        detector.check_settings(read_plan(args.scores), str(args.scores))
        return keep_detected(candidates, detector)
    return keep_random(candidates, _random_counts(args, candidates), args.seed)


def _random_counts(args: argparse.Namespace, candidates: list[Candidate]) -> dict[str, int]:
    """How many to draw, from a share or from what another filtered dataset kept."""
    try:
        return counts_of(candidates, float(args.random), args.per_task)
    except ValueError:
        pass
    other = Path(args.random) / _REPORT
    if not other.exists():
        expected = "a share, or the folder of a filtered dataset"
        raise ConfigError(mismatch("--random", "value", expected, repr(args.random)))
    kept = read_json(other)["kept"]
    return dict(Counter(entry["task"] for entry in kept)) if args.per_task else {"": len(kept)}


def _report(
    args: argparse.Namespace, dataset: EpisodeDataset, candidates: list[Candidate], choice: Choice
) -> dict[str, Any]:
    rule = next(name for name in ("top", "above", "detected", "random") if getattr(args, name) is not None)
    lengths = (dataset.episode_end - dataset.episode_start).tolist()
    new = {episode: i for i, episode in enumerate(choice.kept)}
    kept, dropped = [], []
    for i, candidate in enumerate(candidates):
        entry = {
            "episode": candidate.episode,
            "task": candidate.task,
            "frames": lengths[i],
            "success": bool(dataset.episode_success[i]) if dataset.outcomes_recorded else None,
            "final": candidate.row["final"] if candidate.row else None,
            "voc": candidate.row["voc"] if candidate.row else None,
        }
        if candidate.episode in new:
            kept.append({**entry, "new_episode": new[candidate.episode]})
        else:
            dropped.append({**entry, "reason": choice.dropped[candidate.episode]})
    return {
        "rule": rule,
        "value": str(getattr(args, rule)),
        "by": args.by if rule in ("top", "above") else None,
        "per_task": args.per_task,
        "seed": args.seed if rule == "random" else None,
        "source": dataset.dataset_id,
        "out": str(args.out),
        "episodes": {"kept": len(kept), "dropped": len(dropped)},
        "frames": {
            kind: sum(e["frames"] for e in found) for kind, found in (("kept", kept), ("dropped", dropped))
        },
        "kept": kept,
        "dropped": dropped,
    }


def _carry_progress(dataset: EpisodeDataset, kept: list[int], out: Path) -> None:
    """Per-frame progress of the kept episodes beside the new dataset, where the old one has it."""
    if not (dataset.root / FILE).exists():
        return
    try:
        old = read_progress(dataset)
    except DataError as error:
        return print(f"per-frame progress not carried over: {error}")
    rows = np.concatenate([np.arange(dataset.episode_start[i], dataset.episode_end[i]) for i in kept])
    columns = ProgressColumns(old.value[rows], old.kind[rows], old.before_s[rows], old.after_s[rows])
    new = EpisodeDataset.open(out)
    write_progress(new.root / FILE, new, columns, {"from": dataset.dataset_id})


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> None:
    episodes, frames = report["episodes"], report["frames"]
    print(f"kept {episodes['kept']} episodes, {frames['kept']} frames in {args.out}")
    print(f"dropped {episodes['dropped']} episodes, {frames['dropped']} frames; the reasons are in {_REPORT}")
    known = [entry for entry in [*report["kept"], *report["dropped"]] if entry["success"] is not None]
    if known:
        before = sum(entry["success"] for entry in known)
        after = sum(bool(entry["success"]) for entry in report["kept"])
        print(f"recorded successes: {before} of {len(known)} before, {after} of {len(report['kept'])} now")
