"""What proposals are known can be handed to the next process, in the order that decides what is dropped."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import DataError
from valueguide.online.targets import PolicyTargets, observe_successors
from valueguide.testing.fakes import FakeProposer
from valueguide.types import ChunkBatch

_OBSERVE = observe_successors(["go"])


def _batch(*ids: int) -> ChunkBatch:
    rows = len(ids)
    state = np.array(ids, np.float32)[:, None]
    ones = np.ones(rows, np.float32)
    return ChunkBatch(
        state=state, next_state=state, instruction=np.zeros(rows, np.int64),
        actions=np.zeros((rows, 2, 1), np.float32), valid=np.ones((rows, 2), bool),
        reward=-ones, discount=ones, mc_return=-ones, index=np.array(ids), next_index=np.array(ids),
    )  # fmt: skip


def test_what_was_known_is_known_again_and_the_policy_is_not_asked() -> None:
    first, proposer = PolicyTargets(FakeProposer(), k=3), FakeProposer()
    wanted = first.propose(_batch(5, 7, 9), _OBSERVE).following
    second = PolicyTargets(proposer, k=3)
    second.remember(*first.remembered())
    np.testing.assert_array_equal(second.propose(_batch(9, 5, 7), _OBSERVE).following, wanted[[2, 0, 1]])
    assert proposer.asked == [] and (second.hits, second.misses) == (3, 0)


def test_the_least_recently_used_comes_first_and_goes_first() -> None:
    targets = PolicyTargets(FakeProposer(), k=1)
    for batch in (_batch(1, 2), _batch(3), _batch(1)):
        targets.propose(batch, _OBSERVE)
    ids, chunks = targets.remembered()
    assert ids.tolist() == [2, 3, 1] and chunks.shape == (3, 1, 2, 1) and chunks.dtype == np.float32
    small = PolicyTargets(FakeProposer(), k=1, capacity=3)
    small.remember(ids, chunks)
    small.propose(_batch(4), _OBSERVE)
    assert small.remembered()[0].tolist() == [3, 1, 4]


def test_nothing_of_another_policy_is_handed_on() -> None:
    targets = PolicyTargets(FakeProposer(), k=2)
    assert len(targets.remembered()[0]) == 0
    targets.propose(_batch(1), _OBSERVE)
    targets.proposer.version = "fake-22"
    ids, chunks = targets.remembered()
    assert len(ids) == 0 and chunks.shape[:2] == (0, 2)


@pytest.mark.parametrize("shape", [(2, 3, 2, 1), (1, 2, 2, 1), (2, 2, 2)])
def test_chunks_of_another_number_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"remembered chunks: expected \(2, 2, E, A\)"):
        PolicyTargets(FakeProposer(), k=2).remember(np.array([1, 2]), np.zeros(shape, np.float32))
