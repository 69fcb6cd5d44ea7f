"""Rank correlations and regrets against numbers worked out by hand, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from valueguide.evaluation.ranking import (
    compare,
    first,
    greedy,
    kendall,
    rank_correlation,
    rank_critics,
    regret,
    spearman,
    uniform,
    within_state,
)

_SERIES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=12)


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 and 2 1 4 3: d² sums to 4, so 1 - 6*4/(4*15)
    assert spearman(np.array([1.0, 5, 6, 9]), np.array([3.0, 2, 8, 7])) == pytest.approx(0.6)
    # A tie takes the mean rank: ranks 1.5 1.5 3 and 1 2 3
    assert spearman(np.array([0.0, 0, 1]), np.array([1.0, 2, 3])) == pytest.approx(np.sqrt(3) / 2)


def test_kendall_by_hand() -> None:
    # Of 6 pairs 4 agree and 2 do not.
    assert kendall(np.array([1.0, 5, 6, 9]), np.array([3.0, 2, 8, 7])) == pytest.approx(2 / 6)
    # tau-b: 2 agreeing pairs; 2 of 3 differ in the first, 3 of 3 in the second
    assert kendall(np.array([0.0, 0, 1]), np.array([1.0, 2, 3])) == pytest.approx(2 / np.sqrt(6))


@given(_SERIES)
def test_both_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(spearman(a, b)) and np.isnan(kendall(a, b))
        return
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 5))
@settings(max_examples=30)
def test_a_draw_of_states_is_counted_as_if_its_candidates_were_listed(some: list[int], seed: int) -> None:
    from valueguide.evaluation.ranking import _kendall_of

    q, truth = np.random.default_rng(seed).integers(0, 4, (2, 4, 3)).astype(float)
    drawn = _kendall_of(q, truth)(np.array(some))
    assert drawn == pytest.approx(kendall(q[some], truth[some]), nan_ok=True)


@pytest.mark.parametrize("measure", ["spearman", "kendall"])
def test_correlation_is_per_task_and_their_mean(measure: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 5))
    tasks = ["a"] * 6 + ["b"] * 6
    q = np.vstack([truth[:6], -truth[6:]])  # perfect on one task, upside down on the other
    found = rank_correlation(tasks, q, truth, measure)
    assert found["tasks"]["a"] == {"value": 1.0, "ci95": [1.0, 1.0], "states": 6}
    assert found["tasks"]["b"]["value"] == -1.0 and found["mean"] == 0.0 and found["ci95"] == [0.0, 0.0]


def test_intervals_of_a_correlation_shrink_with_states_and_hold_the_value() -> None:
    rng = np.random.default_rng(1)

    def width(n: int) -> float:
        truth = rng.normal(size=(n, 4))
        found = rank_correlation(["a"] * n, truth + rng.normal(size=(n, 4)), truth)
        low, high = found["ci95"]
        assert low < found["mean"] < high
        return high - low

    assert width(80) < 0.6 * width(8)


def test_a_task_without_differences_has_no_correlation_and_does_not_count() -> None:
    truth = np.array([[1.0, 2, 3], [2, 3, 4], [5, 5, 5], [5, 5, 5]])
    found = rank_correlation(["a", "a", "b", "b"], truth, truth)
    assert found["tasks"]["b"] == {"value": None, "ci95": None, "states": 2} and found["mean"] == 1.0
    nothing = rank_correlation(["b"] * 2, truth[2:], truth[2:])
    assert nothing["mean"] is None and nothing["ci95"] is None


def test_within_a_state_only_its_own_candidates_are_compared() -> None:
    # States differ in level, so that the pooled correlation is high although the order within is wrong.
    truth = np.array([[0.0, 1, 2], [10, 11, 12], [20, 21, 22]])
    q = np.array([[2.0, 1, 0], [12, 11, 10], [22, 21, 20]])
    assert rank_correlation(["a"] * 3, q, truth)["mean"] > 0.7
    assert within_state(["a"] * 3, q, truth) == {"mean": -1.0, "ci95": [-1.0, -1.0], "states": 3}
    flat = np.ones((2, 3))
    assert within_state(["a", "b"], flat, flat) == {"mean": None, "ci95": None, "states": 0}


def test_choices() -> None:
    np.testing.assert_array_equal(greedy(np.array([[1.0, 3, 3], [2, 0, 1]])), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(first(2, 3), [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(uniform(1, 4), [[0.25] * 4])


def test_regret_by_hand() -> None:
    truth = np.array([[0.0, 1.0], [1.0, 0.5], [1.0, 1.0]])
    tasks = ["a", "a", "b"]
    perfect = regret(tasks, truth, greedy(truth))
    assert perfect["mean"] == 0.0 and perfect["ci95"] == [0.0, 0.0] and perfect["value"] == 1.0
    zero = regret(tasks, truth, first(3, 2))
    assert zero["tasks"] == {"a": 0.5, "b": 0.0} and zero["mean"] == pytest.approx(0.25)
    assert zero["value"] == pytest.approx((0.5 + 1.0) / 2)
    random = regret(tasks, truth, uniform(3, 2))
    assert random["tasks"]["a"] == pytest.approx((0.5 + 0.25) / 2)
    assert zero["ci95"][0] <= zero["mean"] <= zero["ci95"][1]


def test_a_comparison_is_paired_by_state() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=(40, 1)) * 10  # states differ far more than the candidates in them
    truth = level + np.array([[0.0, 1.0]])
    worse, better = greedy(np.tile([[1.0, 0]], (40, 1))), greedy(truth)
    found = compare(["a"] * 40, truth, worse, better)
    assert found["delta"] == pytest.approx(1.0) and found["ci95"] == pytest.approx([1.0, 1.0])
    assert (found["better"], found["worse"], found["n"]) == (40, 0, 40)
    back = compare(["a"] * 40, truth, better, worse)
    assert back["delta"] == pytest.approx(-1.0) and back["worse"] == 40


def test_equal_values_in_another_order_are_neither_better_nor_worse() -> None:
    truth = np.tile(np.array([[0.1, 0.2, 0.3]]), (3, 1))
    third = np.full((3, 3), 1 / 3)
    found = compare(["a"] * 3, truth, third, third[:, ::-1])
    assert (found["better"], found["worse"], found["delta"]) == (0, 0, 0.0)


def test_the_whole_report_holds_every_critic_choice_and_pair() -> None:
    rng = np.random.default_rng(3)
    success = (rng.random((20, 4)) < 0.5).astype(float)
    returns = success - 0.01 * rng.random((20, 4))
    q = {"good": returns + 0.01 * rng.normal(size=(20, 4)), "bad": rng.normal(size=(20, 4))}
    found = rank_critics(["a", "b"] * 10, q, success, returns)
    assert (found["states"], found["k"]) == (20, 4)
    assert found["informative"] == int((success.min(axis=1) != success.max(axis=1)).sum())
    assert found["critics"]["good"]["spearman"]["mean"] > 0.8 > found["critics"]["bad"]["spearman"]["mean"]
    assert list(found["regret"]) == ["random", "candidate_0", "good", "bad"]
    assert found["regret"]["good"]["success"]["mean"] < 0.05 < found["regret"]["bad"]["success"]["mean"]
    assert list(found["paired"]) == [
        "random_vs_good",
        "candidate_0_vs_good",
        "random_vs_bad",
        "candidate_0_vs_bad",
        "good_vs_bad",
    ]
    gap = found["regret"]["good"]["success"]["mean"] - found["regret"]["bad"]["success"]["mean"]
    assert found["paired"]["good_vs_bad"]["success"]["delta"] == pytest.approx(gap)
    assert found == rank_critics(["a", "b"] * 10, q, success, returns)  # seeded
