"""`valueguide bench link`: guided episodes through `valueguide serve`: near, far, the server killed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from valueguide.cli.bench_models import guided_models
from valueguide.cli.common import progress_bar
from valueguide.errors import ConfigError, mismatch

_TASKS = "close_drawer,pick_can,press_button"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone; policy, critic, tasks, ... are `ranking`'s."""
    from valueguide.bench.link import CONDITIONS

    group = parser.add_argument_group("link")
    group.add_argument(
        "--conditions", default=",".join(CONDITIONS), help=f"comma-separated; default: {','.join(CONDITIONS)}"
    )
    group.add_argument("--delay-ms", type=float, default=50.0, help="each way, of delayed and waiting")
    group.add_argument("--jitter-ms", type=float, default=20.0, help="each way, more or less than the delay")
    group.add_argument("--timeout-ms", type=float, default=500.0, help="until when an answer must have come")
    group.add_argument("--lost-s", type=float, default=60.0, help="without answers: the episode is truncated")
    group.add_argument(
        "--stretch", type=float, default=1.0, help="seconds for one of the robot's, on a busy computer"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print a table. Raises ConfigError for options that do not fit."""
    from valueguide.bench.link import measure
    from valueguide.bench.link_report import report, table
    from valueguide.cli.suites import resolve_suite

    plan = _plan(args)
    out = args.out or Path("outputs") / f"link-{args.suite}-{time.strftime('%Y%m%d-%H%M%S')}"
    with progress_bar(len(plan.jobs()), "episodes") as bar:
        rows = measure(plan, resolve_suite(args.suite), out, lambda row: bar.update(1))
    found = report(rows)
    print(table(found))
    settings = {**plan.to_json(), "out": str(out), "command": " ".join(["valueguide", *sys.argv[1:]])}
    return {"settings": settings, "conditions": found}


def _plan(args: argparse.Namespace) -> Any:
    from valueguide.bench.link import CONDITIONS, LinkPlan
    from valueguide.cli.collect import suite_tasks
    from valueguide.cli.suites import resolve_suite

    conditions = tuple(name.strip() for name in args.conditions.split(",") if name.strip())
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown or not conditions:
        raise ConfigError(
            mismatch("--conditions", "names", f"some of {', '.join(CONDITIONS)}", args.conditions)
        )
    for option, value, low in (
        ("--episodes", args.episodes, 1),
        ("--delay-ms", args.delay_ms, 0),
        ("--jitter-ms", args.jitter_ms, 0),
        ("--timeout-ms", args.timeout_ms, 1),
        ("--lost-s", args.lost_s, 0),
        ("--stretch", args.stretch, 1),
    ):
        if not value >= low:
            raise ConfigError(mismatch(option, "value", f"{low} or more", value))
    suite = resolve_suite(args.suite)
    return LinkPlan(
        suite=args.suite,
        tasks=suite_tasks(suite, args.tasks or _TASKS),
        conditions=tuple(name for name in CONDITIONS if name in conditions),
        episodes=args.episodes,
        seed=args.seed,
        settings=guided_models(args),
        delay_s=1e-3 * args.delay_ms,
        jitter_s=1e-3 * args.jitter_ms,
        timeout_s=1e-3 * args.timeout_ms,
        lost_s=args.lost_s,
        stretch=args.stretch,
    )
