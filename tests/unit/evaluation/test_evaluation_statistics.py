"""Intervals and tests against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.evaluation.statistics import holm, mcnemar, paired_difference, wilson


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z = 1.96: centre (0.8 + 0.19207) / 1.38414, half 1.96 * sqrt(0.016 + 0.0096) / 1.38414
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=2e-4), pytest.approx(0.9433, abs=2e-4))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0


def test_mcnemar_by_hand() -> None:
    # 1 against 5 discordant pairs: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_paired_difference_averages_tasks_and_not_episodes() -> None:
    base = {("a", i): False for i in range(10)} | {("b", i): True for i in range(2)}
    guided = {("a", i): True for i in range(10)} | {("b", i): False for i in range(2)}
    out = paired_difference(base, guided)
    assert out["delta"] == pytest.approx(0.0)  # +1 on a, -1 on b
    assert (out["n"], out["gained"], out["lost"]) == (12, 10, 2)
    assert out["p"] == pytest.approx(mcnemar(2, 10))


def test_paired_interval_covers_a_clear_gain_only() -> None:
    rng = np.random.default_rng(0)
    base = {("a", i): bool(rng.random() < 0.3) for i in range(100)}
    better = {key: hit or bool(rng.random() < 0.4) for key, hit in base.items()}
    gain, none = paired_difference(base, better), paired_difference(base, base)
    assert gain["ci95"][0] > 0 < gain["delta"] and gain["p"] < 1e-3
    assert none["delta"] == 0 and none["ci95"] == [0.0, 0.0] and none["p"] == 1.0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.data())
def test_wilson_contains_the_rate(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_never_smaller_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b - 1e-12 and a <= 1 for a, b in zip(adjusted, p, strict=True))
    order = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= -1e-12)
