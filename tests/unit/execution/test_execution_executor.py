"""The executor: what it sends, when it asks, what it drops. Time is passed in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.execution.delay import DelayEstimate
from valueguide.execution.executor import ChunkExecutor, ExecutorSettings, Motion, Request, State
from valueguide.types import ActionChunk

PERIOD = 0.1
LOW, HIGH = np.full(1, -50.0, np.float32), np.full(1, 50.0, np.float32)


def executor(prefetch: bool = True, execute: int = 4, delay: float = 0.05) -> ChunkExecutor:
    return ChunkExecutor(ExecutorSettings(PERIOD, execute, LOW, HIGH, prefetch), DelayEstimate(delay))


def chunk(first: float, number: int = 0, horizon: int = 8, end: int = 4) -> ActionChunk:
    actions = (first + np.arange(horizon, dtype=np.float32))[:, None]
    return ActionChunk(actions, number, end)


def ask(made: ChunkExecutor, now: float = 0.0) -> Request:
    motion, request = made.tick(now)
    assert motion is None and request is not None
    return request


def run(made: ChunkExecutor, now: float) -> tuple[float | None, Request | None]:
    motion, request = made.tick(now)
    return (None if motion is None else float(motion.values[0])), request


def test_an_episode_begins_with_a_request_that_resets_and_commits_nothing() -> None:
    made = executor()
    assert made.tick(0.0) == (None, None), "idle before the start"
    made.start()
    request = ask(made)
    assert request.reset and request.committed.shape == (0, 1)
    assert made.tick(0.1) == (None, None), "asked once"


def test_without_prefetch_the_chunk_runs_to_its_end_before_the_next_is_asked_for() -> None:
    made = executor(prefetch=False)
    made.start()
    request = ask(made)
    assert made.on_chunk(chunk(10), request.request_id, 0, 0.05)
    sent = [run(made, 0.1 * i) for i in range(1, 6)]
    assert [value for value, _ in sent] == [10, 11, 12, 13, None]
    assert [r is not None for _, r in sent] == [False, False, False, False, True]
    last = sent[-1][1]
    assert last is not None and not last.reset and last.committed.size == 0


def test_prefetch_asks_in_time_says_what_is_committed_and_goes_on_without_a_gap() -> None:
    made = executor(delay=0.05)
    made.start()
    made.on_chunk(chunk(10), ask(made).request_id, 0, 0.05)
    assert [run(made, 0.1 * i) for i in (1, 2, 3)] == [(10, None), (11, None), (12, None)]
    value, request = run(made, 0.4)
    assert value == 13 and request is not None
    np.testing.assert_array_equal(request.committed, [[13]])
    # The new chunk's first step is the committed 13; it goes on from its second.
    assert made.on_chunk(chunk(20, 1), request.request_id, 1, 0.45)
    assert [run(made, 0.1 * i)[0] for i in (5, 6, 7)] == [21, 22, 23]
    assert made.counters.late == 0


def test_a_longer_delay_commits_more_steps() -> None:
    made = executor(delay=0.15)
    made.start()
    request = ask(made, 0.0)
    made.on_chunk(chunk(10), request.request_id, 0, 0.15)
    run(made, 0.2)
    run(made, 0.3)
    _, request = run(made, 0.4)
    assert request is not None
    np.testing.assert_array_equal(request.committed, [[12], [13]])


def test_a_late_chunk_finds_the_arm_holding_and_starts_after_the_committed_steps() -> None:
    made = executor()
    made.start()
    made.on_chunk(chunk(10), ask(made).request_id, 0, 0.05)
    for i in (1, 2, 3):
        run(made, 0.1 * i)
    _, request = run(made, 0.4)
    assert request is not None
    assert run(made, 0.5) == (None, None) and run(made, 0.6) == (None, None)
    assert made.state is State.WAITING
    assert made.on_chunk(chunk(20, 1), request.request_id, 1, 0.65)
    assert run(made, 0.7)[0] == 21
    assert made.counters.late == 1 and made.counters.holds == 3


def test_only_the_answer_to_the_open_request_is_taken() -> None:
    made = executor(prefetch=False)
    made.start()
    request = ask(made)
    assert not made.on_chunk(chunk(1), request.request_id - 1, 0, 0.0)
    assert made.on_chunk(chunk(2), request.request_id, 0, 0.0)
    assert not made.on_chunk(chunk(3), request.request_id, 0, 0.0), "a second answer"
    assert run(made, 0.1)[0] == 2
    assert made.counters.dropped == 2


@pytest.mark.parametrize("bad", ["nan", "size", "empty"])
def test_a_malformed_chunk_is_dropped_and_asked_for_again(bad: str) -> None:
    made = executor()
    made.start()
    request = ask(made)
    actions = {"nan": np.full((8, 1), np.nan), "size": np.zeros((8, 2)), "empty": np.zeros((8, 1))}[bad]
    plan = ActionChunk(actions.astype(np.float32), 0, 4)
    assert not made.on_chunk(plan, request.request_id, 4 if bad == "empty" else 0, 0.05)
    again = ask(made, 0.1)
    assert again.request_id == request.request_id + 1


def test_nan_beyond_the_executed_steps_does_no_harm() -> None:
    made = executor()
    made.start()
    plan = chunk(1)
    plan.actions[5:] = np.nan
    assert made.on_chunk(plan, ask(made).request_id, 0, 0.05)


def test_takeover_drops_the_plan_and_the_answer_under_way() -> None:
    made = executor()
    made.start()
    made.on_chunk(chunk(10), ask(made).request_id, 0, 0.05)
    for i in (1, 2, 3):
        run(made, 0.1 * i)
    _, request = run(made, 0.4)
    assert request is not None
    made.take_over()
    assert made.tick(0.5) == (None, None), "nothing before the human commands"
    assert not made.on_chunk(chunk(100), request.request_id, 1, 0.55)
    made.on_human(np.array([7.0]), 0.6)
    motion, none = made.tick(0.6)
    assert motion is not None and motion.source == "human" and motion.values[0] == 7.0 and none is None
    assert motion.chunk_id == -1 and made.commander == "human"
    made.on_human(np.array([8.0]), 0.7)
    assert made.tick(1.2)[0] is None, "an old command of the human does not run"
    made.hand_back()
    fresh = ask(made, 1.1)
    assert fresh.committed.size == 0 and not fresh.reset


def test_a_humans_steps_run_once_each_and_a_hold_drops_them() -> None:
    made = executor()
    made.start()
    made.take_over()
    for number in (1.0, 2.0):
        made.on_human(np.array([number]), 0.1)
    found = [made.tick(0.1 * i)[0] for i in (1, 2, 3)]
    assert [None if motion is None else motion.values[0] for motion in found] == [1, 2, None]
    made.on_human(np.array([3.0]), 0.4)
    made.on_human_hold()
    assert made.tick(0.4)[0] is None
    for number in (1.0, 2.0, 3.0):
        made.on_human(np.array([number]), 0.5)
    motion = made.tick(0.5)[0]
    assert motion is not None and motion.values[0] == 2, "a fast sender does not pile up a delay"


def test_a_refused_step_drops_the_plan() -> None:
    made = executor()
    made.start()
    made.on_chunk(chunk(10), ask(made).request_id, 0, 0.05)
    run(made, 0.1)
    made.refused()
    assert ask(made, 0.2).committed.size == 0


def test_nothing_is_sent_after_finish_or_stop_whatever_arrives() -> None:
    for end in (ChunkExecutor.finish, ChunkExecutor.stop):
        made = executor()
        made.start()
        request = ask(made)
        made.on_chunk(chunk(10), request.request_id, 0, 0.05)
        end(made)
        assert not made.on_chunk(chunk(20), request.request_id, 0, 0.05)
        made.on_human(np.zeros(1), 0.1)
        assert [made.tick(0.1 * i) for i in range(1, 4)] == [(None, None)] * 3
    made.take_over()
    assert made.state is State.STOPPED, "a human does not command a stopped arm either"


def test_a_human_who_took_over_before_the_episode_is_not_driven_over() -> None:
    for end in (ChunkExecutor.finish, ChunkExecutor.stop):
        made = executor()
        made.start()
        made.take_over()
        end(made)
        made.start()
        assert made.state is State.HUMAN, "the takeover lasts until it is handed back"
        made.hand_back()
        assert ask(made).reset
        made.stop()
        made.take_over()
        made.start()
        assert made.state is State.HUMAN, "taken over while stopped"


def test_a_takeover_handed_back_between_episodes_is_over() -> None:
    made = executor()
    made.start()
    made.take_over()
    made.stop()
    made.hand_back()
    assert made.state is State.STOPPED
    made.start()
    assert made.state is State.WAITING


def test_after_a_reset_a_fresh_takeover_commands_without_an_episode() -> None:
    made = executor()
    made.start()
    made.take_over()
    made.stop()
    made.unlatch()
    made.on_human(np.array([7.0]), 0.1)
    assert made.tick(0.1) == (None, None), "a reset by itself moves nothing"
    made.hand_back()
    made.take_over()
    made.on_human(np.array([8.0]), 0.2)
    motion = made.tick(0.2)[0]
    assert motion is not None and motion.values[0] == 8.0


def test_actions_are_clipped_as_in_training() -> None:
    made = executor()
    made.start()
    made.on_chunk(chunk(49), ask(made).request_id, 0, 0.05)
    assert [run(made, 0.1 * i)[0] for i in (1, 2, 3)] == [49, 50, 50]


def test_delay_is_a_high_quantile_rounded_up_and_bounded() -> None:
    delay = DelayEstimate(0.3, window=10)
    assert delay.steps(PERIOD, most=3) == 3 and delay.steps(PERIOD, most=2) == 2
    for _ in range(10):
        delay.add(0.04)
    assert delay.seconds == pytest.approx(0.04) and delay.steps(PERIOD, most=3) == 1
    delay.add(0.25)
    delay.add(0.25)
    assert delay.steps(PERIOD, most=3) == 3


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="period_s"):
        ExecutorSettings(0.0, 4, LOW, HIGH)
    with pytest.raises(ConfigError, match="execute"):
        ExecutorSettings(0.1, 0, LOW, HIGH)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=60), st.booleans(), st.integers(1, 6))
def test_whatever_the_delays_each_chunk_runs_once_in_order_from_its_first_uncommitted_step(
    delays: list[int], prefetch: bool, execute: int
) -> None:
    """delays: ticks until each answer arrives. Chunk n's actions are 10 n + step."""
    made = executor(prefetch=prefetch, execute=execute)
    made.settings.high[:] = 1e6
    made.start()
    due: tuple[int, Request, int] | None = None
    sent: list[Motion] = []
    starts: dict[int, int] = {}
    number, answers = 0, iter(delays)
    for tick in range(120):
        now = tick * PERIOD
        if due is not None and tick >= due[0]:
            starts[due[2]] = len(due[1].committed)
            plan = ActionChunk((10.0 * due[2] + np.arange(8, dtype=np.float32))[:, None], due[2], execute)
            assert made.on_chunk(plan, due[1].request_id, len(due[1].committed), now)
            due = None
        motion, request = made.tick(now)
        if motion is not None:
            sent.append(motion)
        if request is not None:
            wait = next(answers, None)
            if wait is None:
                break
            due, number = (tick + wait, request, number), number + 1
    by_chunk: dict[int, list[int]] = {}
    for motion in sent:
        by_chunk.setdefault(motion.chunk_id, []).append(motion.chunk_step)
        assert motion.values[0] == 10.0 * motion.chunk_id + motion.chunk_step
    assert list(by_chunk) == sorted(by_chunk)
    for chunk_id, steps in list(by_chunk.items())[:-1]:
        assert steps == list(range(starts[chunk_id], execute))
