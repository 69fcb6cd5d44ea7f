"""Paths of candidates, and the picture that people see."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.drawing import score_colors
from valueguide.ros.draw import Plan, Status, annotate, hand_paths
from valueguide.ros.urdf import UrdfChain

FRAME = np.full((60, 80, 3), 90, np.uint8)


def test_cartesian_steps_add_up_from_the_measured_hand() -> None:
    actions = np.zeros((2, 3, 5), np.float32)
    actions[1, :, 0], actions[1, :, 4] = 0.01, 1
    still, moving = hand_paths(actions, "cartesian_delta", np.array([0.2, 0, 0.1], np.float32), None) or []
    np.testing.assert_allclose(still, np.tile([0.2, 0, 0.1], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(moving[:, 0], [0.2, 0.21, 0.22, 0.23], atol=1e-6)


def test_a_path_ends_before_a_step_that_is_not_finite() -> None:
    actions = np.zeros((1, 4, 5), np.float32)
    actions[0, 2, 1] = np.nan
    (path,) = hand_paths(actions, "cartesian_delta", np.zeros(3, np.float32), None) or []
    assert path.shape == (3, 3)


def test_unknown_places_give_no_paths() -> None:
    actions = np.zeros((2, 3, 5), np.float32)
    assert hand_paths(actions, "cartesian_delta", None, None) is None
    assert hand_paths(actions, "cartesian_delta", np.full(3, np.nan, np.float32), None) is None
    assert hand_paths(actions, "joint_position", np.zeros(3, np.float32), None) is None


def test_joint_targets_go_through_the_chain() -> None:
    urdf = """<robot name="r"><link name="base"/><link name="hand"/>
      <joint name="j" type="prismatic"><parent link="base"/><child link="hand"/><axis xyz="0 0 2"/>
      <origin xyz="1 0 0"/></joint></robot>"""
    actions = np.zeros((2, 3, 2), np.float32)
    actions[1, :, 0] = [0.1, 0.2, 0.3]
    chain = UrdfChain.from_urdf(urdf, ["j"], "base")
    _, moving = hand_paths(actions, "joint_position", None, chain) or []
    np.testing.assert_allclose(moving, [[1, 0, 0.1], [1, 0, 0.2], [1, 0, 0.3]], atol=1e-6)


def _has(picture: np.ndarray, color: tuple[int, ...] | np.ndarray, tolerance: int = 12) -> bool:
    return bool((np.abs(picture.astype(int) - np.asarray(color)).max(axis=2) <= tolerance).any())


def test_the_picture_holds_lines_in_the_scores_colours_and_words_below() -> None:
    values = np.array([0.1, 0.9], np.float32)
    lines = [np.array([[10.0, 10.0], [70.0, 10.0]]), np.array([[10.0, 40.0], [70.0, 40.0]])]
    plan = Plan([np.zeros((2, 3), np.float32)] * 2, values, chosen=1, reason="argmax")
    status = Status("put the carrot on the plate", "policy", 0)
    picture = annotate(FRAME, lines, plan, status.lines(plan))
    assert picture.dtype == np.uint8 and picture.shape[1] == 480 and picture.shape[0] > 360
    for color in score_colors(values):
        assert _has(picture[:360], color)
    bare = annotate(FRAME, [], None, status.lines(None))
    assert not any(_has(bare[:360], color) for color in score_colors(values))
    words = picture[360:]
    assert (words > 150).any(), "text is drawn"
    assert "candidate 1: argmax, score 0.900" in [row for row, _ in status.lines(plan)]


def test_scores_become_bars_where_paths_cannot_be_drawn() -> None:
    values = np.array([0.1, 0.9], np.float32)
    picture = annotate(FRAME, None, Plan([], values, 1, "argmax"), [])
    assert all(_has(picture, color) for color in score_colors(values))


def test_words_say_who_commands_and_why_it_stands_still() -> None:
    rows = Status("", "human (joy)", 2, "e-stop").lines(None)
    assert [row for row, _ in rows] == ["no task", "commands: human (joy)", "safety: STOPPED e-stop"]
    assert len({color for _, color in rows}) == 3
    assert Status().lines(None)[-1][0] == "safety: not heard"
    unscored = Status("x").lines(Plan([], None, 0, "base"))
    assert unscored[1][0] == "candidate 0: base"


@pytest.mark.parametrize("text", ["", "x" * 500, "naïve “quotes” 頭", "\n\t\0"])
def test_any_text_fits(text: str) -> None:
    picture = annotate(FRAME, [], None, [(text, (255, 255, 255))])
    assert picture.shape == (360 + 32, 480, 3)


def test_a_letter_that_opencv_lacks_is_one_question_mark() -> None:
    drawn = [
        annotate(FRAME, [], None, [(text, (255, 255, 255))]) for text in ("pince à sucre", "pince ? sucre")
    ]
    np.testing.assert_array_equal(*drawn)
