"""`valueguide collect`: demonstrations or policy rollouts of a suite, recorded as a LeRobotDataset v3."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from valueguide.cli.device import add_device_argument, usable_device
from valueguide.cli.operators import add_operator_arguments, check_operator, make_operator
from valueguide.errors import ConfigError, mismatch
from valueguide.types import Episode

EXAMPLES = """examples:
  # 250 flawed demonstrations of each of the nine tasks, from images
  valueguide collect --suite wxai --episodes 250 --skill 0.4 --out outputs/demos

  # objects that are let go on the way, and nothing else
  valueguide collect --suite wxai --tasks stack_cubes --flaw release --out outputs/drops

  # rollouts of a policy on a third-party suite
  valueguide collect --suite metaworld --tasks push-v3 --policy outputs/policy --out outputs/push

  # rollouts in which a scripted operator takes over, at most twice an episode, and hands back
  valueguide collect --suite wxai-state --policy outputs/policy --operator scripted --takeovers 2 --out out/h
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="wxai", help="wxai, wxai-state or a LeRobot environment type")
    parser.add_argument("--tasks", default="", help="comma-separated task names; default: all of the suite")
    parser.add_argument("--episodes", type=int, default=20, help="episodes per task")
    parser.add_argument(
        "--skill", type=float, default=0.6, help="scripted expert: 1 flawless ... 0 nearly always flawed"
    )
    parser.add_argument("--flaw", default="", help="the one flaw that every demonstration has: grasp, place, "
                        "height, yaw, release, object, detour, pause or short")  # fmt: skip
    parser.add_argument(
        "--policy", default="", help="roll out this LeRobot policy instead of the scripted expert"
    )
    parser.add_argument("--critic", default="", help="guide the policy with this critic")
    parser.add_argument("--k", type=int, default=1, help="candidates per decision when rolling out a policy")
    parser.add_argument("--execute", type=int, default=4, help="steps executed of each chunk")
    add_operator_arguments(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="the first episode's seed; episode j uses seed + j"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate in parallel")
    add_device_argument(parser)
    parser.add_argument(
        "--image-format", default="png", choices=("png", "jpeg"), help="how frames are stored"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="dataset folder; an existing one is continued"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Record every (task, seed) that the dataset does not hold yet; returns counts per task."""
    from valueguide.cli.common import progress_bar
    from valueguide.cli.suites import dataset_spec, resolve_suite
    from valueguide.data.reader import EpisodeDataset
    from valueguide.data.writer import EpisodeWriter

    if args.episodes < 1:
        raise ConfigError(f"--episodes: expected at least 1, found {args.episodes}")
    if not 0.0 <= args.skill <= 1.0:
        raise ConfigError(f"--skill: expected 0 to 1, found {args.skill}")
    # The scripted expert needs no torch, so its device is not looked for.
    settings = vars(args) | {"device": usable_device(args.device) if args.policy else "cpu"}
    suite = resolve_suite(args.suite)
    tasks = suite_tasks(suite, args.tasks)
    _check_flaw(args.flaw, tasks, args.policy)
    check_operator(args.operator, args.takeovers, args.policy, suite)
    k, members = args.k if args.policy else 0, _members(args.critic)
    spec = dataset_spec(suite, image_format=args.image_format, k=k, members=members)
    jobs = [(task, args.seed + j) for task in tasks for j in range(args.episodes)]
    if (args.out / "meta" / "info.json").exists():
        known = EpisodeDataset.open(args.out).metadata
        done = {(m.get("task_name"), m.get("seed")) for m in known}
        jobs = [job for job in jobs if job not in done]
    successes: Counter[str] = Counter()
    by_human = Counter({"takeovers": 0, "human_steps": 0})
    frames = 0
    with EpisodeWriter(args.out, spec) as writer, progress_bar(len(jobs), "episodes") as bar:
        for episode in _episodes(settings, jobs):
            writer.save(episode)
            successes[episode.metadata["task_name"]] += episode.success
            frames += len(episode.steps)
            by_human.update({name: episode.metadata.get(name, 0) for name in by_human})
            bar.update(1)
    result = {
        "dataset": str(args.out),
        "recorded": len(jobs),
        "frames": frames,
        "successes": {task: successes[task] for task in tasks},
    }
    return {**result, **by_human} if args.operator else result


def _members(critic: str) -> int:
    """How many scores each candidate gets. Raises CheckpointError for a critic that cannot be read."""
    if not critic:
        return 1
    from valueguide.critics.checkpoint import LoadedCritic

    return LoadedCritic(Path(critic)).network_config.members


def suite_tasks(suite: Any, chosen: str) -> tuple[str, ...]:
    """The tasks named in a comma-separated list (all when empty). Raises ConfigError for unknown ones."""
    if not chosen:
        return tuple(suite.tasks)
    names = tuple(name.strip() for name in chosen.split(",") if name.strip())
    for name in names:
        if name not in suite.tasks:
            raise ConfigError(f"--tasks: expected names from {', '.join(suite.tasks)}, found {name!r}")
    return names


def _check_flaw(flaw: str, tasks: tuple[str, ...], policy: str) -> None:
    """Raises ConfigError for a flaw that does not exist, or that a task or a policy cannot have."""
    if not flaw:
        return
    from sim.experts import KINDS
    from sim.tasks import TASKS

    if policy:
        raise ConfigError(
            f"--flaw: expected no --policy, for only the scripted expert has flaws, found {policy}"
        )
    if flaw not in KINDS:
        raise ConfigError(mismatch("--flaw", "value", f"one of {', '.join(KINDS)}", repr(flaw)))
    able = [name for name, task in TASKS.items() if KINDS[flaw](task)]
    if not set(tasks) <= set(able):
        raise ConfigError(mismatch(f"--flaw {flaw}", "--tasks", f"some of {','.join(able)}", ",".join(tasks)))


def _episodes(settings: dict[str, Any], jobs: list[tuple[str, int]]) -> Iterator[Episode]:
    """Simulate in worker processes; episodes arrive in the order of `jobs`, so datasets are reproducible."""
    from valueguide.evaluation.workers import run_jobs

    start = partial(_start_worker, settings)
    early: dict[tuple[str, int], Episode] = {}
    remaining = iter(jobs)
    wanted = next(remaining, None)
    for job, episode in run_jobs(start, jobs, settings["workers"], lambda job: f"{job[0]}, seed {job[1]}"):
        early[job] = episode
        while wanted in early:
            yield early.pop(wanted)
            wanted = next(remaining, None)


def _start_worker(settings: dict[str, Any]) -> Callable[[tuple[str, int]], tuple[tuple[str, int], Episode]]:
    """Each worker keeps one environment per task and, for rollouts, its own copy of the models."""
    from valueguide.cli.suites import resolve_suite

    worker: dict[str, Any] = {
        "settings": settings,
        "suite": resolve_suite(settings["suite"]),
        "environments": {},
    }
    if settings["policy"]:
        import torch

        from valueguide.evaluation.arms import ArmFactory, ArmSettings

        torch.set_num_threads(1)
        arm = "guided" if settings["critic"] else "base"
        models = ArmSettings(
            settings["policy"],
            settings["critic"],
            k=settings["k"],
            execute=settings["execute"],
            device=settings["device"],
        )
        worker["steerer"] = ArmFactory(worker["suite"], models, (arm,)).build(arm)
        worker["operator"] = make_operator(settings["operator"], settings["takeovers"])
    return partial(_simulate, worker)


def _simulate(worker: dict[str, Any], job: tuple[str, int]) -> tuple[tuple[str, int], Episode]:
    """The job and its episode."""
    task, seed = job
    suite, settings = worker["suite"], worker["settings"]
    if task not in worker["environments"]:
        worker["environments"][task] = suite.make(task)
    env = worker["environments"][task]
    if settings["policy"]:
        from valueguide.evaluation.rollout import rollout

        episode = rollout(
            env,
            worker["steerer"],
            seed,
            suite.max_steps,
            sampling_seed=seed,
            record_images=True,
            operator=worker["operator"],
        )
        episode.metadata.update(task_name=task, seed=seed)
        return job, episode
    from sim.env import TabletopEnv

    if not isinstance(env, TabletopEnv):
        raise ConfigError(
            f"--policy: expected a policy, since {suite.name} has no scripted expert; found none"
        )
    from sim.demonstrations import demonstrate

    return job, demonstrate(env, seed, settings["skill"], settings["flaw"])
