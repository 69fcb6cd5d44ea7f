"""Help is asked for only when fresh value and fresh progress agree for long enough; nothing ever raises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.execution.help import (
    ANY_TASK,
    Curve,
    HelpDetector,
    HelpSettings,
    Reference,
    pessimistic_value,
)
from valueguide.types import Decision, Scores

# Successful episodes: value from -20 to -10 and progress from 0 to 0.5 over 40 steps, give or take 2 and 0.1.
CURVES = Reference(Curve((0, 40), (-20.0, -10.0), 2.0), Curve((0, 40), (0.0, 0.5), 0.1))
SETTINGS = HelpSettings(references={ANY_TASK: CURVES}, cooldown_steps=12)
# At step 40 with margins 1 the limits are -12 and 0.4.
LOW, POOR, GOOD, FAR = -12.5, 0.35, -11.0, 0.45


def asked(settings: HelpSettings, rows: list[tuple[Any, Any]], first: int = 40) -> list[bool]:
    detector = HelpDetector(settings)
    return [detector.update(first + 4 * i, *row).ask for i, row in enumerate(rows)]


def test_a_curve_is_linear_between_its_steps_and_constant_beyond() -> None:
    curve = Curve((4, 8, 16), (0.0, 2.0, -2.0), 0.5)
    assert [curve.at(step) for step in (-5, 4, 5, 8, 14, 16, 99)] == [0.0, 0.0, 0.5, 2.0, -1.0, -2.0, -2.0]
    assert curve.limit(5, 3.0) == -1.0


@pytest.mark.parametrize(
    ("value", "progress", "ask"),
    [(LOW, POOR, True), (LOW, FAR, False), (GOOD, POOR, False), (GOOD, FAR, False)],
)
def test_both_must_speak_for_failure(value: float, progress: float, ask: bool) -> None:
    assert asked(SETTINGS, [(value, progress)] * 2) == [False, ask]


def test_one_alone_is_a_rule_too() -> None:
    assert asked(replace(SETTINGS, rule="value"), [(LOW, None)] * 2) == [False, True]
    assert asked(replace(SETTINGS, rule="progress"), [(None, POOR)] * 2) == [False, True]


def test_decisions_in_between_that_disagree_start_the_row_anew() -> None:
    bad = (LOW, POOR)
    three = replace(SETTINGS, decisions=3)
    assert asked(three, [bad, bad, (GOOD, POOR), bad, bad, bad]) == [False] * 5 + [True]
    for doubt in ((None, POOR), (math.nan, POOR), (-math.inf, POOR), (LOW, None), (LOW, math.nan)):
        assert asked(three, [bad, bad, doubt, bad, bad]) == [False] * 5


def test_after_a_request_comes_a_cool_down() -> None:
    # 12 steps are three decisions of 4.
    assert asked(SETTINGS, [(LOW, POOR)] * 8) == [False, True, False, False, True, False, False, True]
    detector = HelpDetector(SETTINGS)
    detector.update(40, LOW, POOR), detector.update(44, LOW, POOR)
    assert "cool-down: 4 of 12 steps" in detector.update(48, LOW, POOR).reason


def test_a_hand_back_forgives_and_a_new_episode_forgets() -> None:
    detector = HelpDetector(SETTINGS)
    detector.update(40, LOW, POOR)
    detector.handed_back(44)
    answers = [detector.update(step, LOW, POOR) for step in (44, 48, 52, 56)]
    assert [answer.ask for answer in answers] == [False, False, False, True]
    detector.begin(ANY_TASK)
    assert [detector.update(step, LOW, POOR).ask for step in (56, 60)] == [False, True]


def test_progress_that_does_not_rise_counts_whatever_its_height() -> None:
    stalled = replace(SETTINGS, rule="progress", stall_steps=8, stall_gain=0.05, decisions=1)
    # Rises by 0.05 or less do not count until they add up to more: 0.90 to 0.96 at the fourth decision.
    # So it stands still from the first decision to the third, and from the fourth to the sixth.
    rows = [(None, p) for p in (0.90, 0.92, 0.95, 0.96, 0.97, 0.98)]
    assert asked(stalled, rows) == [False, False, True, False, False, True]
    assert asked(replace(stalled, stall_steps=None), rows) == [False] * 6
    after = HelpDetector(replace(stalled, cooldown_steps=0))
    after.update(40, None, 0.9)
    after.handed_back(48)
    assert not after.update(48, None, 0.9).ask  # the human's steps are no stall of the policy's


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((40, None, POOR), "value missing and progress 0.35 below 0.40"),
        ((40, math.nan, POOR), "value not finite"),
        ((40, LOW, None), "progress missing"),
        ((40, LOW, math.inf), "progress not finite"),
        ((40, LOW, POOR, 0.6), "progress stale (0.6 s old, at most 0.5 s)"),
        ((40, LOW, POOR, math.nan), "progress stale (of unknown age, at most 0.5 s)"),
        ((40, LOW, POOR, None), "progress stale (of unknown age"),
        ((None, LOW, POOR), "step missing"),
        ((40, LOW, POOR), "value -12.5 below -12 and progress 0.35 below 0.40 (1 of 2 decisions)"),
        ((40, GOOD, FAR), "value -11 not below -12 and progress 0.45 not below 0.40"),
    ],
)
def test_the_reason_says_what_is_known_and_what_is_missing(arguments: tuple[Any, ...], reason: str) -> None:
    assert reason in HelpDetector(SETTINGS).update(*arguments).reason


def test_a_request_says_why() -> None:
    detector = HelpDetector(SETTINGS)
    detector.update(40, LOW, POOR)
    answer = detector.update(44, LOW, POOR)
    assert answer.ask and answer.agreeing == 2
    assert answer.reason == "value -12.5 below -12 and progress 0.35 below 0.40, for 2 decisions"


def test_another_critics_values_do_not_count() -> None:
    detector = HelpDetector(replace(SETTINGS, critic_version="a", decisions=1))
    assert detector.update(40, LOW, POOR, critic_version="b").reason.startswith(
        "value of critic b, calibrated for a"
    )
    assert detector.update(44, LOW, POOR, critic_version="a").ask
    assert HelpDetector(replace(SETTINGS, decisions=1)).update(40, LOW, POOR, critic_version="b").ask


def test_a_task_is_known_by_name_or_instruction_and_others_share_one_reference() -> None:
    easy = Reference(Curve((0,), (-1.0,), 1.0), CURVES.progress)
    settings = replace(
        SETTINGS, references={ANY_TASK: CURVES, "lift": easy}, instructions={"pick it up": "lift"}
    )
    assert [settings.reference(task) for task in ("lift", "pick it up", "other")] == [easy, easy, CURVES]
    assert HelpDetector(HelpSettings()).update(40, LOW, POOR).reason == "not calibrated"


def test_the_value_is_the_least_of_the_members_for_the_chunk_that_runs() -> None:
    scores = Scores(np.array([[1.0, 5.0], [3.0, 2.0]], np.float32))
    assert pessimistic_value(Decision(1, "argmax", scores=scores)) == 2.0
    assert pessimistic_value(Decision(0, "shadow", preferred=1, scores=scores)) == 1.0
    assert pessimistic_value(Decision(0, "no_critic")) is None
    assert pessimistic_value(Decision(7, "argmax", scores=scores)) is None
    assert math.isnan(pessimistic_value(Decision(0, "non_finite", scores=Scores(scores.q * np.nan))) or 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "either"}, "help: rule: expected both or value or progress, found 'either'"),
        ({"value_margin": math.nan}, "value_margin"),
        ({"progress_margin": math.inf}, "progress_margin"),
        ({"decisions": 0}, "help: decisions: expected 1 or more, found 0"),
        ({"cooldown_steps": -1}, "cooldown_steps"),
        ({"stale_s": math.nan}, "stale_s"),
        ({"stall_steps": 0}, "stall_steps"),
        ({"stall_gain": -0.1}, "stall_gain"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        HelpSettings(**changes)


@pytest.mark.parametrize(
    ("steps", "median", "scale"),
    [
        ((), (), 1.0),
        ((0, 0), (1.0, 1.0), 1.0),
        ((0,), (1.0, 2.0), 1.0),
        ((0,), (math.nan,), 1.0),
        ((0,), (1.0,), 0.0),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(steps: Any, median: Any, scale: float) -> None:
    with pytest.raises(ConfigError, match="help: curve"):
        Curve(steps, median, scale)


ANYTHING = st.one_of(st.none(), st.floats(), st.integers(), st.just(10**400))
ROW = st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.sampled_from(["", "a", "b"]))


@given(st.lists(ROW, max_size=12), st.sampled_from(["both", "value", "progress"]), st.booleans())
def test_no_sequence_raises_and_none_asks_on_what_is_not_known(
    rows: list[tuple[Any, ...]], rule: Any, calibrated: bool
) -> None:
    settings = replace(SETTINGS, rule=rule, decisions=1, critic_version="a", stall_steps=4)
    detector = HelpDetector(settings if calibrated else replace(settings, references={}))
    for row in rows:
        answer = detector.update(*row)
        known = [_finite(x) for x in row[:4]]
        value = known[1] and row[4] in ("", "a")
        progress = known[2] and known[3] and row[3] <= settings.stale_s
        needed = {"both": value and progress, "value": value, "progress": progress}[rule]
        assert answer.reason and (not answer.ask or (calibrated and known[0] and needed))
        detector.handed_back(row[0])


def _finite(x: Any) -> bool:
    try:
        return x is not None and math.isfinite(x)
    except OverflowError:
        return False


MAYBE = st.one_of(st.none(), st.just(math.nan), st.floats(-40, 0))
PART = st.one_of(st.none(), st.floats(0, 1))
MARGIN = st.floats(-3, 6)


@given(
    st.lists(st.tuples(MAYBE, PART), max_size=24),
    st.tuples(MARGIN, MARGIN, st.sampled_from([4, 8, 16])),
    st.tuples(st.floats(0, 3), st.floats(0, 3), st.integers(0, 8)),
    st.integers(1, 4),
    st.integers(0, 20),
    st.sampled_from(["both", "value", "progress"]),
)
def test_stricter_limits_never_ask_more_often_or_sooner(
    rows: list[tuple[Any, Any]],
    loose: tuple[float, float, int],
    more: tuple[float, float, int],
    decisions: int,
    cooldown: int,
    rule: Any,
) -> None:
    base = replace(SETTINGS, rule=rule, decisions=decisions, cooldown_steps=cooldown)
    found = []
    for value, progress, stall in (loose, tuple(a + b for a, b in zip(loose, more, strict=True))):
        settings = replace(base, value_margin=value, progress_margin=progress, stall_steps=int(stall))
        found.append([i for i, ask in enumerate(asked(settings, rows, first=0)) if ask])
    assert len(found[1]) <= len(found[0])
    assert all(late >= soon for soon, late in zip(*found, strict=False))
