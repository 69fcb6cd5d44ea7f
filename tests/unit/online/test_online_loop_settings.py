"""What `train online` accepts, before anything costs time."""

from __future__ import annotations

import pytest

from valueguide.cli.td_options import parse_shares
from valueguide.errors import ConfigError
from valueguide.online.loop_settings import OnlineSettings


def settings(**changes):
    return OnlineSettings(
        **{"suite": "wxai-state", "tasks": ("push",), "method": "aloe", "policy": "p", "critic": "c"}
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "sac"}, "method"),
        ({"start": "anywhere"}, "start"),
        ({"critic_rate": 0.0}, "critic_rate"),
        ({"iterations": 0}, "iterations"),
        ({"critic_shares": {"offline": 0.0}}, "ratios"),
        ({"policy_shares": {"rumours": 1.0}}, "ratios"),
        ({"eval_seed": 100_010}, "evaluation seeds"),
        ({"final_seed": 99_990}, "final evaluation seeds"),
    ],
)
def test_settings_that_cannot_be_are_one_line_that_names_them(changes, named):
    with pytest.raises(ConfigError, match=named) as error:
        settings(**changes)
    assert "\n" not in str(error.value)


def test_seeds_right_beside_those_collected_from_are_fine():
    assert settings(eval_seed=100_100, final_seed=99_950).episodes == 20


def test_shares_are_given_in_the_order_of_the_stores():
    assert parse_shares("--critic-shares", "0.5,0.3,0.2") == {
        "offline": 0.5,
        "rollout": 0.3,
        "correction": 0.2,
    }


@pytest.mark.parametrize("text", ["0.5,0.5", "a,b,c", "", "0.2,0.2,0.2,0.4"])
def test_shares_of_another_form_are_one_line(text):
    with pytest.raises(ConfigError, match="--critic-shares"):
        parse_shares("--critic-shares", text)
