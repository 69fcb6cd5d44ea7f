"""The figures of requests for help, worked out by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from valueguide.evaluation.help_metrics import clock, compare, judge, report
from valueguide.evaluation.statistics import wilson
from valueguide.execution.help import ANY_TASK, Curve, HelpSettings, Reference
from valueguide.execution.help_calibration import LabelledEpisode, requests


def _episode(success: bool, steps: int, task: str = "lift", value: Any = ()) -> LabelledEpisode:
    return LabelledEpisode(
        task, success, steps, [4 * i for i in range(len(value))], value, [0.0] * len(value)
    )


# Four failures, of which three are flagged with 60, 12 and 40 steps left; four successes, one flagged twice.
EPISODES = [_episode(False, 80), _episode(False, 32), _episode(False, 80), _episode(False, 50)] + [
    _episode(True, 40) for _ in range(4)
]
ASKED: list[list[int]] = [[20, 44], [20], [], [10], [], [8, 30], [], []]


def test_each_figure_counts_what_it_says() -> None:
    found = judge(EPISODES, ASKED, 20)
    assert (found["episodes"], found["failures"]) == (8, 4)
    for name, count, of in (
        ("precision", 3, 4),
        ("recall", 3, 4),
        ("recall_in_time", 2, 4),
        ("false_alarm_rate", 1, 4),
    ):
        share = found[name]
        assert (share["count"], share["of"], share["value"]) == (count, of, count / of), name
        assert share["ci95"] == list(wilson(count, of))
    assert judge(EPISODES, ASKED, 12)["recall_in_time"]["count"] == 3  # exactly in time counts


def test_lead_time_is_from_the_first_request_to_the_end() -> None:
    lead = judge(EPISODES, ASKED, 20)["lead_steps"]
    assert (lead["n"], lead["median"], lead["iqr"]) == (3, 40.0, [26.0, 50.0])  # of 12, 40 and 60
    # All of a draw of three are 12 with a chance of 1/27, more than 2.5 %; a median of 12 needs two of them.
    assert lead["ci95"] == [12.0, 60.0]


def test_false_alarms_count_every_request_of_a_success() -> None:
    alarms = judge(EPISODES, ASKED, 20)["false_alarms_per_success"]
    # 2 requests in 4 successes. Draws of four have a mean of n / 2, n binomial (4, 1/4):
    # P(0) = 0.32 is more than 2.5 %, P(n >= 3) = 0.05 is more than 2.5 %, and P(n >= 4) = 0.004 is not.
    assert alarms["value"] == 0.5
    assert alarms["ci95"] == [0.0, 1.5]


def test_what_has_no_cases_is_none_rather_than_a_number() -> None:
    silent = judge(EPISODES, [[] for _ in EPISODES], 20)
    assert silent["precision"] == {"count": 0, "of": 0, "value": None, "ci95": None}
    assert silent["recall"]["value"] == 0.0
    assert silent["lead_steps"] == {"median": None, "ci95": None, "iqr": None, "n": 0}
    assert silent["false_alarms_per_success"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    only_failures = judge(EPISODES[:4], ASKED[:4], 20)
    assert only_failures["false_alarms_per_success"] == {"value": None, "ci95": None}
    assert only_failures["precision"]["value"] == 1.0
    assert judge(EPISODES[4:], ASKED[4:], 20)["recall"]["value"] is None


def test_rules_are_compared_on_the_same_episodes() -> None:
    never: list[list[int]] = [[] for _ in EPISODES]
    found = compare(EPISODES, never, ASKED)
    # ASKED is right in three failures more and wrong in one success more.
    assert (found["gained"], found["lost"], found["n"]) == (3, 1, 8)
    assert found["delta"] == pytest.approx(2 / 8) and found["p"] == pytest.approx(0.625)


def test_a_report_replays_every_rule_and_compares_it_with_the_main_one() -> None:
    # Values below -10 are low; progress of 0 is always poor.
    curves = Reference(Curve((0,), (-9.0,), 1.0), Curve((0,), (0.5,), 0.1))
    base = {"references": {ANY_TASK: curves}, "decisions": 2, "cooldown_steps": 8}
    rules = {
        rule: partial(requests, HelpSettings(rule=rule, **base))  # type: ignore[arg-type]
        for rule in ("both", "value", "progress")
    }
    episodes = [
        _episode(False, 40, value=[-5.0, -11.0, -12.0, -12.0]),
        _episode(True, 24, value=[-5.0, -11.0, None, -11.0]),
    ]
    found = report(rules, episodes, 20)
    assert set(found["paired"]) == {"value_vs_both", "progress_vs_both"}
    assert found["rules"]["both"]["lead_steps"]["median"] == 32.0  # asked at step 8
    assert found["rules"]["both"]["false_alarm_rate"]["count"] == 0
    # Poor from the start: asked at step 4, and at 12, when the cool-down of 8 is over.
    assert found["rules"]["progress"]["false_alarms_per_success"]["value"] == 2.0
    assert found["paired"]["progress_vs_both"]["gained"] == 1


def test_the_clock_asks_from_the_step_that_few_enough_successes_reach() -> None:
    # Successes decide last at 8, 12, 16 and 36; failures say nothing about the limit but that 40 exists.
    known = [_episode(True, 4 * n, value=[0.0] * n) for n in (3, 4, 5, 10)]
    known.append(_episode(False, 44, value=[0.0] * 11))
    asked = [clock(known, budget, 12)(known[-1]) for budget in (0.0, 0.25, 0.5, 1.0)]
    assert asked == [[40], [20, 32], [16, 28, 40], [0, 12, 24, 36]]
    assert clock(known[:-1], 0.0, 12)(known[-1]) == []  # no step is known that no success reaches


def test_intervals_are_the_same_every_time() -> None:
    rng = np.random.default_rng(1)
    episodes = [_episode(bool(rng.random() < 0.5), 80) for _ in range(30)]
    asked = [[int(rng.integers(80))] if rng.random() < 0.5 else [] for _ in episodes]
    assert judge(episodes, asked, 20) == judge(episodes, asked, 20)
