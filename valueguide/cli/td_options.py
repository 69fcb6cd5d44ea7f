"""Options of chunked TD that `train online` and `learner` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from valueguide.errors import ConfigError, mismatch

if TYPE_CHECKING:
    from valueguide.online.segments import Store


def add_td_arguments(parser: argparse.ArgumentParser) -> None:
    """--critic-rate, --proposals, --backup and --takeover."""
    parser.add_argument("--critic-rate", type=float, default=3e-4, help="learning rate of the critic")
    parser.add_argument("--proposals", type=int, default=2, help="policy chunks at each successor state")
    parser.add_argument(
        "--backup", default="policy", choices=("policy", "best_of_n"), help="what the critic evaluates"
    )
    parser.add_argument(
        "--takeover",
        default="failure",
        choices=("failure", "bootstrap"),
        help="what a takeover says of the plan",
    )


def add_shares_argument(parser: argparse.ArgumentParser, option: str, whose: str = "") -> None:
    """An option for `parse_shares`. whose: begins its help."""
    parser.add_argument(
        option,
        default="0.25,0.5,0.25",
        help=f"{whose}of a batch: offline episodes, rollouts, corrections; three numbers with commas",
    )


def parse_shares(option: str, text: str) -> dict[Store, float]:
    """ "0.25,0.5,0.25" -> a share for each store. Raises ConfigError."""
    from valueguide.online.segments import STORES

    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(STORES):
        raise ConfigError(mismatch(option, "value", f"numbers for {', '.join(STORES)}", repr(text)))
    return dict(zip(STORES, numbers, strict=True))
