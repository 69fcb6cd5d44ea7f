"""Simulated time follows wall time, and falls behind openly."""

from __future__ import annotations

import math

import pytest

from sim.pacing import Pacer


def test_simulated_time_is_due_at_its_speed() -> None:
    pacer = Pacer(2.0, wall=100.0, simulated=7.0)
    assert pacer.lag(101.0, 9.0) == pytest.approx(0.0)
    assert pacer.lag(101.0, 10.0) == pytest.approx(-0.5)
    assert pacer.lag(102.0, 9.0) == pytest.approx(1.0)


def test_time_that_is_given_up_is_counted_and_not_made_up_for() -> None:
    pacer = Pacer(1.0, 0.0, 0.0)
    pacer.forgive(3.0, 1.0)
    assert pacer.lost_s == pytest.approx(2.0)
    assert pacer.lag(4.0, 2.0) == pytest.approx(0.0)
    pacer.forgive(5.0, 2.0)
    assert pacer.lost_s == pytest.approx(3.0)


def test_the_factor_is_that_since_the_last_look() -> None:
    pacer = Pacer(1.0, 0.0, 0.0)
    assert pacer.factor(2.0, 1.0) == pytest.approx(0.5)
    assert pacer.factor(3.0, 2.0) == pytest.approx(1.0)
    assert math.isnan(pacer.factor(3.0, 2.0))


def test_a_new_speed_counts_from_now_on() -> None:
    pacer = Pacer(1.0, 0.0, 0.0)
    pacer.restart(4.0, 10.0, 10.0)
    assert pacer.lag(11.0, 14.0) == pytest.approx(0.0)
    assert pacer.factor(11.0, 14.0) == pytest.approx(4.0)
