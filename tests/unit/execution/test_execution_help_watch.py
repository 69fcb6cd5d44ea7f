"""What a running graph says reaches the detector as it should: the right step, age, critic and episode."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.execution.help import ANY_TASK, Curve, HelpSettings, Reference
from valueguide.execution.help_watch import HelpRequest, HelpWatch
from valueguide.types import Decision, Scores

# Successful episodes: value from -20 to -10 and progress from 0 to 0.5 over 40 steps, give or take 2 and 0.1:
# at step 40 the limits are -12 and 0.4.
CURVES = Reference(Curve((0, 40), (-20.0, -10.0), 2.0), Curve((0, 40), (0.0, 0.5), 0.1))
SETTINGS = HelpSettings(references={ANY_TASK: CURVES}, cooldown_steps=40)
LOW, POOR, GOOD, FAR = -12.5, 0.35, -11.0, 0.45
SECOND = 1_000_000_000


def decision(value: float) -> Decision:
    """The chunk that runs is candidate 1; one member is more hopeful, candidate 0 is worse."""
    q = np.array([[-90.0, value + 5], [-90.0, value]], np.float32)
    return Decision(1, "argmax", 1, q.min(0), Scores(q), -1, 0.1)


class Graph:
    """A watch, and a clock that runs 0.4 s a decision of four steps."""

    def __init__(self, settings: HelpSettings = SETTINGS, first: int = 40) -> None:
        self.watch, self.now, self.step, self.number = HelpWatch(settings), 100 * SECOND, first, 0
        self.watch.begin("pick the can", self.now)

    def decide(
        self, value: float, progress: float | None, status: str = "ok", age_s: float = 0.1, version: str = "a"
    ) -> HelpRequest | None:
        self.number, self.step, self.now = self.number + 1, self.step + 4, self.now + 2 * SECOND // 5
        self.watch.planning(self.number, self.step - 4)
        if progress is not None:
            self.watch.on_progress(progress, status, self.now - round(age_s * SECOND))
        return self.watch.on_decision(self.number, decision(value), version, self.now)


@pytest.mark.parametrize(
    ("value", "progress", "wanted"), [(LOW, POOR, 1), (LOW, FAR, 0), (GOOD, POOR, 0), (GOOD, FAR, 0)]
)
def test_one_request_when_both_say_failing(value: float, progress: float, wanted: int) -> None:
    graph = Graph()
    found = [graph.decide(value, progress) for _ in range(5)]
    assert [request is not None for request in found] == [False, bool(wanted), False, False, False]
    assert graph.watch.asked == wanted
    if wanted:
        assert found[1] == HelpRequest(44, found[1].reason, pytest.approx(LOW), POOR)  # type: ignore[union-attr]
        assert "value -12.5 below" in found[1].reason and "progress 0.35 below" in found[1].reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "late"}, "progress missing"),
        ({"status": "malformed"}, "progress missing"),
        ({"status": ""}, "progress missing"),
        ({"age_s": 0.7}, "progress stale"),
        ({"age_s": -2.0}, "progress stale"),
        ({"progress": math.nan}, "progress not finite"),
    ],
)
def test_progress_that_does_not_count(changes: dict[str, object], reason: str) -> None:
    # The episode is old enough for a picture of 0.7 s to be one of it.
    graph = Graph()
    graph.now += 10 * SECOND
    for _ in range(4):
        assert graph.decide(LOW, **({"progress": POOR} | changes)) is None  # type: ignore[arg-type]
        assert graph.watch.last is not None and reason in graph.watch.last.reason


def test_a_bad_estimate_takes_the_place_of_a_good_one() -> None:
    graph = Graph()
    assert graph.decide(LOW, POOR) is None
    graph.watch.on_progress(POOR, "no_estimator", graph.now)
    assert graph.decide(LOW, None) is None and graph.watch.last.reason.endswith("progress missing")  # type: ignore[union-attr]


def test_progress_grows_old_while_nobody_estimates() -> None:
    graph = Graph()
    assert graph.decide(LOW, POOR, age_s=0.0) is None
    assert graph.decide(LOW, None) is not None, "0.4 s old"
    graph = Graph()
    assert graph.decide(LOW, POOR, age_s=0.2) is None
    assert graph.decide(LOW, None) is None, "0.6 s old"


def test_what_was_seen_before_the_episode_is_not_of_it() -> None:
    graph = Graph()
    graph.watch.on_progress(POOR, "ok", graph.now - 1)
    assert graph.decide(LOW, None) is None
    assert graph.watch.last is not None and graph.watch.last.reason.endswith("progress missing")
    graph.watch.begin("pick the can", graph.now)
    assert graph.watch.asked == 0 and graph.watch.last is None


def test_decisions_count_at_the_step_that_their_chunk_was_asked_for() -> None:
    """At step 0 a value of -21 is usual; at step 40 it is low."""
    early, late = Graph(first=0), Graph(first=40)
    assert [early.decide(-21.0, -0.05), early.decide(-21.0, -0.05)] == [None, None]
    assert late.decide(-21.0, -0.05) is None and late.decide(-21.0, -0.05) is not None


def test_a_decision_of_nobodys_asking_does_not_count() -> None:
    graph = Graph()
    graph.decide(LOW, POOR)
    for number in (graph.number, 99):  # twice the same; a request of another executor
        assert graph.watch.on_decision(number, decision(LOW), "a", graph.now) is None
    graph.watch.end()
    assert graph.decide(LOW, POOR) is None, "the episode is over"


def test_after_a_takeover_old_decisions_are_gone_and_a_hand_back_begins_a_cool_down() -> None:
    graph = Graph()
    graph.decide(LOW, POOR)
    graph.watch.planning(50, graph.step)
    graph.watch.taken_over()
    assert graph.watch.on_decision(50, decision(LOW), "a", graph.now) is None
    graph.watch.handed_back(graph.step)
    found = [graph.decide(LOW, POOR) for _ in range(12)]
    assert [i for i, request in enumerate(found) if request] == [10], "40 steps after the hand-back"


def test_decisions_of_two_critics_make_no_row() -> None:
    graph = Graph()
    assert not any(graph.decide(LOW, POOR, version="ab"[i % 2]) for i in range(6))
    assert graph.decide(LOW, POOR, version="b") is not None


def test_the_value_of_a_critic_that_was_not_calibrated_is_missing() -> None:
    graph = Graph(replace(SETTINGS, critic_version="a"))
    assert not any(graph.decide(LOW, POOR, version="b") for _ in range(4))
    assert graph.watch.last is not None and "calibrated for a" in graph.watch.last.reason


def test_an_unscored_decision_has_no_value() -> None:
    graph = Graph()
    graph.decide(LOW, POOR)
    graph.watch.planning(77, graph.step)
    unscored = Decision(0, "base", -1, None, None, -1, 0.1)
    assert graph.watch.on_decision(77, unscored, "", graph.now) is None
    alone = Graph(replace(SETTINGS, rule="progress", decisions=1))
    alone.watch.planning(1, 40)
    alone.watch.on_progress(POOR, "ok", alone.now)
    found = alone.watch.on_decision(1, unscored, "", alone.now)
    assert found is not None and math.isnan(found.value) and found.progress == POOR


@given(
    st.lists(
        st.tuples(
            st.floats(width=32),
            st.floats(),
            st.sampled_from(["ok", "late", ""]),
            st.integers(-(2**40), 2**40),
            st.sampled_from(["", "a", "b"]),
        ),
        max_size=12,
    )
)
def test_whatever_it_hears_it_keeps_the_cool_down(
    rows: list[tuple[float, float, str, int, str]],
) -> None:
    graph = Graph()
    asked = []
    for value, progress, status, age_ns, version in rows:
        if graph.decide(value, progress, status, age_ns / SECOND, version):
            asked.append(graph.step)
    assert len(asked) == graph.watch.asked <= 2
    assert all(b - a >= 40 for a, b in zip(asked, asked[1:], strict=False))
