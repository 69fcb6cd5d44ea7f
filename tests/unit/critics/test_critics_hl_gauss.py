"""The histogram head: targets are distributions whose mean is the value."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.hl_gauss import HLGauss
from valueguide.critics.networks import CriticNetwork
from valueguide.errors import ConfigError

HEAD = HLGauss(101, -50.0, 0.0)
WIDTH = float(HEAD.edges[1] - HEAD.edges[0])


def test_the_support_reaches_three_sigmas_beyond_the_range():
    assert len(HEAD.centres) == 101
    assert pytest.approx(50 / (101 - 4.5)) == WIDTH
    assert float(HEAD.edges[0]) == pytest.approx(-50 - 2.25 * WIDTH)
    assert float(HEAD.edges[-1]) == pytest.approx(2.25 * WIDTH, abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.floats(-50, 0, width=32))
def test_a_target_sums_to_one_and_its_mean_is_the_value(value):
    mass = HEAD.target(torch.tensor(value))
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    assert (mass >= 0).all()
    assert (mass * HEAD.centres).sum().item() == pytest.approx(value, abs=0.01 * WIDTH + 1e-4)


def test_the_head_reads_back_what_it_was_trained_to_say():
    values = torch.linspace(-50, 0, 21)
    logits = HEAD.target(values).clamp_min(1e-30).log()
    torch.testing.assert_close(HEAD.mean(logits), values, atol=0.01 * WIDTH + 1e-4, rtol=0)


def test_values_outside_the_range_count_as_its_ends():
    outside = HEAD.target(torch.tensor([-80.0, 3.0]))
    torch.testing.assert_close(outside, HEAD.target(torch.tensor([-50.0, 0.0])))


def test_target_mass_by_hand():
    # A value in the middle of the middle bin: half a bin is 2/3 of sigma = 0.75 bins.
    # Phi(2/3) - Phi(-2/3) = erf(2 / (3 sqrt 2)) = 0.49501
    middle = float(HEAD.centres[50])
    assert HEAD.target(torch.tensor(middle))[50].item() == pytest.approx(0.49501, abs=2e-4)


def test_cross_entropy_of_uniform_logits_is_the_log_of_the_bins():
    loss = HEAD.loss(torch.zeros(2, 101), torch.tensor([-3.0, -40.0]))
    assert loss.tolist() == pytest.approx([math.log(101)] * 2, abs=1e-4)


def test_cross_entropy_by_hand():
    # logit 2 on the middle bin, 0 elsewhere: log of the partition sum is ln(100 + e^2) = 4.67849;
    # the target has 0.49501 there, so the loss is 4.67849 - 2 * 0.49501.
    logits = torch.zeros(101)
    logits[50] = 2.0
    loss = HEAD.loss(logits, HEAD.centres[50])
    expected = math.log(100 + math.exp(2)) - 2 * math.erf(2 / (3 * math.sqrt(2)))
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_a_network_with_bins_has_values_in_their_range():
    spec = CriticSpec(1, ("x",), state_dim=2)
    network = CriticNetwork(spec, NetworkConfig("state", hidden=8, bins=21, language_dim=3))
    features = torch.randn(5, network.encoders[0].dim)
    outputs = network.outputs(features, torch.zeros(5, 1, 1), torch.ones(5, 1, dtype=torch.bool))
    assert outputs.shape == (2, 5, 21)
    q = network.value(outputs)
    assert q.shape == (2, 5) and (q > -55).all() and (q < 5).all()


@pytest.mark.parametrize("wrong", [{"bins": 4}, {"bins": -1}, {"bins": 21, "value_range": (0.0, -50.0)}])
def test_a_histogram_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="bins|value_range"):
        NetworkConfig(**wrong)
