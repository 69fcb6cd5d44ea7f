"""Limits: every bound refuses on its far side and only there; the reason names the dimension."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.safety.limits import Limits, Measured, check_command, check_measured

NAMES = ("dx", "dy", "dz", "dyaw", "grip")
DELTA = Limits(
    action_low=(-0.03, -0.03, -0.03, -0.3, 0.0),
    action_high=(0.03, 0.03, 0.03, 0.3, 1.0),
    workspace_low=(0.0, -0.3, 0.0),
    workspace_high=(0.4, 0.3, 0.3),
    joint_low=(-1.0, -1.0),
    joint_high=(1.0, 1.0),
    joint_velocity=(2.0, 2.0),
    force=50.0,
)
JOINT = Limits(action_low=(-2.0, -2.0), action_high=(2.0, 2.0), action_step=(0.1, 0.0), lead=(0.2, 0.2))


def measured(
    position: tuple[float, ...] | None = (0.2, 0.0, 0.1),
    joints: tuple[float, ...] = (0.0, 0.0),
    velocities: tuple[float, ...] = (0.0, 0.0),
    force: float = float("nan"),
    pose: tuple[float, ...] | None = None,
) -> Measured:
    return Measured(
        np.array(joints, np.float32),
        np.array(velocities, np.float32),
        None if position is None else np.array(position, np.float32),
        None if pose is None else np.array(pose, np.float32),
        force,
    )


def delta(values: object, where: Measured | None = None) -> str | None:
    return check_command(values, None, where or measured(), DELTA, "cartesian_delta", NAMES)


def test_a_command_within_all_limits_passes() -> None:
    assert delta([0.03, -0.03, 0.03, 0.3, 1.0]) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.031, 0, 0, 0, 0], "dx: 0.031 is outside -0.03 to 0.03"),
        ([0, 0, 0, -0.31, 0], "dyaw"),
        ([0, 0, 0, 0, 1.01], "grip"),
        ([0, 0, float("nan"), 0, 0], "dz: not a finite number"),
        ([0, 0, 0, 0, float("inf")], "grip: not a finite number"),
        ([0, 0, 0, 0], "expected 5 values"),
        ([], "expected 5 values"),
    ],
)
def test_a_bad_command_is_refused_and_named(values: list[float], said: str) -> None:
    assert said in (delta(values) or "")


def test_a_step_out_of_the_workspace_is_refused_one_inside_is_not() -> None:
    near = measured((0.39, 0.0, 0.1))
    assert "workspace x" in (delta([0.02, 0, 0, 0, 0], near) or "")
    assert delta([0.009, 0, 0, 0, 0], near) is None
    assert delta([-0.02, 0, 0, 0, 0], near) is None


def test_without_a_measured_position_no_cartesian_step_passes() -> None:
    assert delta([0, 0, 0, 0, 0], measured(None)) == "workspace: the hand's position is unknown"


def test_joint_commands_are_bound_to_the_last_one_and_to_the_measured_pose() -> None:
    at = measured(None, pose=(0.5, 0.5))
    ok = np.array([0.55, 0.5], np.float32)

    def check(values: list[float], previous: np.ndarray | None = None) -> str | None:
        return check_command(values, previous, at, JOINT, "joint_position", ("a", "b"))

    assert check([0.6, 0.5], ok) is None
    assert "command a: step of 0.15 exceeds 0.1" in (check([0.7, 0.5], ok) or "")
    assert check([0.7, 0.5]) is None, "no step limit right after a hold"
    assert "command b: 0.3 away from the measured pose" in (check([0.5, 0.8]) or "")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (measured(joints=(1.06, 0.0)), "measured joint j0: 1.06"),
        (measured(joints=(0.0, -1.06)), "measured joint j1"),
        (measured(velocities=(0.0, -2.1)), "joint j1: speed"),
        (measured(position=(0.2, 0.0, -0.01)), "measured position z"),
        (measured(force=50.5), "contact force: 50.5 N exceeds 50.0 N"),
        (measured(joints=(float("nan"), 0.0)), "not finite"),
        (measured(joints=(0.0,)), "expected 2, found 1"),
    ],
)
def test_a_measurement_beyond_a_limit_is_a_reason_to_stop(where: Measured, said: str) -> None:
    assert said in (check_measured(where, DELTA, ("j0", "j1")) or "")


def test_a_measurement_at_the_limits_is_fine() -> None:
    fine = measured(joints=(1.04, -1.04), velocities=(2.0, -2.0), force=50.0)
    assert check_measured(fine, DELTA, ("j0", "j1")) is None


@given(st.lists(st.floats(width=32), min_size=0, max_size=7))
def test_whatever_passes_is_finite_and_inside(values: list[float]) -> None:
    if delta(values) is None:
        action = np.array(values)
        assert action.shape == (5,) and np.isfinite(action).all()
        assert (action >= np.array(DELTA.action_low) - 2e-4).all()
        assert (action <= np.array(DELTA.action_high) + 2e-4).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"action_low": (0.0,), "action_high": (-1.0,)},
        {"action_low": (0.0,), "action_high": (1.0, 2.0)},
        {"action_low": (float("nan"),), "action_high": (1.0,)},
        {"action_low": (0.0,), "action_high": (1.0,), "force": 0.0},
        {"action_low": (0.0,), "action_high": (1.0,), "action_step": (1.0, 1.0)},
        {"action_low": (0.0,), "action_high": (1.0,), "workspace_low": (0.0,), "workspace_high": (1.0,)},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="limits"):
        Limits(**wrong)
