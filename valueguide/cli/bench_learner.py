"""`valueguide bench learner`: the online learner of critics against a plain single-process loop."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueguide.cli.common import shipped
from valueguide.errors import ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.bench.learner import BenchSettings

#: With pictures a replay of full size would not fit beside everything else in memory.
_PICTURES_SIZE = {"offline": 40, "rollout": 20, "correction": 18}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone."""
    group = parser.add_argument_group("learner")
    group.add_argument("--updates", type=int, default=1000, help="of the learner in one run")
    group.add_argument("--loop-updates", type=int, default=60, help="of the plain loop in one run")
    group.add_argument("--pairs", type=int, default=3, help="runs of each, in turns")
    group.add_argument("--threads", type=int, default=1, help="torch's, of both")
    group.add_argument("--batch-size", type=int, default=256)
    group.add_argument("--proposals", type=int, default=4, help="policy chunks at each successor state")
    group.add_argument(
        "--pictures", type=int, default=0, metavar="N", help="also N updates of a policy that sees pictures"
    )


def run(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measures the shipped checkpoints. Raises ConfigError for a number below 1."""
    from valueguide.bench.learner import BenchSettings
    from valueguide.bench.noise_replay import ReplaySize

    for name in ("updates", "loop_updates", "pairs", "threads", "batch_size", "proposals"):
        if getattr(args, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(mismatch(option, "value", "1 or more", getattr(args, name)))
    settings = BenchSettings(
        args.updates, args.loop_updates, args.pairs, args.threads, args.batch_size, args.proposals
    )
    load = os.getloadavg()[0]
    out: dict[str, Any] = {"settings": asdict(settings), "state": _measure("wxai-state", settings, device)}
    if args.pictures:
        fewer = replace(settings, updates=args.pictures, size=ReplaySize(**_PICTURES_SIZE))
        out["pictures"] = _measure("wxai", fewer, device)
    return {**out, "load_before": load, "load_after": os.getloadavg()[0]}


def _measure(suite: str, settings: BenchSettings, device: str) -> dict[str, Any]:
    from valueguide.bench.learner import LearnerBench
    from valueguide.critics.checkpoint import LoadedCritic
    from valueguide.policies.load import load_policy

    policy = load_policy(shipped(suite, "policy"), device)
    critic = LoadedCritic(Path(shipped(suite, "critic")))
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        bench = LearnerBench(Path(folder), policy, critic, settings, device)
        measured = bench.compare(lambda line: print(f"{suite}: {line}", file=sys.stderr, flush=True))
        return {**measured, "resumed_identical": bench.resumed_is_identical()}
