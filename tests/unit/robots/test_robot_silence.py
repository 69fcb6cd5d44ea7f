"""Silence of a controller counts only as far as the node that listens to it ran."""

from __future__ import annotations

import pytest

from valueguide.robots.wxai_link import Silence


def test_silence_adds_up_until_something_new_comes() -> None:
    silence, state = Silence(most_s=0.05, now=0.0), object()
    assert silence.look(state, 0.02) == 0.0
    assert [silence.look(state, now) for now in (0.04, 0.06, 0.10)] == pytest.approx([0.02, 0.04, 0.08])
    assert silence.look(object(), 0.12) == 0.0


def test_a_listener_that_was_held_up_hears_first_what_came_meanwhile() -> None:
    silence, state = Silence(most_s=0.05, now=0.0), object()
    silence.look(state, 0.02)
    # Two looks on end after a second: the thread that listens has had no turn between them.
    assert silence.look(state, 1.02) == pytest.approx(0.05)
    assert silence.look(state, 1.021) == pytest.approx(0.051)
    assert silence.look(object(), 1.04) == 0.0


def test_a_listener_held_up_again_and_again_still_finds_the_loss() -> None:
    silence, state = Silence(most_s=0.05, now=0.0), object()
    found = [silence.look(state, 0.3 * i) for i in range(1, 7)]
    assert found[-1] == pytest.approx(0.25)
