"""Labels against hand-worked numbers; chunk transitions against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.data.transitions import ChunkTransitions, episode_labels, sparse_labels
from valueguide.errors import ConfigError, DataError


def test_success_golden():
    labels = sparse_labels(5, success=True, terminated=True, gamma=0.98, success_steps=3)
    np.testing.assert_allclose(labels.reward, [-1, -1, 0, 0, 0])
    np.testing.assert_allclose(labels.mask, [1, 1, 0, 0, 0])
    np.testing.assert_allclose(labels.mc_return, [-1.98, -1, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_success_is_all_zero(length):
    labels = sparse_labels(length, success=True, terminated=True)
    for values in (labels.reward, labels.mask, labels.mc_return):
        np.testing.assert_array_equal(values, np.zeros(length))


def test_terminal_failure_and_truncation_are_worth_never_but_only_failure_is_terminal():
    failed = sparse_labels(4, success=False, terminated=True, gamma=0.98)
    np.testing.assert_allclose(failed.reward, [-1, -1, -1, -50], rtol=1e-5)
    np.testing.assert_allclose(failed.mask, [1, 1, 1, 0])
    np.testing.assert_allclose(failed.mc_return, [-50] * 4, rtol=1e-5)  # -1 + 0.98 * -50 = -50
    cut = sparse_labels(4, success=False, terminated=False, gamma=0.98)
    np.testing.assert_allclose(cut.reward, [-1] * 4)
    np.testing.assert_allclose(cut.mask, [1] * 4)
    np.testing.assert_allclose(cut.mc_return, [-50] * 4, rtol=1e-5)


def test_chunk_golden():
    """T = 5 success, E = 2, gamma = 0.5, then a truncated episode of 2 steps."""
    start, end = np.array([0, 5]), np.array([5, 7])
    labels = episode_labels(start, end, np.array([True, False]), np.array([True, False]), gamma=0.5)
    t = ChunkTransitions.build(labels, start, end, 2, gamma=0.5)
    np.testing.assert_array_equal(t.length, [2, 2, 1, 1, 1, 2, 1])
    np.testing.assert_allclose(t.reward, [-1.5, -1, 0, 0, 0, -1.5, -1])
    np.testing.assert_allclose(t.discount, [0.25, 0, 0, 0, 0, 0.25, 0.5])
    np.testing.assert_array_equal(t.successor, [2, 3, 3, 4, 7, 8, 8])
    actions, valid = t.actions(np.arange(7, dtype=np.float32)[:, None] + 1, np.array([1, 2, 6]))
    np.testing.assert_array_equal(actions[..., 0], [[2, 3], [3, 0], [7, 0]])
    np.testing.assert_array_equal(valid, [[1, 1], [1, 0], [1, 0]])


def test_a_plan_that_a_terminal_state_cut_short_stays_whole():
    """As above: starts 2 and 3 end in success after one step, start 6 in a time limit."""
    start, end = np.array([0, 5]), np.array([5, 7])
    labels = episode_labels(start, end, np.array([True, False]), np.array([True, False]), gamma=0.5)
    t = ChunkTransitions.build(labels, start, end, 2, gamma=0.5)
    action, starts = np.arange(7, dtype=np.float32)[:, None] + 1, np.array([1, 2, 3, 6])
    planned = np.array([[2, 3], [3, 30], [4, np.nan], [7, 70]], np.float32)[..., None]
    actions, valid = t.actions(action, starts, planned)
    np.testing.assert_array_equal(actions[..., 0], [[2, 3], [3, 30], [4, 0], [7, 0]])
    np.testing.assert_array_equal(valid, [[1, 1], [1, 1], [1, 0], [1, 0]])


def test_source_change_ends_the_chunk_at_its_first_frame():
    start, end = np.array([0]), np.array([6])
    labels = episode_labels(start, end, np.array([False]), np.array([False]), gamma=0.5)
    source = np.array([0, 0, 1, 1, 1, 0])
    t = ChunkTransitions.build(labels, start, end, 4, 0.5, source)
    np.testing.assert_array_equal(t.length, [2, 1, 3, 2, 1, 1])
    np.testing.assert_array_equal(t.successor, [2, 2, 5, 5, 5, 6])
    np.testing.assert_allclose(t.discount, 0.5 ** np.array([2, 1, 3, 2, 1, 1]))


episodes_strategy = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["success", "failure", "cut"])), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(
    episodes_strategy, st.integers(1, 6), st.floats(0.1, 0.99), *[st.booleans()] * 3, st.integers(0, 2**31)
)
def test_transitions_equal_brute_force(episodes, executed, gamma, split, plans, plain, seed):
    lengths = np.array([length for length, _ in episodes])
    end = np.cumsum(lengths)
    start = end - lengths
    won = np.array([kind == "success" for _, kind in episodes])
    ended = np.array([kind != "cut" for _, kind in episodes])
    labels = episode_labels(start, end, won, ended, gamma)
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 2, end[-1]) if split else None
    chunk_id = np.cumsum(rng.integers(0, 2, end[-1])) if plans else None
    has_final = rng.integers(0, 2, len(end)).astype(bool) if plain else None
    t = ChunkTransitions.build(
        labels, start, end, executed, gamma, source, chunk_id=chunk_id, has_final=has_final
    )
    for e in range(len(episodes)):
        for first in range(start[e], end[e]):
            reward, discount, now = 0.0, 1.0, first
            lacks = plain and not has_final[e] and episodes[e][1] == "cut"
            last = end[e] - 1 if lacks else end[e]
            assert t.usable[first] == (first < last)
            if first == last:
                assert t.length[first] == t.discount[first] == 0
                continue
            while True:
                reward += discount * labels.reward[now]
                discount *= gamma * labels.mask[now]
                now += 1
                done = now == last or labels.mask[now - 1] == 0 or now - first == executed
                if done or (split and source[now] != source[first]):
                    break
                if plans and chunk_id[now] != chunk_id[first]:
                    break
            assert t.length[first] == now - first
            assert t.reward[first] == pytest.approx(reward, rel=1e-4, abs=1e-4)
            assert t.discount[first] == pytest.approx(discount, rel=1e-4, abs=1e-6)
            assert t.successor[first] == (now if now < end[e] else end[-1] + e)
            # One application of the Bellman equation to the return: G = R + discount * G(successor).
            following = labels.mc_return[now] if now < end[e] else -1 / (1 - gamma)
            assert labels.mc_return[first] == pytest.approx(reward + discount * following, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sparse_labels(3, True, True, gamma=1.0), ConfigError, "gamma"),
        (lambda: sparse_labels(0, True, True), DataError, "episode length"),
        (lambda: sparse_labels(3, True, True, success_steps=0), ConfigError, "success_steps"),
        (lambda: _built(0, [5]), ConfigError, "executed length"),
        (lambda: _built(2, [4]), DataError, "frames in episodes: expected 5, found 4"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _built(executed, end):
    return ChunkTransitions.build(sparse_labels(5, True, True), np.array([0]), np.array(end), executed)
