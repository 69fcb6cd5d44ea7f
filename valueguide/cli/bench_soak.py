"""`valueguide bench soak`: robots ask a server for half an hour; memory and the slowest answers over time."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from valueguide.cli.bench_models import guided_models
from valueguide.cli.common import progress_bar
from valueguide.errors import ConfigError, mismatch

_TASKS = "close_drawer,pick_can,press_button"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone; policy, critic, tasks, ... are `ranking`'s."""
    group = parser.add_argument_group("soak", "also --suite, --k, --timeout-ms (of link), --out for plots")
    group.add_argument("--minutes", type=float, default=30.0, help="how long robots ask")
    group.add_argument("--robots", type=int, default=2, help="every second one comes again now and then")
    group.add_argument(
        "--warm-up", type=float, default=0.2, help="share of the time after which measuring begins"
    )
    group.add_argument("--reconnect-s", type=float, default=60.0, help="until such a robot comes again")
    group.add_argument("--sample-s", type=float, default=5.0, help="between looks at memory and metrics")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, draw memory.svg and latency.svg into --out. Raises ConfigError for options
    that do not fit, LinkError when a process ends before its time."""
    from valueguide.bench.soak import Record, soak
    from valueguide.bench.soak_report import report, table

    plan = _plan(args)
    done = 0

    def progress(at: float, record: Record) -> None:
        nonlocal done
        sizes = ", ".join(f"{name} {seen[-1][1].private:.0f} MB" for name, seen in record.usage.items())
        bar.note(f"{sizes}; {len(record.decisions)} decisions, {len(record.errors)} errors")
        bar.update(round(at) - done)
        done = round(at)

    with progress_bar(round(plan.seconds), "seconds") as bar:
        record = soak(plan, progress)
    found = report(record, plan.seconds, plan.warm_up)
    print(table(found))
    if args.out:
        _draw(args.out, found)
    settings = {
        "suite": plan.suite,
        "tasks": list(plan.tasks),
        "robots": plan.robots,
        "minutes": args.minutes,
        "warm_up": plan.warm_up,
        "timeout_s": plan.timeout_s,
        "reconnect_s": plan.reconnect_s,
        "k": plan.settings.k,
        "seed": plan.seed,
        "command": " ".join(["valueguide", *sys.argv[1:]]),
    }
    return {"settings": settings, **found, "samples": _samples(record)}


def _samples(record: Any) -> dict[str, Any]:
    """All looks at the processes, so that other figures can be made of them."""
    return {
        name: [{"at": round(at, 1), **asdict(one)} for at, one in seen] for name, seen in record.usage.items()
    }


def _plan(args: argparse.Namespace) -> Any:
    from sim.suite import make_suite
    from valueguide.bench.soak import SoakPlan
    from valueguide.cli.collect import suite_tasks

    for option, value, good, wanted in (
        ("--minutes", args.minutes, args.minutes > 0, "more than 0"),
        ("--robots", args.robots, args.robots >= 1, "1 or more"),
        ("--warm-up", args.warm_up, 0 <= args.warm_up < 1, "0 to below 1"),
        ("--reconnect-s", args.reconnect_s, args.reconnect_s > 0, "more than 0"),
        ("--sample-s", args.sample_s, 0 < args.sample_s <= 60 * args.minutes, "once in the time or oftener"),
        ("--timeout-ms", args.timeout_ms, args.timeout_ms >= 1, "1 or more"),
    ):
        if not good:
            raise ConfigError(mismatch(option, "value", wanted, value))
    return SoakPlan(
        suite=args.suite,
        tasks=suite_tasks(make_suite(args.suite), args.tasks or _TASKS),
        robots=args.robots,
        seconds=60 * args.minutes,
        seed=args.seed,
        settings=guided_models(args),
        warm_up=args.warm_up,
        timeout_s=1e-3 * args.timeout_ms,
        reconnect_s=args.reconnect_s,
        sample_s=args.sample_s,
    )


def _draw(out: Path, found: dict[str, Any]) -> None:
    """Private memory of each process, and p50 and p99, of each window."""
    from valueguide.evaluation.plots import COLORS, curves, write_plot

    out.mkdir(parents=True, exist_ok=True)
    minutes = [round(at / 60, 1) for at in found["latency"]["windows_at_s"]]
    colors = list(COLORS.values())

    def lines(series: dict[str, list[float | None]]) -> dict[str, list[tuple[float, ...]]]:
        return {
            name: [(at, v, v, v) for at, v in zip(minutes, values, strict=False) if v is not None]
            for name, values in series.items()
        }

    sizes = {n: one["private"]["windows"] for n, one in found["processes"].items() if "private" in one}
    times = {f"{name}, ms": found["latency"][f"{name}_ms"] for name in ("p50", "p99")}
    for file, series, axis in (
        ("memory.svg", sizes, "minutes; private memory, MB"),
        ("latency.svg", times, "minutes; milliseconds of a decision"),
    ):
        paint = {name: colors[i % len(colors)] for i, name in enumerate(series)}
        write_plot(out / file, curves(lines(series), paint, axis, percent=False))
