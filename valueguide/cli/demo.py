"""`valueguide demo`: the main job in a few minutes, on shipped checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from valueguide.cli.common import shipped
from valueguide.cli.eval import evaluate
from valueguide.cli.suites import resolve_suite
from valueguide.evaluation.arms import ArmSettings
from valueguide.evaluation.runner import Plan

EXAMPLES = """examples:
  valueguide demo
  valueguide demo --suite wxai-state --episodes 20     # no rendering: faster
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="wxai", choices=("wxai", "wxai-state"))
    parser.add_argument("--episodes", type=int, default=8, help="per task and arm")
    parser.add_argument("--k", type=int, default=16, help="candidates per decision")
    parser.add_argument("--seed", type=int, default=7000, help="not the seeds of the published evaluation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="continued if it exists")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Base and guided from the same initial states; table, report, next steps."""
    suite = resolve_suite(args.suite)
    plan = Plan(
        suite=args.suite,
        tasks=suite.tasks,
        arms=("base", "guided"),
        episodes=args.episodes,
        seed=args.seed,
        settings=ArmSettings(shipped(args.suite, "policy"), shipped(args.suite, "critic"), k=args.k),
    )
    print(
        f"A frozen policy on {len(suite.tasks)} tasks: alone, then choosing among {args.k} of its proposals."
    )
    results = evaluate(plan, suite, args.out / args.suite, args.workers, videos=4)
    print(
        "\nNext:\n"
        f"  open {args.out / args.suite / 'report.html'}\n"
        "  valueguide eval --suite wxai --episodes 50 --seed 10000    all arms and controls, with intervals\n"
        "  valueguide eval --suite wxai --wording held_out            sentences it never saw\n"
        "  valueguide train critic --help                             a critic from your own episodes"
    )
    return results
