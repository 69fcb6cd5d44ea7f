"""Who may take over from a policy in a simulated suite: `--operator scripted`."""

from __future__ import annotations

import argparse
from typing import Any

from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.rollout import Operator

OPERATORS = ("scripted",)


def add_operator_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `check_operator` and `make_operator` take."""
    parser.add_argument(
        "--operator",
        default="",
        choices=("", *OPERATORS),
        help="scripted: watches the policy, takes over when it is about to fail, hands back (tabletop only)",
    )
    parser.add_argument(
        "--takeovers", type=int, default=None, help="at most this many in one episode; default: no limit"
    )


def check_operator(name: str, takeovers: int | None, policy: str, suite: Any) -> None:
    """Raises ConfigError when the operator's options do not fit together, or not the suite."""
    if not name:
        if takeovers is not None:
            raise ConfigError(mismatch("--takeovers", "value", "an --operator that takes over", takeovers))
        return
    if not policy:
        raise ConfigError(mismatch("--operator", "--policy", "a policy that the operator watches", "none"))
    from sim.suite import TabletopSuite

    if not isinstance(suite, TabletopSuite):
        raise ConfigError(
            mismatch(
                "--operator", "--suite", "wxai, wxai-state or wxai-both, whose true state it sees", suite.name
            )
        )
    make_operator(name, takeovers)


def make_operator(name: str, takeovers: int | None = None) -> Operator | None:
    """A new operator, or None without a name. Raises ConfigError for a limit below 0."""
    if not name:
        return None
    from sim.operator import OperatorSettings, ScriptedOperator

    return ScriptedOperator(OperatorSettings(max_takeovers=takeovers))
