"""Advantage weights: golden values, the rule for corrections, and what the judge measures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.online.advantage import WeightSettings, advantage_weights, effective_sample_size

NONE = np.zeros(4, bool)


def test_golden_weights():
    advantage = np.array([-1.0, 1.0, -1.0, 1.0], np.float32)  # Standard deviation 1.
    weights = advantage_weights(advantage, NONE, WeightSettings(beta=0.5, epsilon=3.0))
    np.testing.assert_allclose(weights, np.exp([-2.0, 2.0, -2.0, 2.0]), rtol=1e-6)


def test_both_bounds_hold_and_equal_advantages_weigh_one():
    advantage = np.array([-10.0, 0.0, 0.0, 10.0], np.float32)
    weights = advantage_weights(advantage, NONE, WeightSettings(beta=0.01, epsilon=2.0))
    np.testing.assert_allclose(weights, np.exp([-2.0, 0.0, 0.0, 2.0]), rtol=1e-6)
    np.testing.assert_array_equal(
        advantage_weights(np.full(4, 3.0, np.float32), NONE, WeightSettings()), np.ones(4)
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("advantage", [np.exp(-1), np.e]), ("at_least_one", [1.0, np.e]), ("one", [1.0, 1.0])],
)
def test_corrections_are_weighted_by_rule(rule, expected):
    advantage = np.array([-1.0, 1.0, -1.0, 1.0], np.float32)
    human = np.array([True, True, False, False])
    weights = advantage_weights(advantage, human, WeightSettings(corrections=rule))
    np.testing.assert_allclose(weights, [*expected, np.exp(-1), np.e], rtol=1e-6)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.floats(0.1, 5), st.floats(0.1, 5)
)
def test_weights_are_bounded_and_follow_the_order_of_advantages(values, beta, epsilon):
    advantage = np.array(values, np.float32)
    weights = advantage_weights(advantage, np.zeros(len(values), bool), WeightSettings(beta, epsilon))
    assert (weights >= np.exp(-epsilon) * 0.999).all() and (weights <= np.exp(epsilon) * 1.001).all()
    order = np.argsort(advantage, kind="stable")
    assert (np.diff(weights[order]) >= -1e-5).all()


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.ones(5, np.float32)) == pytest.approx(5)
    assert effective_sample_size(np.array([1, 0, 0, 0], np.float32)) == pytest.approx(1)
    assert effective_sample_size(np.array([3, 1], np.float32)) == pytest.approx(1.6)


def test_bad_settings_and_numbers_are_named():
    with pytest.raises(ConfigError, match="beta"):
        WeightSettings(beta=0.0)
    with pytest.raises(ConfigError, match="corrections"):
        WeightSettings(corrections="always")
    with pytest.raises(DataError, match="finite"):
        advantage_weights(np.array([np.nan], np.float32), np.zeros(1, bool), WeightSettings())
