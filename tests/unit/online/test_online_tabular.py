"""Chunked TD on chains whose values are known: what it recovers and what it cannot.

`uv run pytest tests/unit/online -k tabular -s` prints the errors that docs/critics.md shows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from chain_worlds import (
    GAMMA,
    HELD,
    NEVER,
    STEPS,
    Chain,
    code,
    episodes,
    explorer,
    follow,
    mixed_plans,
    react,
)
from tabular_learning import INITIAL, chunked_td, codes_of, compare, cut_up, draw, monte_carlo, whole

from valueguide.online.segments import segments_of
from valueguide.types import Episode

EXACT = 0.002
WALL, PIT = Chain(), Chain(pit=True)
SLIPPERY_WALL, SLIPPERY_PIT = Chain(slip=0.2), Chain(pit=True, slip=0.2)


def _explored(chain: Chain, count: int, limit: int = 40, coverage: int = 3):
    return draw(cut_up(episodes(chain, follow(explorer(chain, 0)), count, limit=limit)), coverage=coverage)


def _place(chain: Chain) -> str:
    return f"{'slip 0.2' if chain.slip else 'deterministic'}, {'pit' if chain.pit else 'wall'}"


# -- the truth -----------------------------------------------------------------------------------


def test_the_truth_by_hand():
    q = PIT.true_q(np.ones((PIT.states, 1, STEPS), np.float32))
    assert q[4, code((1,))] == 0 and q[3, code((1, 1))] == -1
    assert q[1, code((1, -1, 1))] == pytest.approx(-1 - GAMMA - GAMMA**2 + GAMMA**3 * (-1 - GAMMA))
    assert q[0, code((-1, 1, 1))] == pytest.approx(NEVER)


@pytest.mark.parametrize("chain", [SLIPPERY_WALL, SLIPPERY_PIT], ids=["wall", "pit"])
def test_the_truth_of_going_right_for_ever_is_that_of_single_steps(chain):
    """The same policy without chunks, by another way: its Bellman equation iterated step by step."""
    value = np.zeros(chain.states)
    value[chain.hole] = NEVER
    for _ in range(1000):
        following = np.zeros(chain.length)
        for state, (chance, direction) in product(range(chain.length), ((0.8, 1), (0.2, -1))):
            then = chain.after(state, direction)
            step = {chain.goal: 0.0, chain.hole: NEVER}.get(then, -1.0 + GAMMA * value[then])
            following[state] += chance * step
        value[: chain.length] = following
    q = chain.true_q(np.ones((chain.states, 1, STEPS), np.float32))
    np.testing.assert_allclose(q[: chain.length, code((1, 1, 1))], value[: chain.length], atol=1e-9)


def test_the_best_of_the_plans_is_worth_more_than_their_mean():
    plans = mixed_plans(PIT, 1)
    best, mean = (whole(PIT, PIT.true_q(plans, best=b)) for b in (True, False))
    assert (best >= mean - 1e-9).all() and (best > mean + 1).any()


# -- what is recovered ---------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [0.0, 7.0, -40.0])
@pytest.mark.parametrize("chain", [WALL, PIT], ids=["wall", "pit"])
def test_off_policy_data_of_a_deterministic_chain_give_the_exact_values(chain, initial):
    """Goal and pit lie inside chunks; nothing is left of the initial values, whatever they were."""
    name = f"{_place(chain)}, off-policy, Q begins at {initial:g}"
    result = compare(name, chain, mixed_plans(chain, 1), _explored(chain, 500), initial=initial)
    assert result.td < EXACT
    assert result.monte_carlo > 3


@pytest.mark.parametrize(
    ("chain", "count", "close"),
    [
        (SLIPPERY_WALL, 6000, 1.0),
        (SLIPPERY_PIT, 8000, 1.0),
        pytest.param(SLIPPERY_WALL, 24000, 0.4, marks=pytest.mark.slow),
        pytest.param(SLIPPERY_PIT, 32000, 0.6, marks=pytest.mark.slow),
    ],
    ids=["wall", "pit", "wall-more", "pit-more"],
)
def test_plans_run_blindly_on_a_slippery_chain_give_the_values_as_closely_as_the_data_allow(
    chain, count, close
):
    """Four times the data, half the error: it is chance, and no bias. The behaviour prefers other plans in
    each state, so that a plan's tail which is lost or made up would show."""
    data = _explored(chain, count, coverage=1)
    result = compare(f"{_place(chain)}, off-policy, plans run blindly", chain, mixed_plans(chain, 1), data)
    assert result.td < close
    assert result.monte_carlo > 3


def test_a_person_who_reacts_does_no_harm_where_nothing_slips():
    data = draw(cut_up(episodes(WALL, react, 300)))
    result = compare(f"{_place(WALL)}, a person reacts", WALL, mixed_plans(WALL, 1), data)
    assert result.td < EXACT
    assert result.monte_carlo > 3


def test_the_maximum_over_proposals_gives_the_values_of_the_guided_policy():
    plans = mixed_plans(PIT, 1, right=0.5)
    name = f"{_place(PIT)}, off-policy, `--backup best_of_n`, 4 proposals"
    result = compare(name, PIT, plans, _explored(PIT, 500), backup="best_of_n")
    assert result.td < EXACT
    assert result.monte_carlo > 3
    assert np.abs(whole(PIT, result.q) - whole(PIT, PIT.true_q(plans))).max() > 1


# -- truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [6, 7, 8])
def test_a_time_limit_bootstraps_from_the_last_observation_after_as_many_steps_as_ran(limit):
    name = f"{_place(WALL)}, off-policy, time limit after {limit} steps"
    result = compare(name, WALL, mixed_plans(WALL, 1), _explored(WALL, 600, limit), early=True)
    assert result.td < EXACT
    assert result.monte_carlo > 3


def test_a_last_observation_that_was_not_recorded_is_not_made_up():
    """Its stand-in is the one before: taken for a successor it is a state that the chunk did not reach."""
    recorded = episodes(WALL, follow(explorer(WALL, 0)), 600, limit=6)
    lacking: list[Episode] = [
        one if one.success else replace(one, final_observation=one.steps[-1].observation) for one in recorded
    ]
    segments = [
        s for i, one in enumerate(lacking) for s in segments_of(one, f"chain:{i}", has_final=one.success)
    ]
    plans, name = mixed_plans(WALL, 1), f"{_place(WALL)}, time limit, last observation lost"
    assert compare(name, WALL, plans, draw(segments), early=True).td < EXACT
    assert compare(f"{name} and taken from the step before", WALL, plans, draw(cut_up(lacking))).td > 1


# -- rescue at a takeover ------------------------------------------------------------------------

FATAL = (-1.0, -1.0, -1.0)


def _rescued(share: float):
    """From state 1 the policy walks into the pit; in `share` of the episodes a person takes over one step
    before and goes to the goal. Everywhere else the policy goes right."""
    plans = np.ones((PIT.states, 1, STEPS), np.float32)
    plans[1] = FATAL

    def play(recorder, rng):
        fatal = recorder.position == 1
        recorder.plan(plans[recorder.position, 0], stop=1 if fatal and rng.random() < share else STEPS)
        while fatal and not recorder.over:
            recorder.act(1.0)

    return plans, cut_up(episodes(PIT, play, 300))


def _of_fatal(segments, plans, takeover):
    batch = draw(segments, takeover)
    return chunked_td(PIT, plans, batch)[1, code(FATAL)], monte_carlo(PIT, batch)[1, code(FATAL)]


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_a_rescue_does_not_speak_for_the_plan_that_needed_it(share):
    """With `failure` the value is the policy's own, even if nobody ever let it fail; returns credit it with
    the person's success."""
    plans, segments = _rescued(share)
    truth = PIT.true_q(plans)[1, code(FATAL)]
    assert truth == pytest.approx(NEVER)
    learned, returned = _of_fatal(segments, plans, "failure")
    name = f"deterministic, pit, {share:.0%} rescued at takeover"
    print(f"\n| {name} | - | {abs(learned - truth):.2f} | {abs(returned - truth):.1f} |")
    assert learned == pytest.approx(truth, abs=EXACT)
    assert returned - truth > 3


def test_without_a_penalty_a_plan_that_is_always_rescued_is_not_judged_and_flagged():
    """`bootstrap` learns only the step that ran, and goes on as the policy would from the takeover. What the
    whole plan is worth is left to the network's guess; `cut` marks the rows."""
    plans, segments = _rescued(1.0)
    batch = draw(segments, "bootstrap")
    learned, truth = chunked_td(PIT, plans, batch)[1], PIT.true_q(plans)[1]
    assert learned[code(FATAL)] == INITIAL
    assert learned[code(FATAL[:1])] == pytest.approx(truth[code(FATAL[:1])], abs=EXACT)
    state, codes = codes_of(batch)
    rescued = (state == 1) & (codes == code(FATAL[:1]))
    assert batch.cut is not None and rescued.any() and batch.cut[rescued].all()


# -- what is not recovered -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [400, pytest.param(1600, marks=pytest.mark.slow)])
def test_a_person_who_reacts_inside_a_chunk_biases_the_values_where_steps_slip(count):
    """No error of the code, and more data do not help: a person who pushes on has just been set back. The
    chunks of reactive behaviour are no samples of what they do when run blindly (DQC, arXiv 2512.10926)."""
    data = draw(cut_up(episodes(SLIPPERY_WALL, react, count)))
    name = f"**{_place(SLIPPERY_WALL)}, a person reacts**"
    result = compare(name, SLIPPERY_WALL, mixed_plans(SLIPPERY_WALL, 1), data)
    assert result.td > 3
    assert result.monte_carlo > 3


def test_people_who_stop_at_the_goal_leave_plans_that_overrun_it_unlearned():
    """Nobody knows what they would have done next, and the labels invent nothing. Where a success must be
    held for E steps, as in the other tests, no such plan exists."""
    stopped = []
    for one in episodes(WALL, react, 300):
        steps = one.steps[: 1 - HELD] if one.success else one.steps
        steps[-1].success = steps[-1].terminated = one.success
        stopped.append(replace(one, steps=steps))
    data = draw(cut_up(stopped), success_steps=1)
    name = f"**{_place(WALL)}, a person reacts and stops at the goal**"
    result = compare(name, WALL, mixed_plans(WALL, 1), data)
    overrun = [(4, c) for c in product((-1, 1), repeat=3) if c[0] > 0] + [(3, (1, 1, 1)), (3, (1, 1, -1))]
    assert all(result.q[state, code(chunk)] == INITIAL for state, chunk in overrun)
    assert result.td > 3
