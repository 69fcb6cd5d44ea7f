"""`decide`: what is chosen, the invariances it must have, and every reason for falling back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from valueguide.errors import ConfigError
from valueguide.steering.decide import aggregate, decide, softmax
from valueguide.types import Scores

_few = settings(max_examples=60, deadline=None)


def _scores(*rows: list[float]) -> Scores:
    return Scores(np.array(rows, np.float32))


@st.composite
def _q(draw: st.DrawFn) -> np.ndarray:
    """(M, K) in eighths: sums and shifts by whole numbers stay exact in float32."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 8)))
    return draw(arrays(np.int32, shape, elements=st.integers(-400, 400))).astype(np.float32) / 8


# --- aggregation, worked by hand -------------------------------------------------------------------


def test_aggregates_against_hand_worked_numbers() -> None:
    q = np.array([[1, 5, -2], [3, 1, -2]], np.float32)
    np.testing.assert_array_equal(aggregate(q, "min"), [1, 1, -2])
    np.testing.assert_array_equal(aggregate(q, "mean"), [2, 3, -2])
    np.testing.assert_array_equal(aggregate(q, "lcb"), [1, 1, -2])  # standard deviations 1, 2 and 0


def test_the_aggregate_changes_the_choice() -> None:
    scores = _scores([0.0, 2.0, 10.0], [0.0, 1.0, -10.0])
    assert decide(scores, how="min").index == 1
    assert decide(_scores([0.0, 2.0, 10.0], [0.0, 1.0, -4.0]), how="mean").index == 2


def test_unknown_aggregate_is_refused() -> None:
    with pytest.raises(ConfigError, match="aggregate.*'median'"):
        decide(_scores([0.0, 1.0]), how="median")


# --- argmax and its invariances --------------------------------------------------------------------


def test_argmax_takes_the_best_and_says_so() -> None:
    decision = decide(_scores([0.1, 0.9, 0.4]), seed=7, elapsed_s=0.25)
    assert (decision.index, decision.preferred, decision.reason) == (1, 1, "argmax")
    assert decision.seed == -1  # nothing was drawn
    assert decision.latency_s == 0.25
    assert decision.values is not None and decision.values.dtype == np.float32
    np.testing.assert_array_equal(decision.values, np.float32([0.1, 0.9, 0.4]))


def test_ties_go_to_the_lowest_index() -> None:
    assert decide(_scores([0.0, 3.0, 3.0])).index == 1


@_few
@given(_q(), st.randoms(use_true_random=False))
def test_permuting_the_candidates_permutes_the_choice(q: np.ndarray, random) -> None:
    order = list(range(q.shape[1]))
    random.shuffle(order)
    before, after = decide(Scores(q)), decide(Scores(q[:, order]))
    assert after.reason == before.reason
    values = aggregate(q)
    if np.sum(values == values.max()) == 1:
        assert order[after.index] == before.index
    else:  # with a tie it may be another candidate, never a worse one (all-equal included)
        assert values[order[after.index]] == values.max()


@_few
@given(_q(), st.integers(-1000, 1000), st.sampled_from([0.0, 0.5, 3.0]), st.integers(0, 2**31))
def test_adding_a_constant_to_every_score_changes_nothing(
    q: np.ndarray, shift: int, beta: float, seed: int
) -> None:
    before = decide(Scores(q), beta=beta, seed=seed, spread_limit=20.0)
    after = decide(Scores(q + np.float32(shift)), beta=beta, seed=seed, spread_limit=20.0)
    assert (after.index, after.preferred, after.reason) == (before.index, before.preferred, before.reason)


@_few
@given(_q(), st.floats(0.01, 100), st.integers(0, 2**31), st.booleans())
def test_the_index_is_always_a_candidate_and_the_inputs_stay_untouched(
    q: np.ndarray, beta: float, seed: int, shadow: bool
) -> None:
    kept = q.copy()
    decision = decide(Scores(q), beta=beta, seed=seed, shadow=shadow, spread_limit=5.0)
    assert 0 <= decision.index < q.shape[1]
    assert 0 <= decision.preferred < q.shape[1]
    np.testing.assert_array_equal(q, kept)


# --- softmax ---------------------------------------------------------------------------------------


def test_softmax_against_hand_worked_numbers() -> None:
    # exp(0) : exp(ln 3) = 1 : 3, whether the gap is ln 3 at beta 1 or 2 ln 3 at beta 2.
    gap = np.float32(np.log(3.0))
    np.testing.assert_allclose(softmax(np.array([0, gap], np.float32), 1.0), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(softmax(np.array([5, 5 + 2 * gap], np.float32), 2.0), [0.25, 0.75], rtol=1e-6)


@_few
@given(arrays(np.float32, st.integers(1, 8), elements=st.floats(-1e3, 1e3, width=32)))
def test_large_beta_is_uniform_and_probabilities_sum_to_one(values: np.ndarray) -> None:
    flat = softmax(values, 1e9)
    np.testing.assert_allclose(flat, np.full(len(values), 1 / len(values)), rtol=1e-5)
    assert softmax(values, 0.3).sum() == pytest.approx(1.0)


@_few
@given(_q(), st.randoms(use_true_random=False))
def test_probabilities_follow_their_candidates(q: np.ndarray, random) -> None:
    order = list(range(q.shape[1]))
    random.shuffle(order)
    values = aggregate(q)
    np.testing.assert_allclose(softmax(values[order], 2.0), softmax(values, 2.0)[order], rtol=1e-12)


def test_draws_have_the_softmax_frequencies() -> None:
    gap = float(np.log(3.0))
    drawn = [decide(_scores([0.0, gap]), beta=1.0, seed=seed) for seed in range(2000)]
    assert {d.reason for d in drawn} == {"softmax"}
    # 0.75 with a standard error of 0.0097; four of them.
    assert np.mean([d.index for d in drawn]) == pytest.approx(0.75, abs=0.04)


def test_a_draw_repeats_with_its_logged_seed() -> None:
    scores = _scores([0.0, 0.1, 0.2, 0.3])
    first = decide(scores, beta=1.0, seed=11)
    assert first.seed == 11
    assert decide(scores, beta=1.0, seed=first.seed).index == first.index
    assert len({decide(scores, beta=1.0, seed=seed).index for seed in range(40)}) == 4


def test_tiny_beta_is_argmax() -> None:
    assert {decide(_scores([0.0, 1.0, 0.9]), beta=1e-6, seed=seed).index for seed in range(20)} == {1}


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="beta"):
        decide(_scores([0.0, 1.0]), beta=beta)


# --- every reason for candidate 0 ------------------------------------------------------------------


def test_no_critic() -> None:
    decision = decide(None, elapsed_s=0.5)
    assert (decision.index, decision.reason, decision.preferred) == (0, "no_critic", -1)
    assert decision.values is None and decision.scores is None and decision.latency_s == 0.5


def test_deadline_is_passed_only_after_it() -> None:
    scores = _scores([0.0, 1.0])
    assert decide(scores, elapsed_s=0.2, deadline_s=0.2).reason == "argmax"
    late = decide(scores, elapsed_s=0.2001, deadline_s=0.2)
    assert (late.index, late.reason, late.preferred) == (0, "deadline", 1)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf in the deviation of lcb
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("how", ["min", "mean", "lcb"])
def test_one_non_finite_member_is_enough(bad: float, beta: float, how: str) -> None:
    """+inf in one member hides behind the minimum of the others, so members are looked at one by one."""
    decision = decide(_scores([0.0, bad, 1.0], [0.0, 1.0, 2.0]), beta=beta, how=how)
    assert (decision.index, decision.reason, decision.preferred) == (0, "non_finite", -1)
    assert decision.scores is not None  # kept for the record


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_all_equal(beta: float) -> None:
    """A critic that cannot tell them apart does not overrule the policy, not even by a draw."""
    for seed in range(10):
        decision = decide(_scores([2.0, 2.0, 2.0], [3.0, 5.0, 4.0]), beta=beta, seed=seed)
        assert (decision.index, decision.reason) == (0, "all_equal")


def test_spread_is_that_of_the_preferred_candidate() -> None:
    scores = _scores([0.0, 1.0, -9.0], [0.0, 1.5, 9.0])  # spread of candidate 1: 0.5; of candidate 2: 18
    assert decide(scores, spread_limit=0.5).index == 1
    unsure = decide(scores, spread_limit=0.49)
    assert (unsure.index, unsure.reason, unsure.preferred) == (0, "spread", 1)
    assert decide(scores, spread_limit=None).index == 1


def test_shadow_scores_and_records_but_runs_candidate_0() -> None:
    decision = decide(_scores([0.0, 1.0]), shadow=True)
    assert (decision.index, decision.reason, decision.preferred) == (0, "shadow", 1)
    assert decision.values is not None and decision.scores is not None


def test_shadow_does_not_hide_a_fallback() -> None:
    assert decide(_scores([0.0, 1.0]), shadow=True, elapsed_s=2, deadline_s=1).reason == "deadline"
    assert decide(_scores([0.0, float("nan")]), shadow=True).reason == "non_finite"


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_single_candidate_is_a_choice_not_a_tie(beta: float) -> None:
    decision = decide(_scores([3.0], [4.0]), beta=beta)
    assert decision.index == 0
    assert decision.reason == ("softmax" if beta else "argmax")
