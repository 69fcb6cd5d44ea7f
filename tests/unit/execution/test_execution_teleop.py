"""Who commands, what a human commands, and what happens when a device falls silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.execution.human_input import Hands, Mapping, default_axes
from valueguide.execution.teleop import HumanStep, Teleop, TeleopSettings

LOW = np.array([-0.03, -0.03, -0.03, -0.3, 0.0], np.float32)
HIGH = np.array([0.03, 0.03, 0.03, 0.3, 1.0], np.float32)
NONE = np.zeros(5, np.float32)
NAMES = ["dx", "dy", "dz", "dyaw", "grip"]


def cartesian(**changes: Any) -> Teleop:
    settings = {"kind": "cartesian_delta", "period_s": 0.1, "low": LOW, "high": HIGH, "action_step": NONE,
                "lead": NONE, "grip_speed": 5.0, **changes}  # fmt: skip
    return Teleop(TeleopSettings(**settings))


def joints(**changes: Any) -> Teleop:
    settings = {"kind": "joint_position", "period_s": 0.1, "low": np.array([-3, -3, 0], np.float32),
                "high": np.array([3, 3, 1], np.float32), "action_step": np.zeros(3, np.float32),
                "lead": np.zeros(3, np.float32), "joint_speed": 1.0, **changes}  # fmt: skip
    return Teleop(TeleopSettings(**settings))


def hands(
    *motion: float, deadman: bool = True, grip: int = 0, estop: bool = False, refused: str = ""
) -> Hands:
    return Hands(np.array(motion or (0, 0, 0, 0), np.float32), grip, deadman, estop, refused)


def values(step: HumanStep | None) -> Any:
    assert step is not None and step.values is not None, step
    return step.values


def test_deadman_takes_over_moves_within_limits_and_hands_back() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(0.0)
    assert teleop.tick(0.0) is None
    teleop.on_hands("joy", hands(1, -0.5, 0, 0, deadman=False), 0.0)
    assert teleop.device is None, "a stick alone commands nothing"
    teleop.on_hands("joy", hands(1, -0.5, 0, 0), 0.1)
    assert (teleop.device, teleop.takeovers) == ("joy", 1)
    np.testing.assert_allclose(values(teleop.tick(0.1)), [0.03, -0.015, 0, 0, 0])
    teleop.on_hands("joy", hands(), 0.2)
    np.testing.assert_allclose(values(teleop.tick(0.2)), NONE)
    teleop.on_hands("joy", hands(deadman=False), 0.3)
    assert teleop.device is None and teleop.tick(0.3) is None
    teleop.on_hands("joy", hands(), 0.4)
    assert teleop.takeovers == 2
    teleop.new_episode()
    assert teleop.takeovers == 1, "one that lasts counts in the new episode"


def test_one_device_at_a_time() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    teleop.on_hands("keyboard", hands(), 0.0)
    teleop.on_hands("joy", hands(1, 0, 0, 0), 0.1)
    assert teleop.device == "keyboard" and "refused: joy: keyboard commands" in teleop.notes
    np.testing.assert_allclose(values(teleop.tick(0.1)), [0, 0, 0, 0, 1])
    assert teleop.take_over(0.1) == "keyboard commands"
    assert teleop.hand_back() == "keyboard commands; hand back there"
    teleop.on_hands("keyboard", hands(deadman=False), 0.2)
    teleop.on_hands("joy", hands(1, 0, 0, 0), 0.3)
    assert teleop.device is None, "a dead-man that was held all along is no new takeover"
    teleop.on_hands("joy", hands(deadman=False), 0.4)
    teleop.on_hands("joy", hands(), 0.5)
    assert teleop.device == "joy"


def test_a_silent_device_holds_until_somebody_shows_that_they_are_there() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    teleop.on_hands("joy", hands(1, 0, 0, 0), 0.0)
    assert values(teleop.tick(0.5))[0] > 0
    step = teleop.tick(0.51)
    assert step is not None and step.values is None and "silent" in step.reason and teleop.lost
    assert teleop.device == "joy", "the policy does not go on by itself"
    teleop.on_hands("joy", hands(deadman=False), 60.0)
    assert teleop.device == "joy" and teleop.lost, "plugged in again is not a hand-back"
    teleop.on_hands("joy", hands(0, 1, 0, 0), 61.0)
    assert not teleop.lost
    np.testing.assert_allclose(values(teleop.tick(61.0)), [0, 0.03, 0, 0, 1])
    teleop.on_hands("joy", hands(deadman=False), 61.1)
    assert teleop.device is None


def test_silence_that_no_tick_saw_still_counts() -> None:
    teleop = cartesian()
    teleop.on_hands("joy", hands(), 0.0)
    teleop.on_hands("joy", hands(deadman=False), 0.6)
    assert teleop.device == "joy" and teleop.lost


def test_operator_or_another_device_relieves_a_silent_one() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    teleop.on_hands("joy", hands(), 0.0)
    teleop.tick(1.0)
    teleop.on_hands("keyboard", hands(), 1.1)
    assert (teleop.device, teleop.lost, teleop.takeovers) == ("keyboard", False, 1)
    teleop.tick(2.0)
    assert teleop.lost and teleop.hand_back() == "" and teleop.device is None


def test_refused_messages_hold_at_once_and_count_as_silence() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    teleop.on_hands("joy", hands(1, 0, 0, 0), 0.0)
    for now in (0.1, 0.2, 0.3):
        teleop.on_hands("joy", hands(refused="axis 0: expected -1 to 1, found nan", deadman=False), now)
        step = teleop.tick(now)
        assert step is not None and step.values is None and teleop.device == "joy"
    assert teleop.refused == 3 and sum("found nan" in note for note in teleop.notes) == 1
    teleop.tick(0.6)
    assert teleop.lost


def test_estop_counts_whoever_commands() -> None:
    teleop = cartesian()
    teleop.on_hands("keyboard", hands(), 0.0)
    assert teleop.on_hands("joy", hands(estop=True, deadman=False), 0.0)
    assert teleop.on_hands("joy", hands(estop=True, refused="axis 0"), 0.1)
    assert not teleop.on_hands("joy", hands(deadman=False), 0.2)


def test_gripper_is_kept_as_commanded_and_moves_at_its_speed() -> None:
    teleop = cartesian()
    teleop.on_hands("joy", hands(), 0.0)
    step = teleop.tick(0.0)
    assert step is not None and step.values is None and "gripper" in step.reason
    teleop.on_measured(np.array([0, 0, 0, 0, 0.4]), 0.1)
    assert values(teleop.tick(0.1))[-1] == pytest.approx(0.4)
    grasping = cartesian()
    grasping.on_measured(np.array([0, 0, 0, 0, 0.4]), 0.0)
    grasping.on_gripper_command(0.0)
    grasping.on_hands("joy", hands(), 0.0)
    assert values(grasping.tick(0.0))[-1] == 0, "the measured opening would let the object go"
    grasping.on_hands("joy", hands(grip=1), 0.1)
    assert [values(grasping.tick(0.1))[-1] for _ in range(3)] == pytest.approx([0.5, 1.0, 1.0])


def test_script_runs_one_step_a_period_in_order_and_then_keeps_still() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    assert "takeover service" in teleop.on_script(HIGH, 0.0)
    assert teleop.take_over(0.0) == ""
    assert (teleop.device, teleop.takeovers) == ("script", 1)
    for number in range(3):
        assert teleop.on_script([0.01 * number, 0, 0, 0, 0.5], 0.0) == ""
    assert teleop.on_script(None, 0.0) == ""
    found = [values(teleop.tick(0.1))[0] for _ in range(3)]
    assert found == pytest.approx([0, 0.01, 0.02])
    held = teleop.tick(0.4)
    assert held is not None and held.values is None
    np.testing.assert_allclose(values(teleop.tick(0.5)), [0, 0, 0, 0, 0.5])
    assert teleop.hand_back() == "" and teleop.device is None


def test_a_script_far_ahead_is_not_silent_but_one_that_ended_is() -> None:
    teleop = cartesian()
    teleop.on_gripper_command(1.0)
    teleop.take_over(0.0)
    for _ in range(20):
        teleop.on_script(HIGH, 0.0)
    for number in range(20):
        assert values(teleop.tick(0.1 * number))[0] > 0
    values(teleop.tick(2.3))
    step = teleop.tick(2.5)
    assert step is not None and step.values is None and teleop.lost
    assert teleop.on_script(HIGH, 2.6) == "" and not teleop.lost
    assert values(teleop.tick(2.6))[0] > 0


@pytest.mark.parametrize("wrong", [[0.0] * 4, [0, 0, np.nan, 0, 0], [0, 0, 0, np.inf, 1]])
def test_wrong_script_steps_are_refused(wrong: list[float]) -> None:
    teleop = cartesian()
    teleop.take_over(0.0)
    assert teleop.on_script(wrong, 0.0)
    assert teleop.refused == 1


def test_a_script_cannot_flood() -> None:
    teleop = cartesian()
    teleop.take_over(0.0)
    assert [teleop.on_script(HIGH, 0.0) for _ in range(51)][-1].startswith("more than 50")


def test_steps_of_a_thrown_stick_stay_within_what_the_gate_allows() -> None:
    teleop = cartesian(action_step=np.array([0.02, 0, 0, 0, 0], np.float32))
    teleop.on_gripper_command(1.0)
    found = []
    for stick in (0.0, 1.0, -1.0, -1.0, -1.0):
        teleop.on_hands("joy", hands(stick, 0, 0, 0), 0.0)
        found.append(values(teleop.tick(0.0))[0])
    assert found == pytest.approx([0, 0.02, 0, -0.02, -0.03])


def test_speed_scales_the_stick() -> None:
    teleop = cartesian(speed=0.5)
    teleop.on_gripper_command(1.0)
    teleop.on_hands("joy", hands(1, 0, 0, -1), 0.0)
    np.testing.assert_allclose(values(teleop.tick(0.0)), [0.015, 0, 0, -0.15, 1])


def test_joint_robots_move_from_the_measured_pose_and_do_not_sag() -> None:
    teleop = joints(lead=np.array([0.3, 0.3, 0], np.float32))
    teleop.on_hands("joy", hands(0, 0), 0.0)
    step = teleop.tick(0.0)
    assert step is not None and step.values is None and "robot state" in step.reason
    teleop.on_measured(np.array([0.5, -0.5, 1.0]), 0.0)
    np.testing.assert_allclose(values(teleop.tick(0.0)), [0.5, -0.5, 1], rtol=1e-6)
    teleop.on_measured(np.array([0.49, -0.52, 1.0]), 0.1)
    np.testing.assert_allclose(values(teleop.tick(0.1)), [0.5, -0.5, 1], rtol=1e-6)
    teleop.on_hands("joy", hands(1, 0), 0.2)
    np.testing.assert_allclose(values(teleop.tick(0.2)), [0.59, -0.5, 1], rtol=1e-6)
    teleop.on_measured(np.array([0.57, -0.52, 1.0]), 0.3)
    teleop.on_hands("joy", hands(0, 0), 0.3)
    np.testing.assert_allclose(values(teleop.tick(0.3)), [0.57, -0.5, 1], rtol=1e-6)
    teleop.on_measured(np.array([0.57, 0.2, 1.0]), 0.4)
    assert values(teleop.tick(0.4))[1] == pytest.approx(0.2), "pushed away: it stays there"
    step = teleop.tick(0.61)
    assert step is not None and step.values is None and "stale" in step.reason


def test_a_measured_pose_with_nan_is_not_built_upon() -> None:
    teleop = joints()
    teleop.on_hands("joy", hands(1, 1), 0.0)
    teleop.on_measured(np.array([0.0, np.nan, 1.0]), 0.0)
    step = teleop.tick(0.0)
    assert step is not None and step.values is None and "not finite" in step.reason


def test_a_script_on_a_joint_robot_keeps_its_last_target_between_steps() -> None:
    teleop = joints()
    teleop.on_measured(np.array([0.0, 0.0, 1.0]), 0.0)
    teleop.take_over(0.0)
    teleop.on_script([0.1, 0.2, 0.5], 0.0)
    for _ in range(2):
        np.testing.assert_allclose(values(teleop.tick(0.1)), [0.1, 0.2, 0.5], rtol=1e-6)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="silence_s"):
        cartesian(silence_s=0.0)


_events = st.lists(
    st.tuples(
        st.sampled_from(["joy", "keyboard", "script", "take", "back", "measured", "grip", "tick", "wait"]),
        st.lists(st.floats(width=32), min_size=8, max_size=8),
        st.lists(st.booleans(), min_size=11, max_size=11),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), _events)
def test_whatever_comes_the_command_is_within_limits_and_only_from_the_commander(
    cart: bool, events: Any
) -> None:
    teleop = cartesian() if cart else joints()
    low, high = teleop.settings.low, teleop.settings.high
    size = len(low)
    mapping = Mapping(size, default_axes(NAMES[: size - 1] + ["grip"]))
    now = 0.0
    for what, numbers, pressed in events:
        before = teleop.device
        if what in ("joy", "keyboard"):
            teleop.on_hands(what, mapping.read(numbers, pressed), now)
            assert teleop.device in (before, what, None)
        elif what == "script":
            teleop.on_script(np.clip(numbers[:size], low, high), now)
        elif what == "take":
            teleop.take_over(now)
        elif what == "back":
            teleop.hand_back()
        elif what == "measured":
            teleop.on_measured(np.array(numbers[:size]), now)
        elif what == "grip":
            teleop.on_gripper_command(numbers[0])
        elif what == "wait":
            now += 0.3
        step = teleop.tick(now)
        assert (step is None) == (teleop.device is None)
        if step is not None and step.values is not None:
            assert step.values.dtype == np.float32 and step.values.shape == low.shape
            assert np.isfinite(step.values).all()
            assert (step.values >= low).all() and (step.values <= high).all()
