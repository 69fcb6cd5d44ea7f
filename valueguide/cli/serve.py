"""`valueguide serve`: policy and critic behind one socket, for robots whose computers have no torch."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueguide.cli.common import shipped
from valueguide.errors import ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.serving.engine import Engine, Models
    from valueguide.serving.keeper import Keeper
    from valueguide.serving.metrics import Metrics
    from valueguide.serving.server import Server
    from valueguide.transport.keys import ServerKeys

EXAMPLES = """examples:
  # this machine only: the shipped policy and critic of states
  valueguide serve

  # for other machines: with keys (see `valueguide keys`)
  valueguide serve --policy outputs/policy --critic outputs/critic \\
    --bind tcp://0.0.0.0:7447 --keys keys/server.key_secret --clients keys/clients

  # the critic that a learner publishes and a person promotes, swapped in while robots work
  valueguide serve --policy outputs/policy --critic runs/learner/versions

  curl http://127.0.0.1:7448/health
  curl http://127.0.0.1:7448/metrics
"""
_SWITCH_S = 0.0002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from valueguide.cli.device import add_device_argument

    parser.add_argument("--policy", default=shipped("wxai-state", "policy"), help="folder or Hub id")
    parser.add_argument(
        "--critic",
        default=shipped("wxai-state", "critic"),
        help="folder of a critic, or of versions to follow; none: the policy alone",
    )
    parser.add_argument("--bind", default="tcp://127.0.0.1:7447", help="beyond this machine only with --keys")
    parser.add_argument("--keys", type=Path, default=None, help="the server's secret key (NAME.key_secret)")
    parser.add_argument("--clients", type=Path, default=None, help="folder with the clients' public keys")
    parser.add_argument("--k", type=int, default=16, help="candidates in the warm-up; clients choose theirs")
    parser.add_argument("--max-batch", type=int, default=8, help="requests in one pass through the models")
    parser.add_argument(
        "--batch-wait-ms", type=float, default=0.0, help="idle models wait so long for others to join"
    )
    parser.add_argument("--max-sessions", type=int, default=64, help="robots at once")
    parser.add_argument("--status-port", type=int, default=7448, help="of /health and /metrics on 127.0.0.1")
    parser.add_argument("--watch-s", type=float, default=1.0, help="between looks for new models")
    parser.add_argument("--drain-s", type=float, default=10.0, help="bound on finishing what was begun")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: as torch chooses")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C, then finishes what was begun; SIGHUP looks for new models at once."""
    from valueguide.serving.keeper import KeeperThread
    from valueguide.serving.metrics import Metrics, StatusPage
    from valueguide.serving.server import Server, ServerSettings

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    settings = ServerSettings(
        endpoint=args.bind,
        keys=_keys(args),
        max_batch=_positive("--max-batch", args.max_batch),
        batch_wait_s=args.batch_wait_ms * 1e-3,
        max_sessions=_positive("--max-sessions", args.max_sessions),
        drain_s=args.drain_s,
    )
    # Models give the interpreter lock away thousands of times in a decision; at the default of 5 ms what
    # answers pings and takes requests would wait that long for it.
    sys.setswitchinterval(_SWITCH_S)
    metrics = Metrics()
    engine, keeper = _models(args, metrics)
    server = Server(engine, settings, metrics)
    page = StatusPage(args.status_port, metrics, lambda: server.health() | {"troubles": keeper.troubles})
    watch = KeeperThread(keeper.poll, args.watch_s)
    handlers = {signal.SIGTERM: server.stop, signal.SIGINT: server.stop, signal.SIGHUP: watch.look}
    before = {number: signal.signal(number, _ignoring(call)) for number, call in handlers.items()}
    print(
        f"serves policy {engine.models.policy.version} and critic {_version(engine.models)} at "
        f"{server.endpoint}; http://127.0.0.1:{page.port}/health",
        file=sys.stderr,
        flush=True,
    )
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        watch.close()
        page.close()
    return _summary(server, metrics)


def _models(args: argparse.Namespace, metrics: Metrics) -> tuple[Engine, Keeper]:
    """What the arguments name, loaded, run once, and watched from now on."""
    import torch

    from valueguide.cli.device import usable_device
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.policies.load import load_policy
    from valueguide.serving.engine import Engine, Models, warm_critic, warm_up
    from valueguide.serving.keeper import Keeper

    if args.threads:
        torch.set_num_threads(_positive("--threads", args.threads))
    device, k = usable_device(args.device), _positive("--k", args.k)

    def warm(model: str, models: Models) -> None:
        warm_critic(models, k) if model == "critic" else warm_up(models, k, args.max_batch)

    def told(model: str, outcome: str, _: str) -> None:
        metrics.swaps.labels(model, outcome).inc()
        metrics.models.info({"policy": engine.models.policy.version, "critic": _version(engine.models)})

    load_critic = partial(LearnedCritic.load, device=device)
    engine = Engine(Models(load_policy(args.policy, device)))
    critic = "" if args.critic == "none" else args.critic
    keeper = Keeper(engine, args.policy, critic, partial(load_policy, device=device), load_critic, warm, told)
    keeper.begin()
    warm_up(engine.models, k, args.max_batch)
    metrics.models.info({"policy": engine.models.policy.version, "critic": _version(engine.models)})
    return engine, keeper


def _version(models: Models) -> str:
    return models.critic.version if models.critic else "none"


def _keys(args: argparse.Namespace) -> ServerKeys | None:
    from valueguide.transport.keys import ServerKeys, check_endpoint

    if (args.keys is None) != (args.clients is None):
        given = "--keys" if args.keys else "--clients"
        raise ConfigError(mismatch("serve", "keys", "both --keys and --clients, or neither", f"only {given}"))
    keys = ServerKeys(args.keys, args.clients) if args.keys else None
    check_endpoint(args.bind, keys)  # before models are loaded
    return keys


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise ConfigError(mismatch(option, "value", "1 or more", value))
    return value


def _ignoring(call: Any) -> Any:
    return lambda *_: call()


def _summary(server: Server, metrics: Metrics) -> dict[str, Any]:
    """What was served, by outcome."""
    outcomes = {
        sample.labels["outcome"]: int(sample.value)
        for family in metrics.requests.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    return {"endpoint": server.endpoint, "outcomes": outcomes}
