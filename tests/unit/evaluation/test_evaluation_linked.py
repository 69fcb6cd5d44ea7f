"""Episodes in real time: periods keep their length, silence holds, and a lost link ends as truncated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from valueguide.evaluation.linked import LinkedSettings, linked
from valueguide.testing.fake_pilot import FakePilot
from valueguide.testing.fakes import FakeClock, FakeReachEnv
from valueguide.types import Episode

FPS = 10.0


def _run(
    pilot: FakePilot, env: FakeReachEnv | None = None, limit: int = 20, lost_s: float = 30.0, **options: Any
) -> Episode:
    clock = options.pop("clock", FakeClock())
    settings = LinkedSettings(FPS, limit, lost_s, stretch=options.pop("stretch", 1.0))
    env = env or FakeReachEnv()
    return linked(env, pilot, 3, settings, clock=clock, sleep=clock.advance, **options)  # type: ignore[arg-type]


def test_without_silence_it_is_a_rollout() -> None:
    # The goal is 0.5 away, 0.1 a step: within 0.05 after 5 steps.
    pilot = FakePilot()
    episode = _run(pilot, sampling_seed=11)
    assert pilot.seed == 11 and pilot.stopped
    assert episode.success and episode.task == "reach the goal"
    assert [s.chunk_id for s in episode.steps] == [0, 0, 1, 1, 2]
    assert [s.executed_length for s in episode.steps] == [2, 2, 2, 2, 1]
    assert [s.decision is not None for s in episode.steps] == [True, False, True, False, True]
    last = episode.steps[-1]
    assert (last.terminated, last.truncated, last.reward, last.policy_version) == (True, False, 1.0, "p")
    position, goal = episode.final_observation.state
    assert abs(position - goal) < 0.05
    assert episode.metadata["decisions"] == 3 and episode.metadata["reasons"] == {"argmax": 3}
    assert episode.metadata["round_trips_s"] == [0.05] * 3


def test_what_has_not_arrived_holds_the_arm_and_counts_as_a_step() -> None:
    env = FakeReachEnv()
    episode = _run(FakePilot(holds={0, 3}), env)
    assert [s.source for s in episode.steps] == ["hold", "policy", "policy", "hold", *["policy"] * 3]
    held = episode.steps[3]
    assert not held.action.any() and (held.chunk_id, held.executed_length) == (-1, 1)
    assert np.array_equal(held.observation.state, episode.steps[4].observation.state)
    assert env.held == episode.metadata["holds"] == 2 and episode.metadata["waited"] == 0
    assert [s.observation.stamp_ns for s in episode.steps] == [round(i * 1e8) for i in range(7)]
    late = _run(FakePilot(holds=range(100)), limit=6)
    assert len(late.steps) == 6 and late.steps[-1].truncated and late.metadata["failure"] == ""


def test_the_first_step_that_ran_carries_the_decision_though_its_number_is_not_0() -> None:
    episode = _run(FakePilot(start=2))
    assert [s.chunk_step for s in episode.steps] == [2, 3, 2, 3, 2]
    assert [s.decision is not None for s in episode.steps] == [True, False, True, False, True]
    assert all(s.planned_chunk is not None and len(s.planned_chunk) == 4 for s in episode.steps)


def test_a_silent_server_uses_up_no_time_limit_until_the_link_counts_as_lost() -> None:
    back = _run(FakePilot(troubles=range(2, 12)), limit=6)
    assert back.success and len(back.steps) == 15 and back.metadata["waited"] == 10
    gone = _run(FakePilot(troubles=range(2, 1000)), limit=6, lost_s=3.0)
    last = gone.steps[-1]
    assert (last.terminated, last.truncated, gone.metadata["failure"]) == (False, True, "link_lost")
    # Silent from the third period on; over once that was 3 s ago.
    assert len(gone.steps) == 3 + 30


def test_a_link_that_came_back_is_lost_only_after_the_whole_time_again() -> None:
    silent = {*range(0, 25), *range(26, 51)}
    assert _run(FakePilot(troubles=silent), lost_s=3.0).success


@pytest.mark.parametrize("stretch", [1.0, 4.0])
def test_every_period_takes_as_long_as_on_a_robot(stretch: float) -> None:
    clock, began = FakeClock(), []
    _run(FakePilot(), clock=clock, stretch=stretch, watch=lambda number, motion: began.append(clock.now))
    assert began == pytest.approx([stretch * number / FPS for number in range(5)])


def test_a_slow_computer_is_told_and_not_made_up_for() -> None:
    clock, began = FakeClock(), []

    def slow(number: int, motion: object) -> None:
        began.append(clock.now)
        clock.advance(0.25 if number == 1 else 0.0)

    episode = _run(FakePilot(), clock=clock, watch=slow)
    assert began == pytest.approx([0.0, 0.1, 0.35, 0.45, 0.55])
    assert episode.metadata["slips_s"] == pytest.approx([0.15])


def test_a_hold_keeps_the_gripper_in_the_log_as_last_commanded() -> None:
    clock = FakeClock()
    settings = LinkedSettings(FPS, 20, kept=(0,))
    pilot = FakePilot(holds={0, 2})
    episode = linked(FakeReachEnv(), pilot, 3, settings, clock=clock, sleep=clock.advance)  # type: ignore[arg-type]
    first, moved, held = (step.action for step in episode.steps[:3])
    assert np.array_equal(first, np.float32([0.1])) and np.array_equal(held, moved)


def test_the_pilot_is_stopped_when_the_environment_fails() -> None:
    def fail(action: object) -> None:
        raise RuntimeError("broken")

    pilot = FakePilot()
    with pytest.raises(RuntimeError, match="broken"):
        _run(pilot, FakeReachEnv(fail=fail))
    assert pilot.stopped
