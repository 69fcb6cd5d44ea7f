"""The gate: what passes, what holds, what stops for good, and that nothing is sent after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.safety.gate import GateState, Kind, SafetyGate, Verdict, Watchdog
from valueguide.safety.limits import Limits, Measured

NAMES = ("a", "b")
LIMITS = Limits(
    action_low=(-1.0, -1.0), action_high=(1.0, 1.0), joint_low=(-2.0, -2.0), joint_high=(2.0, 2.0)
)
POSE = np.array([0.25, -0.5], np.float32)


def gate(peers: tuple[str, ...] = ()) -> SafetyGate:
    watchdog = Watchdog(command_s=0.3, state_s=0.2, heartbeat_s=1.0, peers=peers)
    made = SafetyGate(LIMITS, "joint_position", NAMES, ("j0", "j1"), watchdog)
    made.activate()
    return made


def at(pose: np.ndarray = POSE) -> Measured:
    return Measured(pose, action_pose=pose)


def moving(now: float = 0.0, peers: tuple[str, ...] = ()) -> SafetyGate:
    """A gate that has just let a command through."""
    made = gate(peers)
    for peer in peers:
        made.on_heartbeat(peer, now)
    made.on_measured(at(), now)
    verdict = made.on_command([0.1, 0.2], 1, 0.0, now)
    assert verdict is not None and verdict.kind is Kind.MOVE and made.state is GateState.OK
    return made


def holds(verdict: Verdict | None, said: str) -> bool:
    assert verdict is not None and verdict.kind is Kind.HOLD and said in verdict.reason
    assert verdict.values is not None
    np.testing.assert_array_equal(verdict.values, POSE)
    return True


def test_a_good_command_passes_unchanged() -> None:
    made = moving()
    verdict = made.on_command([0.3, 0.4], 2, 0.01, 0.1)
    assert verdict is not None and verdict.kind is Kind.MOVE
    np.testing.assert_array_equal(verdict.values, np.array([0.3, 0.4], np.float32))
    assert (made.passed, made.rejected) == (2, 0)


@pytest.mark.parametrize(
    ("values", "sequence", "age", "said"),
    [
        ([1.2, 0.0], 2, 0.0, "command a: 1.2"),
        ([float("nan"), 0.0], 2, 0.0, "not a finite number"),
        ([0.0], 2, 0.0, "expected 2 values"),
        ([0.1, 0.1], 1, 0.0, "out of order"),
        ([0.1, 0.1], 0, 0.0, "out of order"),
        ([0.1, 0.1], 2, 0.31, "issued 0.31 s ago"),
        ([0.1, 0.1], 2, -5.0, "issued -5.00 s ago"),
        ([0.1, 0.1], 2, float("nan"), "issued nan"),
    ],
)
def test_a_bad_command_holds_the_measured_pose_and_says_why(
    values: list[float], sequence: int, age: float, said: str
) -> None:
    made = moving()
    assert holds(made.on_command(values, sequence, age, 0.1), said)
    assert made.rejected == 1 and made.state is GateState.HOLDING
    again = made.on_command([0.1, 0.1], 5, 0.0, 0.15)
    assert again is not None and again.kind is Kind.MOVE, "the next good command passes"


def test_the_hold_is_sent_once_while_it_lasts() -> None:
    made = moving()
    assert holds(made.on_command([9.0, 0.0], 2, 0.0, 0.1), "command a")
    assert made.on_command([9.0, 0.0], 3, 0.0, 0.11) is None
    assert made.tick(0.12) is None


def test_silence_of_the_commander_is_a_hold() -> None:
    made = moving()
    made.on_measured(at(), 0.25)
    assert made.tick(0.29) is None
    made.on_measured(at(), 0.3)
    assert holds(made.tick(0.31), "no command for 0.31 s")


def test_stale_state_is_a_hold_and_refuses_commands() -> None:
    made = moving()
    assert made.tick(0.19) is None
    assert holds(made.tick(0.21), "robot state: 0.21 s old")
    made = moving()
    assert holds(made.on_command([0.1, 0.1], 2, 0.0, 0.25), "robot state")


def test_nothing_moves_before_the_first_state_and_before_every_peer_was_heard() -> None:
    made = gate(("robot", "executor"))
    assert made.on_command([0.0, 0.0], 1, 0.0, 0.0) is None and made.reason == "robot state: none yet"
    made.on_measured(at(), 0.0)
    made.on_heartbeat("robot", 0.0)
    assert made.on_command([0.0, 0.0], 2, 0.0, 0.0) is None
    assert made.reason == "heartbeat: nothing yet from executor"
    made.on_heartbeat("executor", 0.0)
    verdict = made.on_command([0.0, 0.0], 3, 0.0, 0.0)
    assert verdict is not None and verdict.kind is Kind.MOVE


def test_a_lost_heartbeat_stops_for_good() -> None:
    made = moving(peers=("executor",))
    made.on_measured(at(), 1.0)
    assert made.tick(0.99) is None or made.state is not GateState.STOPPED
    verdict = made.tick(1.01)
    assert verdict is not None and verdict.kind is Kind.STOP and "executor" in verdict.reason


def test_peers_that_are_not_watched_may_fall_silent() -> None:
    made = moving()
    made.on_heartbeat("recorder", 0.0)
    made.on_measured(at(), 5.0)
    made.on_command([0.1, 0.1], 2, 0.0, 5.0)
    assert made.tick(5.1) is None


@pytest.mark.parametrize("bad", [np.array([2.1, 0.0], np.float32), np.array([np.nan, 0.0], np.float32)])
def test_a_measured_state_beyond_its_limits_stops(bad: np.ndarray) -> None:
    made = moving()
    verdict = made.on_measured(at(bad), 0.1)
    assert verdict is not None and verdict.kind is Kind.STOP and made.state is GateState.STOPPED


def test_after_a_stop_nothing_is_sent_until_a_reset_by_hand() -> None:
    made = moving()
    assert made.stop("e-stop: topic") is not None
    made.on_measured(at(), 0.1)
    assert made.stop("e-stop: again") is None and made.reason == "e-stop: topic"
    assert made.on_command([0.1, 0.1], 2, 0.0, 0.1) is None
    assert made.on_hold(3, "please", 0.1) is None
    assert made.tick(10.0) is None
    made.on_measured(at(), 10.0)
    assert made.reset(10.0) is None
    assert made.state is GateState.HOLDING
    verdict = made.on_command([0.1, 0.1], 4, 0.0, 10.0)
    assert verdict is not None and verdict.kind is Kind.MOVE


def test_a_reset_is_refused_while_the_cause_lasts() -> None:
    made = moving(peers=("robot",))
    made.stop("e-stop")
    assert made.reset(0.5) == "robot state: missing or stale"
    made.on_measured(at(np.array([2.5, 0.0], np.float32)), 5.0)
    assert "measured joint" in (made.reset(5.0) or "")
    made.on_measured(at(), 5.0)
    assert "still nothing from robot" in (made.reset(5.0) or "")
    made.on_heartbeat("robot", 5.0)
    assert made.reset(5.0) is None


def test_a_hold_asked_for_by_the_commander_is_a_hold() -> None:
    made = moving()
    assert holds(made.on_hold(2, "episode finished", 0.1), "episode finished")


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="command_s"):
        Watchdog(command_s=0.0)
    with pytest.raises(ConfigError, match="action_low"):
        SafetyGate(LIMITS, "joint_position", ("a", "b", "c"))


EVENTS = st.one_of(
    st.tuples(st.just("command"), st.lists(st.floats(-2, 2), min_size=1, max_size=3), st.integers(0, 50)),
    st.tuples(st.just("state"), st.floats(-3, 3), st.none()),
    st.tuples(st.just("tick"), st.floats(0, 0.5), st.none()),
    st.tuples(st.just("beat"), st.sampled_from(["robot", "other"]), st.none()),
    st.tuples(st.just("stop"), st.none(), st.none()),
    st.tuples(st.just("hold"), st.none(), st.integers(0, 50)),
)


@settings(max_examples=200)
@given(st.lists(EVENTS, max_size=40))
def test_in_any_order_of_events_moves_are_in_limits_and_none_follows_a_stop(events: list) -> None:
    made, now, stopped = gate(("robot",)), 0.0, False
    for kind, value, number in events:
        if kind == "command":
            verdict = made.on_command(value, number, 0.0, now)
        elif kind == "state":
            verdict = made.on_measured(at(np.array([value, 0.0], np.float32)), now)
        elif kind == "tick":
            now += value
            verdict = made.tick(now)
        elif kind == "beat":
            made.on_heartbeat(value, now)
            verdict = None
        elif kind == "stop":
            verdict = made.stop("e-stop")
        else:
            verdict = made.on_hold(number, "asked", now)
        assert not (stopped and verdict is not None), "a stop is the last message"
        stopped = made.state is GateState.STOPPED
        if verdict is not None and verdict.kind is Kind.MOVE:
            assert len(verdict.values) == 2 and np.abs(verdict.values).max() <= 1.001
