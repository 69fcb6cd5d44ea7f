"""Gains of progress by hand."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.progress.gains import above_task_mean, progress_gain

NAN = float("nan")


def test_gains_by_hand() -> None:
    value = np.array([0.0, 0.1, 0.3, 0.6, 0.5, NAN, 0.2], np.float32)
    start, end = np.array([0, 4]), np.array([4, 7])
    found = progress_gain(value, start, end, 2)
    assert found == pytest.approx([0.3, 0.5, 0.3, 0.0, -0.3, NAN, 0.0], nan_ok=True)
    assert progress_gain(value, start, end, 99)[:4] == pytest.approx([0.6, 0.5, 0.3, 0.0])
    with pytest.raises(ConfigError, match="chunk"):
        progress_gain(value, start, end, 0)


def test_a_gain_is_judged_by_what_is_usual_for_its_task() -> None:
    gain = np.array([0.1, 0.3, NAN, 0.8, 0.8], np.float32)
    found = above_task_mean(gain, np.array([0, 0, 0, 1, 1]))
    assert found == pytest.approx([-0.1, 0.1, NAN, 0.0, 0.0], nan_ok=True, abs=1e-6)
