"""Plots: what a reader must be able to read."""

from __future__ import annotations

import re

import pytest

from valueguide.evaluation.plots import curves


@pytest.mark.parametrize("count", [1, 5, 24, 200])
def test_numbers_under_an_axis_do_not_lie_on_each_other(count: int) -> None:
    line = [(6.5 + number, 0.5, 0.4, 0.6) for number in range(count)]
    plot = curves({"p99": line}, {}, "minutes")
    base = max(float(y) for y in re.findall(r'y="([0-9.]+)" class="end"', plot))
    numbers = re.findall(r'<text x="([0-9.]+)" y="([0-9.]+)" class="label">([0-9.]+)</text>', plot)
    places = [float(x) for x, y, _ in numbers if float(y) > base]
    assert places and numbers[0][2] == "6.5"
    assert all(right - left > 30 for left, right in zip(places, places[1:], strict=False))
    assert count > 5 or len(places) == count
