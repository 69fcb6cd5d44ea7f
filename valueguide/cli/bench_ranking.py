"""`valueguide bench ranking`: critics against true rollouts of every candidate from the same state."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from valueguide.cli.common import progress_bar, shipped
from valueguide.cli.device import usable_device
from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.branches import BranchPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `bench` has for this measurement alone."""
    group = parser.add_argument_group("ranking")
    group.add_argument("--policy", default="", help="policy folder (default: the shipped one)")
    group.add_argument(
        "--critic",
        action="append",
        default=[],
        help="critic folder, may be repeated (default: the shipped)",
    )
    group.add_argument("--tasks", default="", help="comma-separated; default: all of the suite")
    group.add_argument("--states", type=int, default=90, help="states in all, spread evenly over the tasks")
    group.add_argument("--k", type=int, default=8, help="candidates of each state")
    group.add_argument("--rollouts", type=int, default=1, help="continuations of each candidate")
    group.add_argument("--execute", type=int, default=4, help="steps run of each chunk")
    group.add_argument("--gamma", type=float, default=0.98, help="discount of the returns")
    group.add_argument("--aggregate", default="min", help="over ensemble members: min, mean or lcb")
    group.add_argument("--workers", type=int, default=2, help="processes that simulate in parallel")
    group.add_argument(
        "--out", type=Path, help="folder that keeps the truth: continues, and serves other critics at once"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, return everything. Raises ConfigError for options that do not fit."""
    from valueguide.cli.collect import suite_tasks
    from valueguide.cli.suites import resolve_suite
    from valueguide.evaluation.arms import load_critic
    from valueguide.evaluation.branches import measure, score
    from valueguide.evaluation.ranking import rank_critics

    if not 0.0 <= args.gamma < 1.0:
        raise ConfigError(mismatch("--gamma", "value", "0 to below 1", args.gamma))
    if args.workers < 1:
        raise ConfigError(mismatch("--workers", "value", "1 or more", args.workers))
    suite, device = resolve_suite(args.suite), usable_device(args.device)
    policy = args.policy or shipped(args.suite, "policy")
    critics = {
        name: load_critic(path, suite, device)
        for name, path in named(args.critic or [shipped(args.suite, "critic")]).items()
    }
    for name, critic in critics.items():
        if critic.executed_length != args.execute:
            raise ConfigError(mismatch(f"critic {name}", "--execute", critic.executed_length, args.execute))
    plan = BranchPlan(
        suite=args.suite,
        policy=policy,
        tasks=suite_tasks(suite, args.tasks),
        states=args.states,
        k=args.k,
        rollouts=args.rollouts,
        seed=args.seed,
        execute=args.execute,
        gamma=args.gamma,
        device=device,
    )
    out = args.out or Path("outputs") / f"ranking-{args.suite}-{time.strftime('%Y%m%d-%H%M%S')}"
    start = time.perf_counter()
    with progress_bar(plan.states, "states") as bar:
        points = measure(plan, resolve_suite, out, args.workers, lambda row: bar.update(1))
    q = {name: score(critic, points, args.aggregate) for name, critic in critics.items()}
    tasks = [point.task for point in points]
    success, returns = (_means(points, kind) for kind in ("success", "returns"))
    result = {
        "settings": {
            **plan.to_json(),
            "aggregate": args.aggregate,
            "device": device,
            "critics": {name: critic.version for name, critic in critics.items()},
            "truth": str(out),
            "command": " ".join(["valueguide", *sys.argv[1:]]),
        },
        "seconds": time.perf_counter() - start,
        **rank_critics(tasks, q, success, returns),
    }
    print(table(result))
    return result


def _means(points: Any, kind: str) -> Any:
    import numpy as np

    return np.array([getattr(point, kind).mean(axis=1) for point in points], float)


def named(paths: list[str]) -> dict[str, str]:
    """Critics by the shortest end of their path that tells them apart. ConfigError for one given twice."""
    parts = [Path(path).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ConfigError(mismatch("--critic", "folders", "different ones", ", ".join(paths)))
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def table(result: dict[str, Any]) -> str:
    """Correlations of every critic, value and regret of every choice, and the paired differences."""
    settings = result["settings"]
    lines = [
        f"{result['states']} states, K = {result['k']}, {settings['rollouts']} rollouts a candidate; "
        f"candidates differ in success in {result['informative']} states"
    ]
    for name, found in result["critics"].items():
        lines.append(f"{name}: rank correlation of Q with the true return")
        for measure in ("spearman", "kendall"):
            figures = found[measure]
            lines.append(f"  {measure:28}{_figure(figures['mean'], figures['ci95'])}")
            lines += [
                f"    {task:26}{_figure(entry['value'], entry['ci95'])}"
                for task, entry in figures["tasks"].items()
                if measure == "spearman"
            ]
        inside = found["within_state"]
        lines.append(
            f"  {'between candidates of a state':28} {_figure(inside['mean'], inside['ci95'])} "
            f"({inside['states']} states)"
        )
    lines.append(f"{'choice':30}{'success %':>10}{'regret, points':>24}{'regret, return':>24}")
    for name, kinds in result["regret"].items():
        success, returns = kinds["success"], kinds["return"]
        points = _figure(100 * success["mean"], [100 * bound for bound in success["ci95"]], 1)
        lost = _figure(returns["mean"], returns["ci95"])
        lines.append(f"{name:30}{100 * success['value']:>10.1f}{points:>24}{lost:>24}")
    for name, kinds in result["paired"].items():
        found = kinds["success"]
        interval = _figure(100 * found["delta"], [100 * bound for bound in found["ci95"]], 1, sign="+")
        lines.append(
            f"{name.replace('_vs_', ' -> ')}: {interval} points of success, "
            f"better in {found['better']}, worse in {found['worse']} of {found['n']} states"
        )
    return "\n".join(lines)


def _figure(value: float | None, interval: list[float] | None, digits: int = 2, sign: str = "") -> str:
    if value is None or interval is None:
        return "undefined"
    low, high = (f"{bound:{sign}.{digits}f}" for bound in interval)
    return f"{value:{sign}.{digits}f} ({low} to {high})"
