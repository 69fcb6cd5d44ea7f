"""The objectives against numbers worked out by hand, and what must not receive a gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.critics import losses

# Two members, two transitions, two sampled next actions. Minimum over members first: rows of minima are
# [-3, -4] and [-1, -6], so the maxima over actions are -3 and -1. (Maximum first would give -2 and -1.)
NEXT_Q = torch.tensor([[[-3.0, -2.0], [-1.0, -5.0]], [[-2.0, -4.0], [-0.5, -6.0]]])


def test_td_target_takes_the_minimum_over_members_before_the_maximum_over_actions():
    target = losses.td_target(torch.tensor([-1.0, -1.0]), torch.tensor([0.98, 0.5]), NEXT_Q)
    assert target.tolist() == pytest.approx([-1 + 0.98 * -3, -1 + 0.5 * -1])


@pytest.mark.parametrize("following", [-50.0, 0.0, 1e6])
def test_a_terminal_target_is_the_reward_whatever_follows(following):
    reward, discount = torch.tensor([0.0, -50.0]), torch.zeros(2)
    assert losses.td_target(reward, discount, torch.full((2, 2, 3), following)).tolist() == [0.0, -50.0]
    assert losses.value_target(reward, discount, torch.full((2,), following)).tolist() == [0.0, -50.0]


def test_no_gradient_flows_into_the_target_network_or_the_actor_through_the_backup():
    next_q = NEXT_Q.clone().requires_grad_()
    next_value = torch.zeros(2, requires_grad=True)
    assert not losses.td_target(torch.zeros(2), torch.ones(2), next_q).requires_grad
    assert not losses.value_target(torch.zeros(2), torch.ones(2), next_value).requires_grad


def test_td_loss_is_the_mean_square_without_a_half():
    q = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    # errors against the targets (-1, -1): 0, -1, -2, 1 -> (0 + 1 + 4 + 1) / 4
    assert losses.td_loss(q, torch.tensor([-1.0, -1.0])).item() == 1.5


def test_value_target_is_one_step_of_the_bellman_equation():
    target = losses.value_target(torch.tensor([-1.0]), torch.tensor([0.9]), torch.tensor([-10.0]))
    assert target.item() == pytest.approx(-10.0)


def test_expectile_loss_weighs_values_that_are_too_low_more():
    q, value = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0], requires_grad=True)
    loss = losses.expectile_loss(q, value, 0.7)
    # 0.7 * 1 for Q above V, 0.3 * 4 for Q below, mean of the two
    assert loss.item() == pytest.approx((0.7 + 1.2) / 2)
    loss.backward()
    # d/dV w (Q - V)^2 = -2 w (Q - V), halved by the mean: descent lifts V towards the first, lowers the other
    assert value.grad.tolist() == pytest.approx([-0.7, 0.6])


def test_expectile_loss_does_not_move_the_critic():
    q = torch.tensor([1.0], requires_grad=True)
    losses.expectile_loss(q, torch.zeros(1, requires_grad=True), 0.7).backward()
    assert q.grad is None


def test_the_uniform_log_density_of_seven_dimensions():
    assert losses.uniform_log_density(7) == pytest.approx(-4.852, abs=5e-4)


def _conservative(q_policy, mc_return, q_uniform=((-2.0,),)):
    """One member, one transition, one action dimension."""
    q_data = torch.tensor([[-1.0]], requires_grad=True)
    q_uniform = torch.tensor([q_uniform], requires_grad=True)
    q_policy = torch.tensor([[q_policy]], requires_grad=True)
    density = torch.full((1, q_policy.shape[-1]), math.log(0.25))
    loss = losses.conservative_loss(q_data, q_uniform, q_policy, density, torch.tensor([mc_return]), 1)
    loss.backward()
    return loss.item(), q_data.grad, q_uniform.grad, q_policy.grad


def test_conservative_loss_by_hand():
    # uniform sample: -2 - ln 1/2; policy sample: Q = -3 is above G = -4, so -3 - ln 1/4.
    # exp of both: 2 e^-2 = 0.27067, 4 e^-3 = 0.19915; log of the sum 0.46982 is -0.75541; minus Q = -1.
    loss, data, uniform, policy = _conservative([-3.0], -4.0)
    assert loss == pytest.approx(0.24459, abs=2e-5)
    assert data.item() == -1
    assert uniform.item() == pytest.approx(0.27067 / 0.46982, abs=1e-4)
    assert policy.item() == pytest.approx(0.19915 / 0.46982, abs=1e-4)


def test_calibration_lifts_a_policy_sample_to_the_return_and_stops_its_gradient():
    # Q = -3 is below G = -2.5: the sample counts as 4 e^-2.5 = 0.32834; log(0.27067 + 0.32834) = -0.51247
    loss, _, uniform, policy = _conservative([-3.0], -2.5)
    assert loss == pytest.approx(1 - 0.51247, abs=2e-5)
    assert policy.item() == 0
    assert uniform.item() == pytest.approx(0.27067 / 0.59901, abs=1e-4)


def test_uniform_samples_are_never_lifted():
    _, _, uniform, policy = _conservative([-30.0], -1.0, ((-40.0, -2.0),))
    loss, *_ = _conservative([-30.0], -1.0, ((-40.0, -2.0),))
    # 2 e^-40 stays negligible; lifted it would add 2 e^-1
    assert loss == pytest.approx(1 + math.log(2 * math.exp(-2) + 4 * math.exp(-1)), abs=1e-5)
    assert (uniform > 0).all() and policy.item() == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=5), st.floats(-50, 0, width=32))
def test_an_unknown_return_reduces_to_plain_cql(q_policy, q_uniform):
    loss, *_ = _conservative(q_policy, -math.inf, ((q_uniform,),))
    terms = [math.log(2) + q_uniform] + [math.log(4) + q for q in q_policy]
    top = max(terms)
    expected = top + math.log(sum(math.exp(t - top) for t in terms)) + 1
    assert loss == pytest.approx(expected, abs=1e-3)


def test_no_gradient_into_the_actor_through_the_log_density():
    density = torch.zeros(1, 1, requires_grad=True)
    q = torch.zeros(1, 1, 1, requires_grad=True)
    losses.conservative_loss(torch.zeros(1, 1), q, q, density, torch.tensor([-math.inf]), 1).backward()
    assert density.grad is None


def test_actor_loss_by_hand():
    q = torch.tensor([[-1.0, -4.0], [-3.0, -2.0]], requires_grad=True)
    temperature = torch.tensor(0.5, requires_grad=True)
    density = torch.tensor([2.0, -2.0], requires_grad=True)
    loss = losses.actor_loss(q, density, temperature)
    # (0.5 * 2 - -3 + 0.5 * -2 - -4) / 2
    assert loss.item() == 3.5
    loss.backward()
    assert temperature.grad is None
    assert density.grad.tolist() == [0.25, 0.25]
    assert q.grad.tolist() == [[0.0, -0.5], [-0.5, 0.0]]


@pytest.mark.parametrize(("density", "loss", "grows"), [([8.0, 8.0], -2.0, True), ([5.0, 5.0], 4.0, False)])
def test_temperature_grows_while_the_entropy_is_below_its_target(density, loss, grows):
    log_temperature = torch.tensor(math.log(2.0), requires_grad=True)
    value = losses.temperature_loss(log_temperature, torch.tensor(density), target_entropy=-7.0)
    value.backward()
    # entropy -8 is below -7, entropy -5 above it
    assert value.item() == pytest.approx(loss)
    assert (log_temperature.grad.item() < 0) is grows
