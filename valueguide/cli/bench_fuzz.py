"""`valueguide bench fuzz`: damaged messages to everything that reads from a network."""

from __future__ import annotations

import argparse
from typing import Any

from valueguide.cli.common import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=100_000, help="fuzz: how many, over all targets")
    parser.add_argument("--targets", default="wire,openpi,groot", help="fuzz: which readers, comma-separated")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fuzz, and print what was found of each target."""
    from valueguide.bench import fuzz

    targets = tuple(name.strip() for name in args.targets.split(",") if name.strip())
    with progress_bar(args.messages, "messages") as bar:
        found = fuzz.run(args.messages, args.seed, targets, bar.update)
    for name in targets:
        one = found[name]
        print(
            f"{name}: {one['messages']} messages, {one['accepted']} read, {one['refused']} refused, "
            f"{one['crash_count']} crashes, {one['hangs']} hangs; slowest {one['slowest_ms']:.1f} ms, "
            f"at most {one['peak_allocated']} bytes for one; resident {_range(one['rss_mb'])} MB; "
            f"lines {'/'.join(map(str, one['lines']))}"
        )
        for crash in one["crashes"]:
            print(f"  {crash['error']}: {crash['message'][:100]}")
    return {"messages": args.messages, "seed": args.seed, **found}


def _range(megabytes: list[float]) -> str:
    return " to ".join(f"{value:.1f}" for value in megabytes)
