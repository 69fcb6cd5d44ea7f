"""STARC distance: exact numbers, what it must not see, bounds, and the measure over episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from valueguide.errors import DataError
from valueguide.evaluation.starc import Transitions, principal_features, starc_distance, starc_measure

Array = NDArray[np.float64]


def _chain(states: list[int], following: list[int], discount: float) -> Transitions:
    """Transitions among numbered states, with a potential for each."""
    count = max(*states, *following) + 1
    one = np.eye(count)
    return Transitions(one[states], one[following], np.full(len(states), discount))


#: Two states. From 0: stay, go; from 1: stay, back.
WORLD = _chain([0, 0, 1, 1], [0, 1, 1, 0], 0.5)


def _random(seed: int, count: int = 40, states: int = 6) -> tuple[np.random.Generator, Transitions]:
    rng = np.random.default_rng(seed)
    one = np.eye(states)
    chosen, following = rng.integers(states, size=(2, count))
    return rng, Transitions(one[chosen], one[following], np.full(count, 0.9))


def test_by_hand() -> None:
    """Shaping adds (-p/2, q/2 - p, -q/2, p/2 - q) to the rewards of WORLD, for any p, q. Orthogonal to both
    columns (-1/2, -1, 0, 1/2) and (0, 1/2, -1/2, -1) are u = (-2, 1, 1, 0) and v = (1, 0, -2, 1)."""
    for reward in ((-0.5, -1.0, 0.0, 0.5), (0.0, 0.5, -0.5, -1.0)):
        assert np.dot(reward, (-2, 1, 1, 0)) == 0 and np.dot(reward, (1, 0, -2, 1)) == 0
    u, v = np.array([-2.0, 1, 1, 0]), np.array([1.0, 0, -2, 1])
    assert starc_distance(u, v, WORLD) == pytest.approx(0.5 * np.sqrt(2 - 2 * (-4 / 6)))  # u v = -4, both 6
    assert starc_distance(u, u, WORLD) == 0.0
    assert starc_distance(u, -u, WORLD) == pytest.approx(1.0)
    # Only "go" pays in the first, only "stay in 1" in the second. Their canonical forms are projections onto
    # (u, v): with Gram matrix (6, -4; -4, 6), inverse (6, 4; 4, 6) / 20, and (u, v) = (1, 0) and (1, -2):
    # <a, a> = 6/20, <b, b> = (6 - 16 + 24)/20 = 14/20, <a, b> = (6 - 8)/20 = -2/20.
    a, b = np.array([0.0, 1, 0, 0]), np.array([0.0, 0, 1, 0])
    cosine = -2 / np.sqrt(6 * 14)
    assert starc_distance(a, b, WORLD) == pytest.approx(0.5 * np.sqrt(2 - 2 * cosine))


@given(st.integers(0, 2**16), st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_shaping_factor_and_constant_are_not_seen(seed: int, factor: float, constant: float) -> None:
    rng, world = _random(seed)
    reward, other = rng.normal(size=(2, 40))
    potential = 5 * rng.normal(size=6)
    shaping = world.discount * (world.following @ potential) - world.features @ potential
    same = factor * reward + shaping + constant
    assert starc_distance(reward, same, world) < 1e-4
    assert starc_distance(same, other, world) == pytest.approx(starc_distance(reward, other, world), abs=1e-4)


@given(st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_bounds_symmetry_and_triangle(seed: int) -> None:
    rng, world = _random(seed)
    a, b, c = rng.normal(size=(3, 40))
    distances = [starc_distance(x, y, world) for x, y in ((a, b), (b, c), (a, c))]
    assert all(0 <= d <= 1 for d in distances)
    assert starc_distance(b, a, world) == pytest.approx(distances[0])
    assert distances[2] <= distances[0] + distances[1] + 1e-9
    assert starc_distance(a, -a, world) == pytest.approx(1.0)


def test_a_reward_that_is_nothing_but_shaping() -> None:
    rng, world = _random(3)
    potential = rng.normal(size=6)
    nothing = world.discount * (world.following @ potential) - world.features @ potential
    assert starc_distance(nothing, rng.normal(size=40), world) == 0.5
    assert starc_distance(nothing, np.ones(40), world) == 0.0


def test_a_value_function_as_reward_and_its_gain_are_the_same() -> None:
    """f(s') and f(s') - f(s) differ by shaping and a factor, so either may stand for a value function f."""
    rng, world = _random(5)
    f = rng.normal(size=6)
    before, after = world.features @ f, world.following @ f
    assert starc_distance(after, after - before, world) < 1e-4


def test_counting_an_episode_twice_is_repeating_it() -> None:
    rng, world = _random(7)
    a, b = rng.normal(size=(2, 40))
    episode = np.repeat([0, 1], 20)
    twice = np.concatenate([np.arange(40), np.arange(20, 40)])
    repeated = Transitions(world.features[twice], world.following[twice], world.discount[twice])
    measure = starc_measure(a, b, world, episode)
    assert measure(np.array([1.0, 2.0])) == pytest.approx(starc_distance(a[twice], b[twice], repeated))
    assert np.isnan(measure(np.zeros(2)))


def test_principal_features_have_unit_variance_and_skip_constants() -> None:
    rng = np.random.default_rng(0)
    states = np.column_stack([rng.normal(size=50), 100 * rng.normal(size=50), np.full(50, 3.0)])
    features = principal_features(states, 16)
    assert features.shape == (50, 3)
    assert np.allclose(features.T @ features / 50, np.eye(3), atol=1e-9)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="transitions: shapes"):
        Transitions(np.ones((3, 2)), np.ones((3, 2)), np.ones(2))
