"""Committed actions in front of candidates: what is scored is what runs, without jumps."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import DataError
from valueguide.execution.splice import splice
from valueguide.types import Candidates


def candidates(k: int = 3, horizon: int = 6, dim: int = 2) -> Candidates:
    return Candidates(np.random.default_rng(0).normal(size=(k, horizon, dim)).astype(np.float32))


def test_nothing_committed_changes_nothing() -> None:
    proposed = candidates()
    assert splice(proposed, np.zeros((0, 2)), absolute=True) is proposed


def test_deltas_are_replaced_and_the_rest_is_untouched() -> None:
    proposed, committed = candidates(), np.full((2, 2), 9.0, np.float32)
    out = splice(proposed, committed, absolute=False).actions
    assert (out[:, :2] == 9.0).all()
    np.testing.assert_array_equal(out[:, 2:], proposed.actions[:, 2:])
    assert (proposed.actions[:, :2] != 9.0).all(), "the proposal itself is left alone"


def test_positions_start_where_the_committed_ones_end_and_fade_into_the_candidate() -> None:
    actions = np.tile(np.arange(6, dtype=np.float32)[None, :, None], (1, 1, 1))  # 0 1 2 3 4 5
    out = splice(Candidates(actions), np.array([[4.0]], np.float32), absolute=True, blend=3).actions[0, :, 0]
    # Shift 4 - 0 = 4, fading by quarters: 1 + 3, 2 + 2, 3 + 1, then the candidate itself.
    np.testing.assert_allclose(out, [4, 4, 4, 4, 4, 5])


def test_a_seam_of_positions_is_no_larger_than_the_candidates_own_steps() -> None:
    proposed = candidates(k=8, horizon=8)
    committed = np.full((3, 2), 2.0, np.float32)
    out = splice(proposed, committed, absolute=True, blend=3).actions
    jump = np.abs(out[:, 3] - out[:, 2])
    own = np.abs(proposed.actions[:, 3] - proposed.actions[:, 2])
    shift = np.abs(committed[-1] - proposed.actions[:, 2])
    assert (jump <= own + shift / 4 + 1e-5).all()


@pytest.mark.parametrize("committed", [np.zeros((2, 3)), np.zeros(2), np.zeros((6, 2))])
def test_wrong_sizes_are_refused(committed: np.ndarray) -> None:
    with pytest.raises(DataError, match="committed actions"):
        splice(candidates(), committed, absolute=False)
