"""Measures that count episodes a number of times are those of the data repeated as often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.evaluation.ranking import spearman
from valueguide.evaluation.resample import auc_of, difference, figure, figure_within, mean_of, spearman_of

_VALUES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=150)
@given(_VALUES, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_counting_is_repeating(rows: list[tuple[int, int, int]], counts: list[int]) -> None:
    a, b, episode = (np.array(column) for column in zip(*rows, strict=True))
    weight = np.array(counts, float)
    again = np.repeat(np.arange(len(rows)), weight[episode].astype(int))
    found, wanted = spearman_of(a, b, episode)(weight), float("nan")
    if len(again):
        wanted = spearman(a[again], b[again])
        assert mean_of(a.astype(float), episode)(weight) == pytest.approx(a[again].mean())
    assert found == pytest.approx(wanted, nan_ok=True)


@given(_VALUES.map(lambda rows: [(v, won > 0) for v, won, _ in rows]), st.data())
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]], data: st.DataObject) -> None:
    values, won = np.array([v for v, _ in rows], float), np.array([w for _, w in rows], bool)
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))), float)
    above = total = 0.0
    for i in np.flatnonzero(won):
        for j in np.flatnonzero(~won):
            pairs = counts[i] * counts[j]
            total += pairs
            above += pairs * ((values[i] > values[j]) + 0.5 * (values[i] == values[j]))
    wanted = above / total if total else float("nan")
    assert auc_of(values, won)(counts) == pytest.approx(wanted, nan_ok=True)


def test_by_hand() -> None:
    # Successes 3 and 1, failures 2 and 0: of four pairs only 1 < 2 is out of order.
    values, won = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    assert auc_of(values, won)(np.ones(4)) == 0.75
    assert spearman_of(values, np.array([4.0, 3.0, 2.0, 1.0]), np.arange(4))(np.ones(4)) == pytest.approx(0.8)
    means = difference(mean_of(values[won], np.array([0, 1])), mean_of(values[~won], np.array([2, 3])))
    assert means(np.ones(4)) == 1.0
    assert means(np.array([3.0, 1.0, 1.0, 0.0])) == 2.5 - 2.0


def test_a_figure_has_an_interval_over_episodes() -> None:
    values = np.arange(20, dtype=float)
    whole = figure(mean_of(values, np.arange(20)), 20)
    assert whole["value"] == 9.5 and whole["episodes"] == 20
    low, high = whole["ci95"]
    error = values.std() / np.sqrt(20)  # 1.29
    assert low == pytest.approx(9.5 - 1.96 * error, abs=0.3) and high == pytest.approx(
        9.5 + 1.96 * error, abs=0.3
    )
    # The same twenty values in two episodes: far less is known.
    low, high = figure(mean_of(values, np.repeat([0, 1], 10)), 2)["ci95"]
    assert (low, high) == (4.5, 14.5)
    assert figure(mean_of(values, np.zeros(20, int)), 1) == {"value": 9.5, "ci95": None, "episodes": 1}
    assert figure(mean_of(values[:0], np.zeros(0, int)), 0) == {"value": None, "ci95": None, "episodes": 0}
    one_kind = auc_of(np.array([1.0, 2.0]), np.array([True, True]))
    assert figure(one_kind, 2) == {"value": None, "ci95": None, "episodes": 2}


def test_draws_in_which_a_measure_is_undefined_do_not_count() -> None:
    auc = figure(auc_of(np.array([1.0, 0.0]), np.array([True, False])), 2)
    assert auc == {"value": 1.0, "ci95": [1.0, 1.0], "episodes": 2}


def test_within_tasks_is_the_mean_of_those_where_it_is_defined() -> None:
    def auc(*values: float) -> tuple[object, int]:
        won = np.arange(len(values)) % 2 == 0
        return auc_of(np.array(values), won), len(values)

    found = figure_within({"a": auc(1, 0, 1, 0), "b": auc(0, 1, 0, 1), "c": auc(7)})  # type: ignore[dict-item]
    assert found["value"] == 0.5 and found["episodes"] == 8
    assert found["tasks"] == {"a": 1.0, "b": 0.0, "c": None} and found["ci95"] == [0.5, 0.5]
    alone = figure_within({"c": auc(7)})  # type: ignore[dict-item]
    assert (alone["value"], alone["ci95"], alone["episodes"]) == (None, None, 0)
    assert figure_within({})["value"] is None


def test_a_task_of_one_episode_leaves_the_interval_open() -> None:
    three = mean_of(np.array([1.0, 2.0, 3.0]), np.arange(3))
    one = mean_of(np.array([5.0]), np.zeros(1, int))
    found = figure_within({"a": (three, 3), "b": (one, 1)})
    assert found["value"] == 3.5 and found["ci95"] is None and found["episodes"] == 4
    low, high = figure_within({"a": (three, 3)})["ci95"]
    assert low < 2.0 < high
