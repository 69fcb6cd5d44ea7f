"""`valueguide learner`: a critic learns from episodes while they are recorded, in a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueguide.cli.common import shipped
from valueguide.cli.td_options import add_shares_argument, add_td_arguments, parse_shares
from valueguide.errors import ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.online.service import LearnerService
    from valueguide.online.service_settings import ServiceSettings

EXAMPLES = """examples:
  # beside a robot that records into runs/day1/dataset; Ctrl-C saves and ends, the same line goes on
  valueguide learner --dataset runs/day1/dataset --offline outputs/demos --policy outputs/policy \\
    --critic outputs/critic --out runs/learner

  # take in all there is, take the gradient steps that are due, publish, end
  valueguide learner --once --dataset runs/day1/dataset --policy outputs/policy --critic outputs/critic \\
    --out runs/learner

  # a version that passed its check serves by itself after 20 more episodes, if it passes again
  valueguide learner --promote after:20 --dataset runs/day1/dataset --out runs/learner

  valueguide learner --status --out runs/learner
  valueguide critics list runs/learner/versions
"""
#: Seconds between looks for work when there was none.
_IDLE_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from valueguide.cli.device import add_device_argument

    parser.add_argument("--out", type=Path, required=True, help="a learner in this folder is resumed")
    parser.add_argument("--status", action="store_true", help="print what the learner in --out does, and end")
    parser.add_argument("--once", action="store_true", help="work off what there is, publish, and end")
    parser.add_argument(
        "--dataset", action="append", default=[], help="recorded into meanwhile; repeat for several"
    )
    parser.add_argument("--offline", action="append", default=[], help="dataset that is imported once")
    parser.add_argument("--policy", default=shipped("wxai-state", "policy"), help="the policy that works now")
    parser.add_argument("--critic", default=shipped("wxai-state", "critic"), help="where learning starts")
    parser.add_argument(
        "--updates-per-step", type=float, default=0.5, help="gradient steps for each recorded control step"
    )
    parser.add_argument("--min-steps", type=int, default=500, help="recorded control steps before the first")
    parser.add_argument("--max-steps", type=int, default=0, help="gradient steps in all; 0: no end")
    parser.add_argument("--save-every", type=int, default=250, help="gradient steps")
    parser.add_argument("--publish-every", type=int, default=500, help="gradient steps")
    parser.add_argument(
        "--hold-out", type=int, default=5, help="every so manieth episode only checks critics"
    )
    parser.add_argument(
        "--promote",
        default="manual",
        metavar="manual|after:N",
        help="after:N: once it was in shadow for N episodes, a version that passes again serves",
    )
    parser.add_argument("--probe-from", default="", help="rollouts not trained on; default: held-out ones")
    parser.add_argument("--probe-episodes", type=int, default=10, help="held-out episodes in the probe")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="of the checks, as for `critics`"
    )
    parser.add_argument("--keep", type=int, default=10, help="so many of the newest versions stay")
    parser.add_argument("--max-gb", type=float, default=0.0, help="bound on the replay; 0: none")
    parser.add_argument("--batch-size", type=int, default=256)
    add_td_arguments(parser)
    parser.add_argument("--gamma", type=float, default=None, help="default: that of the critic")
    add_shares_argument(parser, "--shares")
    parser.add_argument("--half-life", type=float, default=0.0, help="in rollouts' segments; 0: all alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parent", type=int, default=0, metavar="PID", help="save and end when this parent process is gone"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; the policy has as many")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Works until it is told to stop (or, with --once, is done); returns the last status."""
    from valueguide.online.service_files import read_status

    if args.status:
        status = read_status(args.out)
        print("\n".join(_lines(status)))
        return status
    import torch

    from valueguide.online.service import LearnerService

    settings = _settings(args)
    torch.set_num_threads(args.threads)
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        with LearnerService(settings) as service:
            _drive(service, args.once, args.parent, stop)
        return service.status()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drive(service: LearnerService, once: bool, parent: int, stop: threading.Event) -> None:
    print(f"learns in {service.settings.root} from step {service.learner.trainer.step} on", file=sys.stderr)
    said = ""
    while not stop.is_set() and parent in (0, os.getppid()):
        done = service.work()
        status = service.status()
        line = _line(status)
        if status["problem"] != said:
            said = status["problem"]
            print(f"problem: {said}" if said else "the problem is over", file=sys.stderr, flush=True)
        if once and not done:
            service.finish()
            print(_line(service.status()), file=sys.stderr)
            return
        if done and sys.stderr.isatty():
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
        if not done:
            stop.wait(_IDLE_S)


def _line(status: dict[str, Any]) -> str:
    episodes = status["episodes"]
    loss = status["metrics"].get("td_loss")
    text = (
        f"step {status['gradient_step']} of {status['steps_due']} due, {status['steps']} control steps of "
        f"{episodes['learned_from']} episodes, {episodes['held_out']} held out, "
        f"serving {status['serving']}, shadow {status['shadow']}, newest {status['newest']}"
    )
    return text if loss is None else f"{text}, td loss {loss:.3g}"


def _lines(status: dict[str, Any]) -> list[str]:
    lines = [f"{'running' if status['running'] else 'not running'}, {status['doing']}; {_line(status)}"]
    lines += [f"{name}: {status[name]}" for name in ("check", "problem") if status[name]]
    return lines + [f"left out: {line}" for line in status["damaged"]]


def _settings(args: argparse.Namespace) -> ServiceSettings:
    from valueguide.cli.critics import limits_of
    from valueguide.cli.device import usable_device
    from valueguide.online.learner import LearnerSettings
    from valueguide.online.service_settings import ServiceSettings

    if args.threads < 1:
        raise ConfigError(mismatch("--threads", "value", "1 or more", args.threads))
    return ServiceSettings(
        out=str(args.out),
        policy=args.policy,
        critic=args.critic,
        datasets=tuple(args.dataset),
        offline=tuple(args.offline),
        updates_per_step=args.updates_per_step,
        min_steps=args.min_steps,
        max_steps=args.max_steps,
        save_every=args.save_every,
        publish_every=args.publish_every,
        hold_out=args.hold_out,
        promote_after=_promote_after(args.promote),
        probe_from=args.probe_from,
        probe_episodes=args.probe_episodes,
        limits=limits_of(args),
        keep=args.keep,
        max_bytes=int(args.max_gb * 1e9),
        gamma=args.gamma,
        critic_rate=args.critic_rate,
        backup=args.backup,
        learning=LearnerSettings(
            batch_size=args.batch_size,
            proposals=args.proposals,
            ratios=parse_shares("--shares", args.shares),
            takeover=args.takeover,
            half_life=args.half_life,
            seed=args.seed,
        ),
        device=usable_device(args.device),
    )


def _promote_after(text: str) -> int | None:
    """ "manual" -> None, "after:20" -> 20. Raises ConfigError."""
    word, _, number = text.partition(":")
    if text == "manual":
        return None
    if word != "after" or not number.isdigit():
        raise ConfigError(mismatch("--promote", "value", "manual or after:N", repr(text)))
    return int(number)
