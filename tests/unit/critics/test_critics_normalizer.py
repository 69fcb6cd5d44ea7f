"""One normaliser for training and serving: golden vectors, clipping with its count, JSON."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from valueguide.critics.normalizer import EDGE, Normalizer
from valueguide.errors import CheckpointError, DataError

# Three poses: metres, radians, gripper.
ACTIONS = np.array([[-0.02, 0.0, 0.0], [0.06, 0.5, 1.0], [0.0, 0.25, 0.0]], np.float32)


def test_min_max_golden_vectors():
    normalizer = Normalizer.min_max(ACTIONS)
    # centre (0.02, 0.25, 0.5), half range (0.04, 0.25, 0.5)
    out = normalizer(torch.tensor([[0.0, 0.25, 0.75], [0.04, 0.3, 0.0]]))
    np.testing.assert_allclose(out.numpy(), [[-0.5, 0, 0.5], [0.5, 0.2, -1 + EDGE]], atol=1e-6)


def test_mean_std_golden_vectors():
    normalizer = Normalizer.mean_std(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    # mean (2, 5), deviation (1, constant: left unscaled), never clipped
    np.testing.assert_allclose(normalizer(torch.tensor([5.0, 5.5])).numpy(), [3, 0.5], atol=1e-6)
    assert normalizer.clip_rate == 0


def test_a_constant_column_is_only_shifted():
    normalizer = Normalizer.min_max(np.full((4, 1), 0.3, np.float32))
    assert normalizer(torch.tensor([0.3, 0.8])).tolist() == pytest.approx([0, 0.5])


def test_clipping_stays_inside_the_edge_and_is_counted():
    normalizer = Normalizer.min_max(ACTIONS)
    out = normalizer(torch.tensor([[0.02, 0.25, 0.5], [1.0, -1.0, 0.5]]))
    assert out[1].tolist() == pytest.approx([1 - 1e-5, -1 + 1e-5, 0])
    assert torch.atanh(out).isfinite().all()
    assert (normalizer.seen, normalizer.clipped) == (6, 2)
    normalizer(torch.zeros(2, 3) + torch.tensor([0.02, 0.25, 0.5]))
    assert normalizer.clip_rate == pytest.approx(2 / 12)


def test_another_action_scale_raises_the_clip_rate():
    normalizer = Normalizer.min_max(ACTIONS)
    normalizer(torch.from_numpy(ACTIONS * 100))
    assert normalizer.clip_rate > 0.5


def test_float64_comes_out_as_float32():
    assert Normalizer.mean_std(ACTIONS)(torch.zeros(3, dtype=torch.float64)).dtype == torch.float32


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, (6, 2), elements=st.floats(-1, 1, width=32)))
def test_training_data_is_never_far_out(values):
    out = Normalizer.min_max(values, clip=False)(torch.from_numpy(values))
    assert out.abs().max() <= 1 + 1e-3


def test_the_json_round_trip_is_exact():
    normalizer = Normalizer.min_max(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    x = torch.randn(20, 4)
    assert torch.equal(again(x), normalizer(x))
    assert again.clip and again.to_json() == normalizer.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"offset": None},
        {"offset": [0.0]},
        {"offset": [0.0, "left"]},
        {"offset": [0.0, float("nan")]},
        {"scale": [1.0, 0.0]},
        {"scale": [1.0, -1.0]},
    ],
)
def test_a_damaged_entry_is_refused_with_its_place(change):
    raw = {"offset": [0.0, 0.0], "scale": [1.0, 1.0], "clip": True} | change
    with pytest.raises(CheckpointError, match="manifest.json: action: expected"):
        Normalizer.from_json(raw, "manifest.json: action")


@pytest.mark.parametrize("field", ["offset", "scale", "clip"])
def test_a_missing_field_is_named(field):
    raw = {"offset": [0.0], "scale": [1.0], "clip": True}
    del raw[field]
    with pytest.raises(CheckpointError, match=field):
        Normalizer.from_json(raw)


@pytest.mark.parametrize("fit", [Normalizer.min_max, Normalizer.mean_std])
@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.zeros(3), np.array([[np.nan, 0.0]])])
def test_data_without_statistics_is_refused(fit, values):
    with pytest.raises(DataError, match="finite"):
        fit(values.astype(np.float32))
