"""The share of actions outside the range: an alarm that is silent on the training data itself."""

import numpy as np
import pytest
import torch

from valueguide.critics.normalizer import EDGE, Normalizer


def _saturated():
    """Most numbers sit at an end of the range, as grippers and sticks do."""
    rng = np.random.default_rng(0)
    stick = np.clip(rng.normal(0, 0.1, 400), -0.03, 0.03)
    return np.stack([stick, rng.integers(0, 2, 400)], axis=1).astype(np.float32)


def test_actions_at_the_ends_of_the_range_are_clipped_but_no_alarm():
    values = _saturated()
    normalizer = Normalizer.min_max(values)
    out = normalizer(torch.from_numpy(values))
    assert (out.abs() >= 1 - 2 * EDGE).float().mean() > 0.5
    assert out.abs().max() <= 1 - EDGE + 1e-7
    assert normalizer.clip_rate == 0


def test_another_scale_is_an_alarm_however_small_the_excess():
    values = _saturated()
    normalizer = Normalizer.min_max(values)
    normalizer(torch.from_numpy(values * 1.05))
    assert normalizer.clip_rate > 0.3


def test_masked_steps_are_not_counted():
    normalizer = Normalizer.min_max(np.array([[0.2], [0.4]], np.float32))
    chunk = torch.tensor([[[0.3], [0.0]], [[0.9], [0.0]]])  # the second steps are padding
    out = normalizer(chunk, torch.tensor([[True, False], [True, False]]))
    assert out.shape == chunk.shape
    assert (normalizer.seen, normalizer.clipped) == (2, 1)


def test_quantiles_golden_vectors():
    values = np.arange(101, dtype=np.float32)[:, None]
    # 10 % and 90 % of 0..100 are 10 and 90: centre 50, half range 40
    normalizer = Normalizer.quantiles(values, 0.1, 0.9)
    assert normalizer(torch.tensor([[70.0], [10.0], [95.0]])).flatten().tolist() == pytest.approx(
        [0.5, -1 + EDGE, 1 - EDGE], abs=1e-6
    )
    assert (normalizer.seen, normalizer.clipped) == (3, 1)


def test_quantiles_are_not_squeezed_by_an_outlier():
    values = np.append(np.linspace(-1, 1, 2000), 1000.0).astype(np.float32)[:, None]
    robust, naive = Normalizer.quantiles(values), Normalizer.min_max(values)
    assert robust.scale[0] == pytest.approx(1, rel=0.01)
    assert naive.scale[0] > 400
