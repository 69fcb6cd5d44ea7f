"""What the fake policy servers do as processes: arguments, the real policy behind them, and serving."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Protocol

from valueguide.interfaces import Policy


class PolicyServer(Protocol):
    """port: where it listens."""

    port: int

    def serve_forever(self) -> None: ...


def serve_policy(description: str | None, start: Callable[[Policy, int], PolicyServer]) -> None:
    """Serve the policy that the command line names. start: (policy, port or 0) -> a server that listens."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("policy", help="LeRobot policy folder of the suite wxai-state")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds that each answer takes longer")
    args = parser.parse_args()
    server = start(_policy(args.policy, args.delay_s), args.port)
    print(f"listening on {server.port}", flush=True)
    server.serve_forever()


def _policy(folder: str, delay_s: float) -> Policy:
    from valueguide.policies.load import load_policy

    policy = load_policy(folder)
    if delay_s:
        sample = policy.sample

        def slow(k: int, seed: int) -> Any:
            time.sleep(delay_s)
            return sample(k, seed)

        policy.sample = slow  # type: ignore[method-assign]
    return policy
