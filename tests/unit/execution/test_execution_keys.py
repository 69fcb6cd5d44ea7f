"""Keys of a terminal as a gamepad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.execution.human_input import DEADMAN, ESTOP, GRIP_CLOSE, GRIP_OPEN, Mapping, default_axes
from valueguide.execution.keys import HELP, Keys

NAMES = ["dx", "dy", "dz", "dyaw", "e", "f", "grip"]


def commanding() -> Keys:
    keys = Keys()
    keys.feed("t", 0.0)
    return keys


@pytest.mark.parametrize(
    ("key", "dimension", "sign"),
    [("w", 0, 1), ("s", 0, -1), ("a", 1, 1), ("d", 1, -1), ("r", 2, 1), ("f", 2, -1), ("q", 3, 1),
     ("e", 3, -1), ("i", 4, 1), ("k", 4, -1), ("j", 5, 1), ("l", 5, -1), ("\x1b[A", 0, 1), ("\x1b[B", 0, -1),
     ("\x1bOD", 1, 1), ("\x1b[1;5C", 1, -1)],
)  # fmt: skip
def test_a_key_moves_its_dimension_for_a_moment(key: str, dimension: int, sign: int) -> None:
    keys = commanding()
    keys.feed(key, 1.0)
    mapping = Mapping(len(NAMES), default_axes(NAMES), dead_zone=0.0)
    moved = mapping.read(*keys.joy(1.1)).motion
    assert moved[dimension] == pytest.approx(sign * 0.5) and (moved != 0).sum() == 1
    assert not mapping.read(*keys.joy(1.3)).motion.any()


def test_nothing_moves_before_the_takeover() -> None:
    keys = Keys()
    keys.feed("w ", 0.0)
    axes, buttons = keys.joy(0.1)
    assert not any(axes) and not any(buttons) and keys.notice
    keys.feed("t", 0.1)
    axes, buttons = keys.joy(0.1)
    assert not any(axes) and buttons[DEADMAN] == 1, "keys from before the takeover do not count"


def test_space_closes_first_then_toggles_and_is_let_go_with_the_command() -> None:
    keys = commanding()
    assert keys.joy(0.0)[1][GRIP_CLOSE] == keys.joy(0.0)[1][GRIP_OPEN] == 0
    keys.feed(" ", 0.0)
    assert keys.joy(5.0)[1][GRIP_CLOSE] == 1
    keys.feed(" ", 6.0)
    assert (keys.joy(6.0)[1][GRIP_CLOSE], keys.joy(6.0)[1][GRIP_OPEN]) == (0, 1)
    keys.feed("tt", 7.0)
    assert keys.joy(7.0)[1][GRIP_OPEN] == 0


def test_estop_needs_no_command_and_is_released_by_itself() -> None:
    keys = Keys()
    keys.feed("x", 1.0)
    assert [keys.joy(now)[1][ESTOP] for now in (1.0, 1.4, 1.6)] == [1, 1, 0]


def test_speed_has_steps() -> None:
    keys = commanding()
    keys.feed("++++", 0.0)
    keys.feed("w", 0.0)
    assert max(keys.joy(0.0)[0]) == 1.0 and keys.speed_text == "100%"
    keys.feed("-------w", 0.0)
    assert max(keys.joy(0.0)[0]) == pytest.approx(0.1)


def test_a_refused_or_ended_takeover_is_not_asked_for_again() -> None:
    keys = commanding()
    keys.on_intervention(True, "joy", 1.0)
    assert keys.commanding, "teleop has a moment to answer"
    keys.on_intervention(True, "joy", 2.0)
    assert not keys.commanding and keys.notice == "not in command: joy commands"
    keys = commanding()
    keys.on_intervention(True, "keyboard", 0.1)
    keys.on_intervention(False, "", 0.2)
    assert not keys.commanding and keys.joy(0.2)[1][DEADMAN] == 0


def test_unknown_keys_are_named_and_help_lists_the_others() -> None:
    keys = Keys()
    keys.feed("W", 0.0)
    assert "'W'" in keys.notice and "caps lock" in keys.notice
    keys.feed("?", 0.0)
    assert keys.help_wanted and all(f" {key} " in HELP for key in "wasdrfqeijkltx?")


@given(st.lists(st.text(max_size=6), max_size=12))
def test_any_typing_gives_a_message_that_teleop_accepts(typed: list[str]) -> None:
    keys = Keys()
    for number, text in enumerate(typed):
        keys.feed(text, 0.1 * number)
        axes, buttons = keys.joy(0.1 * number)
        hands = Mapping(len(NAMES), default_axes(NAMES)).read(axes, buttons)
        assert not hands.refused and hands.deadman == keys.commanding
        assert keys.commanding or not any(axes)
