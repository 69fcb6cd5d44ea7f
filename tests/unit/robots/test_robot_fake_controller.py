"""The fake ros2_control controller keeps the rules of the real joint_trajectory_controller."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.testing.fake_controller import FakeTrajectoryController


def _controller() -> FakeTrajectoryController:
    return FakeTrajectoryController(["a", "b"], np.array([0.0, 1.0]))


def test_it_interpolates_by_name_and_stays_at_the_end() -> None:
    controller = _controller()
    assert controller.accept(["b", "a"], [(0.5, [2.0, 1.0])], 0.0, now=10.0) is None
    positions, velocities = controller.sample(10.25)
    assert positions == pytest.approx([0.5, 1.5])
    assert velocities == pytest.approx([2.0, 2.0])
    positions, velocities = controller.sample(99.0)
    assert positions == pytest.approx([1.0, 2.0])
    assert velocities == pytest.approx([0.0, 0.0])


def test_a_new_trajectory_takes_over_without_a_jump() -> None:
    controller = _controller()
    controller.accept(["a", "b"], [(1.0, [1.0, 1.0])], 0.0, now=0.0)
    controller.accept(["a", "b"], [(1.0, [0.0, 1.0])], 0.0, now=0.5)
    assert controller.sample(0.5)[0] == pytest.approx([0.5, 1.0])
    assert controller.sample(1.0)[0] == pytest.approx([0.25, 1.0])


def test_a_stamp_says_when_it_ends() -> None:
    controller = _controller()
    controller.accept(["a", "b"], [(0.2, [1.0, 1.0])], stamp=5.0, now=5.1)
    assert controller.sample(5.15)[0] == pytest.approx([0.5, 1.0])
    assert controller.sample(5.2)[0] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("names", "points", "stamp", "reason"),
    [
        (["a"], [(0.1, [0.0])], 0.0, "joints: expected a, b, found a"),
        (["a", "c"], [(0.1, [0.0, 0.0])], 0.0, "joints"),
        (["a", "b"], [], 0.0, "no points"),
        (["a", "b"], [(0.1, [0.0])], 0.0, "every joint"),
        (["a", "b"], [(0.1, [0.0, float("nan")])], 0.0, "not finite"),
        (["a", "b"], [(0.1, [0.0, 0.0]), (0.1, [1.0, 1.0])], 0.0, "do not increase"),
        (["a", "b"], [(0.1, [0.0, 0.0])], 9.0, "0.900 s in the past"),
    ],
)
def test_it_rejects_what_the_real_one_rejects(names, points, stamp, reason) -> None:
    controller = _controller()
    assert reason in controller.accept(names, points, stamp, now=10.0)
    assert len(controller.rejected) == 1
    assert controller.sample(11.0)[0] == pytest.approx([0.0, 1.0])
