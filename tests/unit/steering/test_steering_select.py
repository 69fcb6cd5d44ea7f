"""The controls: a random candidate, and the one nearest to all others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.steering.select import MedoidSelector, RandomSelector
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fake_tables import FakeTablePolicy
from valueguide.types import Candidates, Observation

_ONES = np.ones(2, np.float32)


def _line(*positions: float, horizon: int = 3) -> Candidates:
    """Constant chunks at these positions of the first action dimension."""
    actions = np.zeros((len(positions), horizon, 2), np.float32)
    actions[..., 0] = np.array(positions, np.float32)[:, None]
    return Candidates(actions)


def test_random_is_uniform_and_repeats_with_its_seed() -> None:
    select, candidates = RandomSelector(), _line(*range(4))
    chosen = [select(candidates, 2, seed) for seed in range(2000)]
    assert chosen == [select(candidates, 2, seed) for seed in range(2000)]
    # 500 each, standard deviation 19.4; four of them.
    assert np.bincount(chosen, minlength=4) == pytest.approx(np.full(4, 500), abs=78)


def test_random_is_independent_of_a_policy_that_draws_from_the_same_seed() -> None:
    """Otherwise the index says something about the noise behind the candidates."""
    ours = np.array([RandomSelector()(_line(*range(4)), 2, seed) for seed in range(1000)])
    theirs = np.array([np.random.default_rng(seed).integers(4) for seed in range(1000)])
    # 250 agreements, standard deviation 13.7; four of them.
    assert np.sum(ours == theirs) == pytest.approx(250, abs=55)


def test_medoid_against_a_hand_worked_line() -> None:
    # On a line the medoid is the median: sums 113, 110, 109, 117, 387. The mean, 22.6, is nearest to 10.
    assert MedoidSelector(_ONES)(_line(0, 1, 2, 10, 100), 2, 0) == 2
    assert MedoidSelector(_ONES)(_line(10, 0, 2, 1, 0.5), 2, 0) == 3


def test_medoid_looks_only_at_executed_steps() -> None:
    candidates = _line(0, 1, 2, horizon=3)
    candidates.actions[1, 2] = 100.0  # a step that is never executed
    assert MedoidSelector(_ONES)(candidates, 2, 0) == 1
    assert MedoidSelector(_ONES)(candidates, 3, 0) != 1


def test_medoid_scales_every_dimension() -> None:
    """In metres and radians together, the radians would decide alone."""
    actions = np.zeros((3, 1, 2), np.float32)
    actions[:, 0, 0] = [0.00, 0.01, 0.03]  # metres: the middle one is candidate 1
    actions[:, 0, 1] = [0.5, 0.9, 0.0]  # radians: the middle one is candidate 0
    candidates = Candidates(actions)
    assert MedoidSelector(_ONES)(candidates, 1, 0) == 0
    assert MedoidSelector(np.array([0.01, 10.0], np.float32))(candidates, 1, 0) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_permuting_the_candidates_permutes_the_medoid(positions: list[int], random) -> None:
    order = list(range(len(positions)))
    random.shuffle(order)
    before = _line(*positions)
    cost = np.abs(np.subtract.outer(positions, positions)).sum(axis=1)
    chosen = MedoidSelector(_ONES)(Candidates(before.actions[order]), 2, 0)
    assert cost[order[chosen]] == cost[MedoidSelector(_ONES)(before, 2, 0)] == cost.min()


@pytest.mark.parametrize("selector", [RandomSelector(), MedoidSelector(_ONES)])
def test_a_single_candidate_is_candidate_0(selector: RandomSelector | MedoidSelector) -> None:
    assert selector(_line(3.0), 2, 0) == 0


def test_the_steerer_reports_the_selector() -> None:
    selector = MedoidSelector(_ONES)
    steerer = Steerer(FakeTablePolicy(_line(0, 9, 5).actions), None, SteeringConfig(k=3, execute=2), selector)
    steerer.observe(Observation({}, np.zeros(1, np.float32), "reach"))
    _, _, decision = steerer.plan(0)
    assert (decision.index, decision.preferred, decision.reason) == (2, 2, "medoid")
    assert decision.values is None
