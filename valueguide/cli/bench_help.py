"""`valueguide bench help`: when value and progress ask for the operator, against how episodes truly end."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from valueguide.cli.bench_models import guided_models
from valueguide.cli.common import progress_bar
from valueguide.errors import ConfigError, mismatch
from valueguide.execution.help import RULES, HelpSettings
from valueguide.execution.help_calibration import calibrate, requests, save_help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone; policy, critic, tasks, ... are `ranking`'s."""
    group = parser.add_argument_group("help")
    group.add_argument("--per-task", type=int, default=10, help="episodes of each task, in each of both sets")
    group.add_argument("--calibration-seed", type=int, default=60000, help="of the first calibration episode")
    group.add_argument("--test-seed", type=int, default=61000, help="of the first test episode")
    group.add_argument(
        "--budget", type=float, default=0.1, help="share of successes that may see a request in calibration"
    )
    group.add_argument("--decisions", type=int, default=2, help="consecutive decisions that must agree")
    group.add_argument("--cooldown", type=int, default=20, help="control steps between two requests")
    group.add_argument(
        "--useful", type=int, default=20, help="control steps before the end that a request must come"
    )
    group.add_argument(
        "--one-reference", action="store_true", help="all tasks against one reference, not each its own"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Watch, calibrate on one set, report on the other. Raises ConfigError for options that do not fit."""
    from valueguide.cli.suites import resolve_suite
    from valueguide.evaluation.help import CALIBRATION, TEST, labelled, watch_episodes
    from valueguide.evaluation.help_metrics import clock, report

    plan = _plan(args)
    out = args.out or Path("outputs") / f"help-{args.suite}-{time.strftime('%Y%m%d-%H%M%S')}"
    start = time.perf_counter()
    with progress_bar(len(plan.jobs()), "episodes") as bar:
        rows = watch_episodes(plan, resolve_suite, out, args.workers, lambda row: bar.update(1))
    watched_s = time.perf_counter() - start
    known, unseen = labelled(rows, CALIBRATION), labelled(rows, TEST)
    rules = {}
    for rule in RULES:
        base = HelpSettings(
            rule=rule,
            decisions=args.decisions,
            cooldown_steps=args.cooldown,
            critic_version=rows[0]["critic_version"],
        )
        rules[rule] = calibrate(known, args.budget, base, not args.one_reference, args.useful)
        name = "help.json" if rule == "both" else f"help-{rule}.json"
        facts = {"budget": args.budget, "useful_steps": args.useful, "plan": plan.to_json()}
        save_help(rules[rule], out / name, facts)
    askers: dict[str, Any] = {
        **{rule: partial(requests, found) for rule, found in rules.items()},
        "clock": clock(known, args.budget, args.cooldown),
    }
    result = {
        "settings": {
            **plan.to_json(),
            "budget": args.budget,
            "decisions": args.decisions,
            "cooldown_steps": args.cooldown,
            "useful_steps": args.useful,
            "by_task": not args.one_reference,
            "policy_version": rows[0]["policy_version"],
            "critic_version": rows[0]["critic_version"],
            "out": str(out),
            "command": " ".join(["valueguide", *sys.argv[1:]]),
        },
        "seconds": {"episodes": watched_s, "calibration": time.perf_counter() - start - watched_s},
        "chosen": {
            rule: {name: getattr(found, name) for name in ("value_margin", "progress_margin", "stall_steps")}
            for rule, found in rules.items()
        },
        "calibration": report(askers, known, args.useful),
        "test": report(askers, unseen, args.useful),
    }
    print(table(result))
    return result


def _plan(args: argparse.Namespace) -> Any:
    from valueguide.cli.collect import suite_tasks
    from valueguide.cli.suites import resolve_suite
    from valueguide.evaluation.help import HelpPlan

    if args.workers < 1:
        raise ConfigError(mismatch("--workers", "value", "1 or more", args.workers))
    if not 0.0 <= args.budget <= 1.0:
        raise ConfigError(mismatch("--budget", "value", "0 to 1", args.budget))
    replace(HelpSettings(), decisions=args.decisions, cooldown_steps=args.cooldown)  # refuses bad ones now
    return HelpPlan(
        suite=args.suite,
        tasks=suite_tasks(resolve_suite(args.suite), args.tasks),
        episodes=args.per_task,
        calibration_seed=args.calibration_seed,
        test_seed=args.test_seed,
        settings=guided_models(args),
    )


def table(result: dict[str, Any]) -> str:
    """One line a rule and set, with 95 % intervals, and the paired differences on the test set."""
    useful = result["settings"]["useful_steps"]
    heads = ("precision", "recall", f"{useful}+ steps ahead", "alarms a success", "lead, median", "lead, IQR")
    lines = []
    for part in ("calibration", "test"):
        rules = result[part]["rules"]
        first = next(iter(rules.values()))
        lines.append(f"{part}: {first['episodes']} episodes, {first['failures']} of them fail")
        lines.append(f"  {'asks by':10}" + "".join(f"{head:>22}" for head in heads))
        for rule, found in rules.items():
            lead = found["lead_steps"]
            cells = [_percent(found[name]) for name in ("precision", "recall", "recall_in_time")]
            cells.append(
                _figure(
                    found["false_alarms_per_success"]["value"],
                    found["false_alarms_per_success"]["ci95"],
                    ".2f",
                )
            )
            cells.append(_figure(lead["median"], lead["ci95"], ".0f"))
            cells.append("none" if lead["iqr"] is None else "{:.0f} to {:.0f}".format(*lead["iqr"]))
            lines.append(f"  {rule:10}" + "".join(f"{cell:>22}" for cell in cells))
    for name, found in result["test"]["paired"].items():
        other, _, main = name.partition("_vs_")
        low, high = (100 * bound for bound in found["ci95"])
        lines.append(
            f"{other} -> {main}: right in {100 * found['delta']:+.1f} points more of the test episodes "
            f"({low:+.1f} to {high:+.1f}), better in {found['gained']}, worse in {found['lost']}, "
            f"p = {found['p']:.2g}"
        )
    return "\n".join(lines)


def _percent(share: dict[str, Any]) -> str:
    if share["value"] is None:
        return "none"
    return _figure(100 * share["value"], [100 * bound for bound in share["ci95"]], ".0f")


def _figure(value: float | None, interval: list[float] | None, form: str) -> str:
    if value is None or interval is None:
        return "none"
    low, high = (format(bound, form) for bound in interval)
    return f"{value:{form}} ({low} to {high})"
