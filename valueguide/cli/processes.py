"""`torchrun -m valueguide.cli.main train critic --algo aloe …`: one critic by several processes."""

from __future__ import annotations

import argparse
import os
from typing import Any

from valueguide.errors import ConfigError, mismatch


def refuse_processes(args: argparse.Namespace) -> None:
    """Raises ConfigError where `torchrun` or `accelerate launch` started what is written for one process."""
    if "RANK" not in os.environ or (args.what == "critic" and args.algo == "aloe"):
        return
    from valueguide.critics.processes import started_together

    if started_together() > 1:
        expected = "one, or `train critic --algo aloe`"
        raise ConfigError(mismatch(f"train {args.what}", "processes", expected, started_together()))


def train_critic_together(args: argparse.Namespace) -> dict[str, Any] | None:
    """`train_critic` in the group that this process was started in. The result is the first process's."""
    from valueguide.cli.device import usable_device
    from valueguide.cli.train_critic import train_critic
    from valueguide.critics.processes import joined

    with joined(usable_device(args.device)) as processes:
        result = train_critic(args, processes)
    return result if processes.leads else None
