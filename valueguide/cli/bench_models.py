"""The one policy and critic of a benchmark that runs guided episodes, from the options that `bench` has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from valueguide.cli.common import shipped
from valueguide.cli.device import usable_device
from valueguide.errors import ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.evaluation.arms import ArmSettings


def guided_models(args: argparse.Namespace) -> ArmSettings:
    """By default the suite's shipped ones. Raises ConfigError for more than one --critic."""
    from valueguide.evaluation.arms import ArmSettings

    if len(args.critic) > 1:
        raise ConfigError(mismatch("--critic", "folders", "one", len(args.critic)))
    return ArmSettings(
        policy=args.policy or shipped(args.suite, "policy"),
        critic=args.critic[0] if args.critic else shipped(args.suite, "critic"),
        k=args.k,
        execute=args.execute,
        aggregate=args.aggregate,
        device=usable_device(args.device),
    )
