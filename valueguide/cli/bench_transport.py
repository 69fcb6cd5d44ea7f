"""`valueguide bench transport`: the link against other transports, several robots, the gain of batching."""

from __future__ import annotations

import argparse
from typing import Any

from valueguide.cli.common import shipped

#: Robots at once, and robots that share a pass.
_SIZES = (1, 4, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="transport: 1 and 3 robots for half a second, no real models"
    )


def run(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Round trips, robots at once, then batches through the shipped models of states and, unless skipped,
    of pictures."""
    import torch

    from valueguide.bench import transport

    torch.set_num_threads(1)
    sizes, seconds = ((1, 3), 0.5) if args.quick else (_SIZES, 5.0)
    out: dict[str, Any] = {"round_trip": transport.round_trip(repeats=30 * args.repeats)}
    out["throughput"] = {f"robots={n}": transport.throughput(n, seconds) for n in sizes}
    out["batching_paced"] = {f"robots={n}": transport.batching_gain(n, seconds) for n in sizes[1:]}
    for suite in () if args.quick else ("wxai-state", "wxai")[: 1 if args.skip_real_size else 2]:
        out[f"batching_{suite}"] = _real_models(suite, device, args.repeats)
    return out


def _real_models(suite: str, device: str, repeats: int) -> dict[str, Any]:
    from valueguide.bench import transport
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.policies.load import load_policy

    policy = load_policy(shipped(suite, "policy"), device)
    critic = LearnedCritic.load(shipped(suite, "critic"), device)
    return transport.batching(policy, critic, 16, _SIZES, repeats)
