"""`valueguide train online`: policy and critic learn from their own episodes, an operator beside them."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from valueguide.cli.common import shipped
from valueguide.cli.td_options import add_shares_argument, add_td_arguments, parse_shares
from valueguide.errors import ConfigError

#: Seeds of the collections of two runs with different --seed do not overlap.
_COLLECT_FROM, _COLLECT_APART = 100_000, 1_000


def add_online_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train online`."""
    parser.add_argument(
        "--suite", default="wxai-state", help="wxai-state: the scripted operator sees its state"
    )
    parser.add_argument("--tasks", default="", help="comma-separated task names; default: all of the suite")
    parser.add_argument(
        "--method",
        default="aloe",
        choices=("aloe", "dagger", "awr", "none"),
        help="aloe: chunked TD, re-ranking, weighted improvement; dagger: imitation of corrections; "
        "awr: Monte-Carlo value and advantage-weighted regression; none: collect and evaluate only",
    )
    parser.add_argument("--policy", default="", help="where to start; default: the suite's shipped policy")
    parser.add_argument("--critic", default="", help="where to start; default: the suite's shipped critic")
    parser.add_argument("--dataset", action="append", default=[], help="offline episodes; repeat for several")
    parser.add_argument("--offline-episodes", type=int, default=60, help="of each task, from --dataset")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=20, help="collected of each task in an iteration")
    parser.add_argument("--evaluations", type=int, default=20, help="of each task between iterations")
    parser.add_argument("--final", type=int, default=50, help="evaluated of each task at the end")
    parser.add_argument("--eval-seed", type=int, default=30_000, help="first seed between iterations")
    parser.add_argument("--final-seed", type=int, default=40_000, help="first seed at the end")
    parser.add_argument("--takeovers", type=int, default=2, help="the operator's budget in one episode")
    parser.add_argument("--k", type=int, default=16, help="candidates a decision of the guided policy")
    parser.add_argument("--critic-steps", type=int, default=1500, help="in an iteration")
    parser.add_argument("--policy-steps", type=int, default=1000, help="in an iteration")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the policy")
    add_td_arguments(parser)
    parser.add_argument(
        "--start",
        default="base",
        choices=("base", "previous"),
        help="what each iteration's policy starts from",
    )
    parser.add_argument(
        "--beta", type=float, default=1.0, help="of the weights, in deviations of the advantage"
    )
    parser.add_argument("--epsilon", type=float, default=2.0, help="bound of the weights' exponent")
    parser.add_argument(
        "--corrections", default="at_least_one", choices=("advantage", "at_least_one", "one"),
        help="weight of the operator's steps",
    )  # fmt: skip
    add_shares_argument(parser, "--critic-shares", "the critic learns from, ")
    add_shares_argument(parser, "--policy-shares", "the policy learns from, ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="an unfinished run in this folder is resumed")


def train_online(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is left of the run in --out; returns everything that it measured."""
    import torch

    from valueguide.cli.collect import suite_tasks
    from valueguide.cli.operators import check_operator
    from valueguide.cli.suites import resolve_suite
    from valueguide.online.advantage import WeightSettings
    from valueguide.online.loop import OnlineRun
    from valueguide.online.loop_settings import OnlineSettings

    torch.set_num_threads(1)
    suite = resolve_suite(args.suite)
    policy = args.policy or shipped(args.suite, "policy")
    check_operator("scripted", args.takeovers, policy, suite)
    if args.method in ("aloe", "dagger", "awr") and not args.dataset:
        raise ConfigError(f"--dataset: expected offline episodes for --method {args.method}, found none")
    settings = OnlineSettings(
        suite=args.suite,
        tasks=suite_tasks(suite, args.tasks),
        method=args.method,
        policy=policy,
        critic=args.critic or shipped(args.suite, "critic"),
        offline=tuple(args.dataset),
        offline_episodes=args.offline_episodes,
        iterations=args.iterations,
        episodes=args.episodes,
        evaluations=args.evaluations,
        final=args.final,
        collect_seed=_COLLECT_FROM + _COLLECT_APART * args.seed,
        eval_seed=args.eval_seed,
        final_seed=args.final_seed,
        k=args.k,
        critic_steps=args.critic_steps,
        policy_steps=args.policy_steps,
        learning_rate=args.learning_rate,
        backup=args.backup,
        start=args.start,
        seed=args.seed,
        proposals=args.proposals,
        critic_rate=args.critic_rate,
        takeover=args.takeover,
        critic_shares=parse_shares("--critic-shares", args.critic_shares),
        policy_shares=parse_shares("--policy-shares", args.policy_shares),
        weights=WeightSettings(args.beta, args.epsilon, args.corrections),
    )
    collector = partial(make_collector, args.takeovers)
    run = OnlineRun(settings, args.out, resolve_suite, collector, args.workers, _say)
    return run.run()


def make_collector(takeovers: int, suite: str, models: Any, arm: str) -> Any:
    """In a worker: a function of (task, seed), which returns both and the episode, the operator beside it."""
    from valueguide.cli.collect import _simulate
    from valueguide.cli.operators import make_operator
    from valueguide.cli.suites import resolve_suite
    from valueguide.evaluation.arms import ArmFactory

    resolved = resolve_suite(suite)
    worker = {
        "settings": {"policy": models.policy},
        "suite": resolved,
        "environments": {},
        "steerer": ArmFactory(resolved, models, (arm,)).build(arm),
        "operator": make_operator("scripted", takeovers),
    }
    return partial(_simulate, worker)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
