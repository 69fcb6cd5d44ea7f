"""Committed actions in front of candidates: what is scored is what runs, without jumps."""

from __future__ import annotations

import numpy as np
import pytest

from valueguide.errors import DataError
from valueguide.execution.splice import gripper_dimensions, increments, splice
from valueguide.types import Candidates


def candidates(k: int = 3, horizon: int = 6, dim: int = 2) -> Candidates:
    return Candidates(np.random.default_rng(0).normal(size=(k, horizon, dim)).astype(np.float32))


def test_what_does_not_add_up_is_the_grippers() -> None:
    assert gripper_dimensions(["dx", "dy", "dyaw", "grip"]) == (3,)
    assert (
        gripper_dimensions(["gripper_left", "dx", "gripper_right"]) == (0, 2) and gripper_dimensions([]) == ()
    )


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


#: Two that add, within ±0.1 and ±1, and a gripper.
STEP = increments(np.float32([-0.1, -1, 0]), np.float32([0.1, 1, 1]), kept=(2,))


PLANNED = np.zeros((1, 8, 3), np.float32)
PLANNED[0, :5] = [[0.1, 0.4, 1], [0.1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0.2, 0]]
NOTHING = np.zeros((2, 3), np.float32)


def test_increments_catch_up_with_the_candidates_path_evenly() -> None:
    out = splice(Candidates(PLANNED), NOTHING, absolute=False, increments=STEP).actions[0]
    np.testing.assert_allclose(out[:, 0], [0, 0, 0.05, 0.05, 0.05, 0.05, 0, 0], atol=1e-6)  # 0.2 behind
    np.testing.assert_allclose(out[:, 1], [0, 0, 0.1, 0.1, 0.3, 0.1, 0, 0], atol=1e-6)  # 0.4, beside its own
    np.testing.assert_array_equal(out[:, 2], np.zeros(8))  # no increment: as planned
    np.testing.assert_allclose(out[:, :2].sum(axis=0), PLANNED[0, :, :2].sum(axis=0), atol=1e-6)


def test_without_a_blend_they_catch_up_as_fast_as_the_limits_let_them() -> None:
    out = splice(Candidates(PLANNED), NOTHING, absolute=False, blend=0, increments=STEP).actions[0]
    np.testing.assert_allclose(out[:, 0], [0, 0, 0.1, 0.1, 0, 0, 0, 0], atol=1e-6)  # 0.2 behind, 0.1 a step
    np.testing.assert_allclose(out[:, 1], [0, 0, 0.4, 0, 0.2, 0, 0, 0], atol=1e-6)


def test_what_the_limits_keep_from_one_step_the_later_ones_make_up_for() -> None:
    planned = PLANNED.copy()
    planned[0, 2:4, 0] = 0.1
    out = splice(Candidates(planned), NOTHING, absolute=False, increments=STEP).actions[0]
    np.testing.assert_allclose(out[:, 0], [0, 0, 0.1, 0.1, 0.1, 0.1, 0, 0], atol=1e-6)


def test_committed_steps_that_went_too_far_are_taken_back() -> None:
    planned = np.zeros((1, 6, 3), np.float32)
    out = splice(Candidates(planned), np.float32([[0.1, -1, 1]]), absolute=False, increments=STEP).actions[0]
    np.testing.assert_allclose(out[:, 0], [0.1, -0.025, -0.025, -0.025, -0.025, 0], atol=1e-6)
    np.testing.assert_allclose(out[:, 1], [-1, 0.25, 0.25, 0.25, 0.25, 0], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_increments_return_to_their_path_as_positions_do(count: int) -> None:
    """The same plan and commitment, said in increments and in positions."""
    rng = np.random.default_rng(count)
    plan = rng.normal(0, 0.1, (4, 10, 2)).astype(np.float32)
    committed = rng.normal(0, 0.1, (count, 2)).astype(np.float32)
    wide = np.float32([[-9, -9], [9, 9]])
    steps = splice(Candidates(plan), committed, absolute=False, increments=wide).actions
    places = splice(Candidates(plan.cumsum(axis=1)), committed.cumsum(axis=0), absolute=True).actions
    np.testing.assert_allclose(steps.cumsum(axis=1), places, atol=1e-5)


def test_each_candidate_catches_up_on_its_own_and_the_proposal_is_left_alone() -> None:
    proposed = Candidates(np.float32([[[0.1, 0, 0], [0, 0, 0]], [[-0.1, 0, 0], [0, 0, 0]]]))
    before = proposed.actions.copy()
    out = splice(proposed, np.zeros((1, 3)), absolute=False, increments=STEP).actions
    np.testing.assert_allclose(out[:, 1, 0], [0.025, -0.025], atol=1e-6)
    np.testing.assert_array_equal(proposed.actions, before)


def test_an_error_that_only_a_chunks_first_steps_correct_goes_away_with_every_chunk_asked_ahead() -> None:
    """A plan that goes where it wants in one step, of which always only the steps after the first run."""
    left = {}
    for name, limits in (("without", None), ("with", STEP)):
        position, committed = 0.5, np.zeros((1, 3), np.float32)
        for _ in range(80):
            plan = np.zeros((1, 3, 3), np.float32)
            plan[0, 0, 1] = -position  # would be at 0 after its first step
            ran = splice(Candidates(plan), committed, absolute=False, increments=limits).actions[0]
            position += float(ran[:2, 1].sum())
            committed = ran[2:3]
        left[name] = abs(position)
    assert left["without"] == 0.5 and left["with"] < 1e-6


def test_increments_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="increments"):
        splice(candidates(), np.zeros((1, 2)), absolute=False, increments=STEP)


@pytest.mark.parametrize("committed", [np.zeros((2, 3)), np.zeros(2), np.zeros((6, 2))])
def test_wrong_sizes_are_refused(committed: np.ndarray) -> None:
    with pytest.raises(DataError, match="committed actions"):
        splice(candidates(), committed, absolute=False)
