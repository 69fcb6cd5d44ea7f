"""Sticks and buttons to motion: layout, dead zone, and messages that cannot be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.execution.human_input import (
    AXES,
    BUTTONS,
    DEADMAN,
    ESTOP,
    GRIP_CLOSE,
    GRIP_OPEN,
    Mapping,
    default_axes,
    parse_axes,
)

NAMES = ["dx", "dy", "dz", "dyaw", "grip"]


def mapping(text: str = "", **settings: float) -> Mapping:
    return Mapping(len(NAMES), parse_axes(text, NAMES), **settings)  # type: ignore[arg-type]


def axes(**values: float) -> list[float]:
    """axes(a1=0.5) -> all zero but axis 1."""
    found = [0.0] * AXES
    for name, value in values.items():
        found[int(name[1:])] = value
    return found


def buttons(*pressed: int) -> list[int]:
    return [int(i in pressed) for i in range(BUTTONS)]


def test_default_layout_is_the_xbox_pads() -> None:
    read = mapping(dead_zone=0.0).read
    for axis, dimension in ((1, 0), (0, 1), (4, 2), (3, 3)):
        moved = read(axes(**{f"a{axis}": -0.5}), buttons()).motion
        np.testing.assert_allclose(moved, -0.5 * np.eye(4)[dimension])
    hands = read(axes(), buttons(DEADMAN, GRIP_OPEN))
    assert (hands.deadman, hands.estop, hands.grip) == (True, False, 1)
    assert read(axes(), buttons(GRIP_CLOSE)).grip == -1
    assert read(axes(), buttons(GRIP_CLOSE, GRIP_OPEN)).grip == 0
    assert read(axes(), buttons(ESTOP)).estop


def test_axes_are_chosen_and_turned_by_a_parameter() -> None:
    hands = mapping("dz=-2 dx=5", dead_zone=0.0).read(axes(a2=1.0, a5=0.25, a1=1.0), buttons())
    np.testing.assert_allclose(hands.motion, [0.25, 0, -1, 0])
    six = [f"joint_{i}" for i in range(7)] + ["gripper"]
    assert [axis.index for axis in default_axes(six)] == [1, 0, 4, 3, 7, 6], "the seventh joint stays still"


@pytest.mark.parametrize("text", ["dx", "dx=a", "dx=+-1", "dw=1", "grip=1", "dx=1 dx=2", "=1", "dx=1.5"])
def test_a_wrong_axes_parameter_says_what_is_wrong(text: str) -> None:
    with pytest.raises(ConfigError, match="teleop: axes"):
        parse_axes(text, NAMES)


def test_wrong_buttons_and_dead_zone_are_refused() -> None:
    with pytest.raises(ConfigError, match="four different numbers"):
        mapping(deadman=1, estop=1)
    with pytest.raises(ConfigError, match="dead_zone"):
        mapping(dead_zone=1.0)


def test_dead_zone_grows_from_zero_to_the_full_motion() -> None:
    read = mapping(dead_zone=0.2).read
    found = [read(axes(a1=value), buttons()).motion[0] for value in (0.0, 0.2, 0.6, 1.0, -0.2, -1.0)]
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 0, -1], atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.2, 32767.0])
def test_a_broken_axis_refuses_the_motion_but_not_the_estop(value: float) -> None:
    hands = mapping().read(axes(a0=value, a1=1.0), buttons(DEADMAN, ESTOP))
    assert hands.refused.startswith("axis 0") and hands.estop
    assert not hands.deadman and not hands.motion.any()
    assert not mapping().read(axes(a5=value), buttons(DEADMAN)).refused, "axis 5 drives nothing"


def test_a_device_with_too_few_axes_or_buttons_is_refused() -> None:
    assert mapping().read([0.0] * 4, buttons()).refused == "axes: expected at least 5, found 4"
    assert mapping().read(axes(), [0, 1]).refused == "buttons: expected at least 5, found 2"
    assert mapping().read(axes(), [0, 1]).estop


@given(
    st.lists(st.floats(width=32), max_size=10),
    st.lists(st.integers(-1, 2), max_size=12),
    st.floats(0, 0.99),
)
def test_any_message_gives_bounded_motion_or_a_refusal(
    values: list[float], pressed: list[int], zone: float
) -> None:
    hands = mapping(dead_zone=zone).read(values, pressed)
    assert np.isfinite(hands.motion).all() and np.abs(hands.motion).max() <= 1
    if hands.refused:
        assert not hands.motion.any() and hands.grip == 0 and not hands.deadman
    else:
        assert all(abs(values[axis.index]) <= 1.05 for axis in default_axes(NAMES))
    assert hands.estop == (len(pressed) > ESTOP and bool(pressed[ESTOP]))
