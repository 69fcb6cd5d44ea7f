"""`valueguide bench transport`: the link against raw ZeroMQ, and the gain of batching across robots."""

from __future__ import annotations

import argparse
from typing import Any

from valueguide.cli.common import shipped

#: Robots that share a pass.
_SIZES = (1, 4, 16)


def run(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Round trips, and batches through the shipped models of states and, unless skipped, of pictures."""
    import torch

    from valueguide.bench import transport
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.policies.load import load_policy

    torch.set_num_threads(1)
    out: dict[str, Any] = {"round_trip": transport.round_trip(repeats=30 * args.repeats)}
    for suite in ("wxai-state", "wxai")[: 1 if args.skip_real_size else 2]:
        policy = load_policy(shipped(suite, "policy"), device)
        critic = LearnedCritic.load(shipped(suite, "critic"), device)
        out[f"batching_{suite}"] = transport.batching(policy, critic, 16, _SIZES, args.repeats)
    return out
