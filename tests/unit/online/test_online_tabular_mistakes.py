"""What mistakes in the transitions would cost on chains with known values: the tests beside would see each.

The batches are right; each test spoils one as a wrong implementation would.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from chain_worlds import GAMMA, STEPS, Chain, episodes, explorer, follow, mixed_plans
from tabular_learning import compare, cut_up, draw, executed, rows

WALL, PIT = Chain(), Chain(pit=True)
#: Far above the largest error of what is right, 0.002.
SEEN = 1.0


@cache
def _segments(chain: Chain, limit: int = 40):
    return cut_up(episodes(chain, follow(explorer(chain, 0)), 500, limit=limit))


@cache
def _batch(chain: Chain, limit: int = 40):
    return draw(_segments(chain, limit), coverage=3)


def _cost(mistake: str, chain: Chain, spoiled, limit: int = 40, **how) -> float:
    return compare(mistake, chain, mixed_plans(chain, 1), spoiled, honest=_batch(chain, limit), **how).td


def _bootstrapped(batch):
    discount = np.where(batch.discount == 0, GAMMA ** executed(batch), batch.discount)
    return replace(batch, discount=discount.astype(np.float32))


def _ended(batch):
    return (batch.discount == 0) & (executed(batch) < STEPS)


def test_a_terminal_state_that_bootstraps():
    assert _cost("terminal states bootstrap (pit)", PIT, _bootstrapped(_batch(PIT))) > SEEN


def test_a_terminal_state_that_bootstraps_hides_behind_a_zero():
    """The reason why Q begins at 7 in these tests. Behind a wall, where all ends are the goal's, the mistake
    costs little after 80 updates, and still a hundred times what is right."""
    batch = _bootstrapped(_batch(WALL))
    assert _cost("terminal states bootstrap (wall)", WALL, batch) > 0.1
    assert _cost("the same, Q begins at 0: not seen", WALL, batch, initial=0.0) < 0.002


@pytest.mark.parametrize("chain", [WALL, PIT], ids=["wall", "pit"])
def test_chunks_that_end_early_left_out(chain):
    batch = _batch(chain)
    assert _cost("chunks that end early are left out", chain, rows(batch, ~_ended(batch))) > SEEN


@pytest.mark.parametrize("chain", [WALL, PIT], ids=["wall", "pit"])
def test_the_rest_of_a_plan_forgotten(chain):
    batch = _batch(chain)
    ran = np.arange(STEPS) < executed(batch)[:, None]
    spoiled = replace(batch, valid=ran, actions=np.where(ran[..., None], batch.actions, np.float32(0)))
    assert _cost("the rest of a plan that ended early is forgotten", chain, spoiled) > SEEN


def test_a_time_limit_taken_for_an_end():
    batch = _batch(WALL, 6)
    # The last chunk of an episode that was cut off after 6 steps starts at step 3.
    late = (batch.index % 2**20 == 3) & (batch.discount > 0)
    spoiled = replace(batch, discount=np.where(late, np.float32(0), batch.discount))
    assert _cost("a time limit is taken for an end", WALL, spoiled, 6) > SEEN


def test_a_short_chunk_discounted_as_a_long_one():
    batch = _batch(WALL, 7)
    spoiled = replace(batch, discount=np.where(batch.discount > 0, np.float32(GAMMA**STEPS), 0))
    assert _cost("a chunk of 1 step is discounted like 3", WALL, spoiled, 7, early=True) > 0.5
