"""`valueguide bench NAME`: measurements with their baselines, also as JSON."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from valueguide.cli import (
    bench_fuzz,
    bench_help,
    bench_learner,
    bench_link,
    bench_progress,
    bench_ranking,
    bench_soak,
    bench_transport,
)
from valueguide.cli.common import ending_on_sigterm, shipped
from valueguide.cli.device import add_device_argument, usable_device

EXAMPLES = """examples:
  valueguide bench steering --json -
  valueguide bench critic --seconds 30 --json critic.json
  valueguide bench learner --json learner.json        # the online critic learner against a plain loop
  valueguide bench transport --json transport.json    # against gRPC, WebSocket, raw ZeroMQ; many robots
  valueguide bench transport --quick --repeats 1 --json -
  valueguide bench link --episodes 15 --json link.json   # guided episodes over a slow link, server killed
  valueguide bench soak --minutes 30 --robots 2 --json soak.json   # memory and p99 over half an hour
  valueguide bench ros --json ros.json                # stages of a decision, gate, executor, images
  valueguide bench ros --success 10 --json ros.json   # and does the graph succeed as often as eval does?
  valueguide bench ranking --states 90 --k 8 --critic a --critic b   # critics against true rollouts
  valueguide bench fuzz --messages 1000000 --json fuzz.json   # damaged messages to what reads a network
  valueguide bench help --per-task 10 --k 8 --out help               # when to ask the operator
  valueguide bench progress --json progress.json                     # a request an episode or a frame
"""

_SUCCESS_TASKS = ("close_drawer", "pick_can", "press_button")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        choices=(
            "steering",
            "critic",
            "learner",
            "ros",
            "ranking",
            "help",
            "transport",
            "link",
            "soak",
            "fuzz",
            "progress",
        ),
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each small measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each learner measurement")
    parser.add_argument("--skip-real-size", action="store_true", help="without the large models")
    parser.add_argument(
        "--episodes",
        type=int,
        default=6,
        help="ros: episodes whose decisions are timed; link: episodes of each task",
    )
    parser.add_argument(
        "--success",
        type=int,
        default=0,
        help="ros: episodes of each of three tasks, graph against in-process",
    )
    parser.add_argument("--seed", type=int, default=40000, help="ros, ranking: of the first initial state")
    parser.add_argument("--suite", default="wxai-state", help="ranking, ros --success: suite and checkpoints")
    add_device_argument(parser)
    bench_ranking.add_arguments(parser)
    bench_help.add_arguments(parser)
    bench_learner.add_arguments(parser)
    bench_fuzz.add_arguments(parser)
    bench_progress.add_arguments(parser)
    bench_transport.add_arguments(parser)
    bench_link.add_arguments(parser)
    bench_soak.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print one line per figure."""
    with ending_on_sigterm():
        return _measure(args)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.name == "ranking":
        return bench_ranking.run(args)
    if args.name == "fuzz":
        return bench_fuzz.run(args)
    if args.name == "help":
        return bench_help.run(args)
    if args.name == "link":
        return bench_link.run(args)
    if args.name == "soak":
        return bench_soak.run(args)
    device = usable_device(args.device)
    if args.name == "ros":
        measured = _ros(args)
    elif args.name == "learner":
        measured = bench_learner.run(args, device)
    elif args.name == "transport":
        measured = bench_transport.run(args, device)
    elif args.name == "progress":
        measured = bench_progress.run(args, device)
    else:
        measured = _steering(args, device) if args.name == "steering" else _critic(args, device)
    result = {"device": device, **measured}
    for line in _lines(result):
        print(line)
    return result


def _steering(args: argparse.Namespace, device: str) -> dict[str, Any]:
    from valueguide.bench import steering
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.policies.load import load_policy

    out: dict[str, Any] = {"encode_once_vs_repeated": steering.encode_once(min(args.repeats, 3), device)}
    base = load_policy(shipped("wxai", "policy"), device)
    critic = LearnedCritic.load(shipped("wxai", "critic"), device)
    observation = steering.random_observation(base)
    out["base_policy"] = steering.candidates_of(base, observation, (1, 4, 16), args.repeats)
    out["base_policy_critic"] = steering.critic_share(base, critic, observation, 16, args.repeats)
    if args.skip_real_size:
        return out
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        smolvla = steering.real_size_smolvla(Path(folder), device)
        big = steering.random_observation(smolvla)
        out["smolvla_real_size"] = steering.candidates_of(smolvla, big, (1, 4), min(args.repeats, 3))
        policy_s = out["smolvla_real_size"]["seconds"]["k=4"]
    full = out["encode_once_vs_repeated"]["seconds"]["once"]
    out["smolvla_real_size"]["full_size_critic_share"] = full / (full + policy_s)
    return out


def _critic(args: argparse.Namespace, device: str) -> dict[str, Any]:
    from valueguide.bench import critic

    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        dataset = critic.random_dataset(Path(folder) / "noise")
        for frames in ("cached", "decoded"):
            out[f"small_film_cnn_{frames}"] = critic.learner_speed(
                dataset, "small_film_cnn", frames, 64, args.seconds, device
            )
        out["resnet34_film_cached"] = critic.learner_speed(
            dataset, "resnet34_film", "cached", 8, args.seconds, device
        )
        out["bytes_per_frame"] = critic.image_bytes(dataset)
    return out


def _ros(args: argparse.Namespace) -> dict[str, Any]:
    from valueguide.bench import ros

    out: dict[str, Any] = {
        "gate": ros.gate_reaction(),
        "executor_100hz": ros.executor_beat(args.seconds),
        "images": ros.images(),
        "decisions": ros.decisions(args.episodes),
    }
    if args.success:
        out["success"] = _ros_success(args)
    return out


def _ros_success(args: argparse.Namespace) -> dict[str, Any]:
    """Base and guided through the whole graph, against the same initial states in one process."""
    from valueguide.bench import ros
    from valueguide.cli.suites import resolve_suite
    from valueguide.evaluation.arms import ArmFactory, ArmSettings
    from valueguide.evaluation.rollout import rollout
    from valueguide.evaluation.statistics import paired_difference, wilson

    suite = resolve_suite(args.suite)
    settings = ArmSettings(shipped(args.suite, "policy"), shipped(args.suite, "critic"))
    factory = ArmFactory(suite, settings, ("base", "guided"))
    out: dict[str, Any] = {"tasks": list(_SUCCESS_TASKS), "episodes": args.success, "seed": args.seed}
    for arm in ("base", "guided"):
        alone: dict[tuple[str, int], bool] = {}
        for task in _SUCCESS_TASKS:
            environment = suite.make(task)
            for seed in range(args.seed, args.seed + args.success):
                steerer = factory.build(arm)
                episode = rollout(environment, steerer, seed, suite.max_steps, sampling_seed=seed)
                alone[task, seed] = episode.success
            environment.close()
        ran = ros.success(_SUCCESS_TASKS, args.success, args.seed, arm, args.suite, suite.max_steps)
        graph = dict(zip(alone, ran, strict=True))
        out[arm] = {
            "in_process": sum(alone.values()),
            "graph": sum(ran),
            "n": len(ran),
            "graph_wilson95": wilson(sum(ran), len(ran)),
            "paired": paired_difference(alone, graph),
        }
    return out


def _lines(result: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            lines += _lines(value, f"{name}.")
        else:
            lines.append(f"{name:55} {value:.4g}" if isinstance(value, float) else f"{name:55} {value}")
    return lines
