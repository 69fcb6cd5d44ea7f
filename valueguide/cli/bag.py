"""`valueguide bag import | export | check`: bags to datasets and back, and what a bag holds and lacks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from valueguide.config.robot import RobotConfig
from valueguide.errors import ConfigError, DataError, mismatch

EXAMPLES = """examples:
  # what the recorder wrote: episodes into a dataset, the same as those it stored itself
  valueguide bag import runs/day1/bag --out runs/day1_again

  # bags of other recorders (ros2 bag record -s mcap) do not say which robot it was
  valueguide bag import a.mcap b.mcap --robot configs/robots/my_arm.yaml --namespace left --out data

  valueguide bag export runs/day1/dataset --robot sim --out runs/day1_bag
  valueguide bag check runs/day1/bag
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="import | export | check")
    into = whats.add_parser("import", help="episodes of bags into a dataset, new or continued")
    into.add_argument("bags", nargs="+", type=Path, metavar="BAG", help=".mcap file, or folder of them")
    into.add_argument("--out", type=Path, required=True, help="dataset folder; an existing one is continued")
    into.add_argument("--image-format", default="png", choices=("png", "jpeg"), help="how frames are stored")
    into.add_argument("--horizon", type=int, default=0, help="most planned steps stored; 0: as found first")
    into.add_argument("--k", type=int, default=0, help="most candidates stored; 0: as found first")
    into.add_argument("--members", type=int, default=0, help="most critic members stored; 0: as found first")
    out = whats.add_parser("export", help="episodes of a dataset into a bag, one file each")
    out.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a LeRobotDataset v3")
    out.add_argument("--out", type=Path, required=True, help="folder for the .mcap files; must hold none")
    check = whats.add_parser("check", help="counts, rates, gaps, stamps, truncation, missing topics")
    check.add_argument("bags", nargs="+", type=Path, metavar="BAG", help=".mcap file, or folder of them")
    for one in (into, out, check):
        one.add_argument(
            "--robot",
            default="",
            help="name in configs/robots or a YAML; default: "
            + ("that of the dataset" if one is out else "the one described in the bag"),
        )
    for one in (into, check):
        one.add_argument(
            "--namespace", default=None, help="of the recorded graph, where the bag does not say"
        )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does one of the three; returns its counts. `check` reports problems, it does not fail on them."""
    return {"import": _import, "export": _export, "check": _check}[args.what](args)


def _import(args: argparse.Namespace) -> dict[str, Any]:
    from valueguide.cli.common import progress_bar
    from valueguide.ros.bag_import import import_bag
    from valueguide.ros.recording import StoreSettings

    for name in ("horizon", "k", "members"):
        if getattr(args, name) < 0:
            raise ConfigError(mismatch(f"--{name}", "value", "0 or more", getattr(args, name)))
    settings = StoreSettings(args.image_format, args.horizon, args.k, args.members)
    results = []
    with progress_bar(_megabytes(args.bags), "MB") as bar:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            bar.update((done + count) // 1_000_000 - done // 1_000_000)
            done += count

        for bag in args.bags:
            result = import_bag(
                bag,
                args.out,
                robot=_robot(args.robot),
                namespace=args.namespace,
                settings=settings,
                progress=advance,
            )
            results.append(result)
    total = {
        "dataset": str(args.out),
        "episodes": sum(result["episodes"] for result in results),
        "frames": sum(result["frames"] for result in results),
        "dropped": [line for result in results for line in result["dropped"]],
        "bags": [result["bag"] for result in results],
    }
    for line in total["dropped"]:
        print(line)
    print(f"{total['episodes']} episodes, {total['frames']} frames in {args.out}")
    if not total["episodes"]:
        first = f", the first because: {total['dropped'][0]}" if total["dropped"] else ""
        raise DataError(
            f"{args.bags[0]}: expected finished episodes, found none ({len(total['dropped'])} dropped{first})"
        )
    return total


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from valueguide.cli.common import progress_bar
    from valueguide.data.reader import EpisodeDataset
    from valueguide.ros.export import export_dataset

    dataset = EpisodeDataset.open(args.dataset)
    name = args.robot or (dataset.spec.robot_type if dataset.spec else "")
    robot = _robot(name)
    if robot is None:
        raise ConfigError(
            f"{args.dataset}: expected a dataset that names its robot or --robot, found neither"
        )
    with progress_bar(dataset.episodes, "episodes") as bar:
        result = export_dataset(args.dataset, args.out, robot, bar.update)
    print(f"{result['episodes']} episodes, {result['messages']} messages in {args.out}")
    for name, count in result["lost"].items():
        print(f"{name}: differs in {count} episodes; messages cannot carry it")
    return result


def _check(args: argparse.Namespace) -> dict[str, Any]:
    from valueguide.ros.bag_check import check_bag

    found = [check_bag(bag, _robot(args.robot), args.namespace) for bag in args.bags]
    for bag in found:
        print(f"{bag['bag']}: {bag['messages']} messages in {len(bag['files'])} files")
        for session in bag["sessions"]:
            robot = session["robot"] or "robot unknown"
            print(f"  {session['session'] or 'recording'}: {robot}, {session['duration_s']:.1f} s")
        for name, topic in bag["topics"].items():
            gap = f"{topic['longest_gap_s']:8.3f} s gap"
            print(f"  {name:32}{topic['count']:8}  {topic['rate_hz']:8.2f} Hz {gap}  {topic['type']}")
        for problem in bag["problems"]:
            print(f"  ! {problem}")
    return {"bags": found, "problems": sum(len(bag["problems"]) for bag in found)}


def _robot(name: str) -> RobotConfig | None:
    from valueguide.config.robot import load_robot

    return load_robot(name) if name else None


def _megabytes(bags: list[Path]) -> int:
    """Size of all files, for the progress bar."""
    files = [file for bag in bags for file in (bag.glob("*.mcap") if bag.is_dir() else [bag])]
    return max(1, sum(file.stat().st_size for file in files if file.exists()) // 1_000_000)
