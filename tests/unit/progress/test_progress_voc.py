"""VOC against numbers worked out by hand and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from valueguide.progress.voc import average_ranks, value_order_correlation

NAN = math.nan


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1, 2, 3, 4], 1.0),
        ([40, 30, 20, 10], -1.0),
        ([0, 0.1, 50, 99.9], 1.0),  # only ranks count
        # d = 0, 1, -1, 0: 1 - 6*2/(4*15) = 0.8
        ([1, 3, 2, 4], 0.8),
        # ranks 1.5 1.5 3 4; covariance (-1)(-1.5) + (-1)(-.5) + .5*.5 + 1.5*1.5 = 4.5; squares 4.5 and 5
        ([10, 10, 20, 30], 4.5 / math.sqrt(4.5 * 5)),
        # ranks 1 3 3 3: covariance .5*(-.5+.5+1.5)+1.5*1.5 = 3; squares 3 and 5
        ([0, 7, 7, 7], 3 / math.sqrt(15)),
        ([NAN, 1, 2, NAN, 3], 1.0),
        ([5, 5, 5], None),
        ([NAN, 5, NAN], None),
        ([NAN, NAN], None),
        ([], None),
    ],
)
def test_by_hand(values: list[float], expected: float | None) -> None:
    found = value_order_correlation(np.array(values, float))
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8).map(float) | st.floats(0, 100), min_size=2, max_size=40))
def test_equals_scipy(values: list[float]) -> None:
    array = np.array(values)
    assert np.array_equal(average_ranks(array), rankdata(array))
    found = value_order_correlation(array)
    if len(set(values)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(array, np.arange(len(array))).statistic, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=2, max_size=30))
def test_reversing_time_changes_the_sign(values: list[int]) -> None:
    forward = value_order_correlation(np.array(values, float))
    backward = value_order_correlation(np.array(values[::-1], float))
    assert (forward is None) == (backward is None)
    if forward is not None and backward is not None:
        assert forward == pytest.approx(-backward, abs=1e-12)
