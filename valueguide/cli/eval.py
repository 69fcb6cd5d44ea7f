"""`valueguide eval`: arms on the same initial states, with intervals, a results file and a report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from valueguide.cli.collect import suite_tasks
from valueguide.cli.common import progress_bar, shipped
from valueguide.cli.device import add_device_argument, usable_device
from valueguide.cli.suites import resolve_suite
from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.arms import ARMS, ArmFactory, ArmSettings, split_arm
from valueguide.evaluation.results import build_results, format_table
from valueguide.evaluation.runner import Plan, run_plan

EXAMPLES = """examples:
  # the shipped policy and critic, all arms, 50 episodes of each task
  valueguide eval --suite wxai --episodes 50 --seed 10000 --json r.json

  # held-out wordings, two arms, a K sweep
  valueguide eval --suite wxai --wording held_out --arms base,guided --k-sweep 1,2,4,8,16 --episodes 20

  # another policy under the same critic
  valueguide eval --suite wxai --policy outputs/other --arms base,guided --episodes 20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="wxai", help="wxai, wxai-state or a LeRobot environment type")
    parser.add_argument(
        "--policy", default="", help="LeRobot policy folder or hub id (default: the shipped one)"
    )
    parser.add_argument("--critic", default="", help="critic folder (default: the shipped one)")
    parser.add_argument(
        "--arms", default=",".join(ARMS), help="comma-separated; guided@8 is guided with K = 8"
    )
    parser.add_argument("--tasks", default="", help="comma-separated; default: all")
    parser.add_argument("--k", type=int, default=16, help="candidates per decision")
    parser.add_argument("--beta", type=float, default=0.0, help="softmax temperature; 0 takes the best")
    parser.add_argument("--aggregate", default="min", help="over ensemble members: min, mean or lcb")
    parser.add_argument("--execute", type=int, default=4, help="steps run of each chunk")
    parser.add_argument("--episodes", type=int, default=50, help="per task and arm")
    parser.add_argument("--seed", type=int, default=10000, help="episode j starts from seed + j")
    parser.add_argument("--wording", default="train", choices=("train", "held_out"))
    parser.add_argument("--visuals", default="train", choices=("train", "held_out", "none"))
    parser.add_argument("--k-sweep", default="", help="comma-separated K values for the guided arm")
    parser.add_argument("--videos", type=int, default=6, help="side-by-side videos in the report; 0 for none")
    parser.add_argument("--workers", type=int, default=2)
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, help="folder; an interrupted evaluation continues in it")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run, print the table, write results.json and report.html; returns the results."""
    suite = resolve_suite(args.suite)
    plan = make_plan(args, suite)
    arms = ArmFactory(suite, plan.settings, plan.arms)
    for arm in plan.arms:  # what does not fit fails here, before anything is written
        arms.build(arm)
    out = args.out or Path("outputs") / f"eval-{args.suite}-{time.strftime('%Y%m%d-%H%M%S')}"
    return evaluate(plan, suite, out, args.workers, args.videos)


def make_plan(args: argparse.Namespace, suite: Any) -> Plan:
    """The evaluation that the arguments describe. Raises ConfigError for anything out of range."""
    for name, least in (
        ("k", 1),
        ("execute", 1),
        ("episodes", 1),
        ("workers", 1),
        ("seed", 0),
        ("videos", 0),
    ):
        if getattr(args, name) < least:
            raise ConfigError(mismatch(f"--{name}", "value", f"{least} or more", getattr(args, name)))
    arms = [a.strip() for a in args.arms.split(",") if a.strip()]
    arms += _sweep_arms(args.k_sweep, arms, args.k)
    for arm in arms:
        split_arm(arm)
    settings = ArmSettings(
        policy=args.policy or shipped(args.suite, "policy"),
        critic=args.critic or shipped(args.suite, "critic"),
        k=args.k,
        beta=args.beta,
        execute=args.execute,
        aggregate=args.aggregate,
        device=usable_device(args.device),
    )
    return Plan(
        suite=args.suite,
        tasks=suite_tasks(suite, args.tasks),
        arms=tuple(dict.fromkeys(arms)),
        episodes=args.episodes,
        seed=args.seed,
        settings=settings,
        wording=args.wording,
        visuals=args.visuals,
    )


def _sweep_arms(text: str, arms: list[str], k: int) -> list[str]:
    """The arms that a sweep needs beside `arms`: K = 1 is the policy alone, and `guided` has K = k."""
    served = {"1": "base", str(k): "guided"}
    numbers = [number.strip() for number in text.split(",") if number.strip()]
    return [f"guided@{number}" for number in numbers if served.get(number) not in arms]


def evaluate(plan: Plan, suite: Any, out: Path, workers: int, videos: int) -> dict[str, Any]:
    """Run a plan and write everything a person wants to see of it into `out`."""
    import json

    from valueguide.cli.eval_videos import make_videos
    from valueguide.evaluation.report import write_report

    wins = {arm: [0, 0] for arm in plan.arms}
    with progress_bar(len(plan.jobs()), "episodes") as bar:

        def count(row: dict[str, Any]) -> None:
            wins[row["arm"]][0] += bool(row["success"])
            wins[row["arm"]][1] += 1
            bar.note(" ".join(f"{arm} {100 * w / max(n, 1):.0f}%" for arm, (w, n) in wins.items()))
            bar.update(1)

        rows = run_plan(plan, resolve_suite, out, workers, count)
    command = " ".join(["valueguide", *sys.argv[1:]])
    settings = plan.to_json()
    flat = {**settings, **settings["settings"], "device": plan.settings.device, "command": command}
    results = build_results({k: v for k, v in flat.items() if k != "settings"}, rows)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(format_table(results))
    write_report(out / "report.html", results, make_videos(plan, suite, rows, videos))
    print(f"report: {out / 'report.html'}")
    return results
