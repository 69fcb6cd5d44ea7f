"""Targets from the current policy: never stale, never of a neighbour, and asked for once."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.online.targets import PolicyTargets, TargetBatches, observe_successors
from valueguide.testing.fakes import FakeProposer
from valueguide.types import ChunkBatch

TASKS = ["open the drawer", "close the drawer"]
OBSERVE = observe_successors(TASKS)
STEPS = 2


def make_batch(ids, terminal=(), steps=STEPS):
    """Successor state i has the number i as its state, and its own picture."""
    ids = np.asarray(ids, np.int64)
    count, states = len(ids), np.asarray(ids, np.float32)[:, None]
    return ChunkBatch(
        state=states - 1,
        next_state=states,
        instruction=ids % 2,
        actions=np.zeros((count, steps, 1), np.float32),
        valid=np.ones((count, steps), bool),
        reward=np.full(count, -1, np.float32),
        discount=np.where(np.isin(ids, terminal), 0, 0.9).astype(np.float32),
        mc_return=np.zeros(count, np.float32),
        index=ids - 1,
        next_index=ids,
        images={"front": np.full((count, 4, 5, 3), 255, np.uint8)},
        next_images={"front": np.tile(ids.astype(np.uint8)[:, None, None, None], (1, 4, 5, 3))},
        environment_state=-states,
        next_environment_state=10 * states,
    )


def asked(proposer):
    return [len(seeds) for seeds in proposer.asked]


def test_the_observations_are_those_after_the_chunk():
    first, second = OBSERVE(make_batch([3, 7, 8]), np.array([1, 2]))
    assert (first.task, second.task) == ("close the drawer", "open the drawer")
    assert first.state.tolist() == [7] and first.environment_state.tolist() == [70]
    assert first.images["front"].shape == (4, 5, 3) and (first.images["front"] == 7).all()
    bare = replace(make_batch([3]), next_environment_state=None, next_images={})
    (only,) = OBSERVE(bare, np.array([0]))
    assert only.environment_state is None and only.images == {}


def test_following_holds_the_first_steps_of_the_policys_chunks():
    proposer = FakeProposer(horizon=5, action_dim=1)
    batch = make_batch([3, 4])
    following = PolicyTargets(proposer, k=6).propose(batch, OBSERVE).following
    assert following.shape == (2, 6, STEPS, 1) and following.dtype == np.float32
    (seeds,) = proposer.asked
    assert len(seeds) == 2
    alone = proposer.propose(OBSERVE(batch, np.arange(2)), 6, np.array(seeds))
    np.testing.assert_array_equal(following, alone[:, :, :STEPS])


def test_rows_without_a_successor_are_never_asked_about():
    proposer = FakeProposer()
    targets = PolicyTargets(proposer, k=2)
    following = targets.propose(make_batch([1, 2, 3], terminal=[2]), OBSERVE).following
    assert asked(proposer) == [2] and (following[1] == 0).all() and (following[[0, 2]] != 0).all()
    targets.propose(make_batch([5, 6], terminal=[5, 6]), OBSERVE)
    assert asked(proposer) == [2]
    unnamed = make_batch([-1, 4], terminal=[-1])  # the id of a state that is not there says nothing
    assert (targets.propose(unnamed, OBSERVE).following[0] == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 20),
)
def test_the_chunks_of_a_state_do_not_depend_on_the_batches_it_came_in(batches, batch_size, capacity):
    targets = PolicyTargets(FakeProposer(), k=2, seed=3, batch_size=batch_size, capacity=capacity)
    for ids in batches:
        following = targets.propose(make_batch(ids), OBSERVE).following
        for row, state in enumerate(ids):
            alone = PolicyTargets(FakeProposer(), k=2, seed=3).propose(make_batch([state]), OBSERVE)
            np.testing.assert_array_equal(following[row], alone.following[0])
    assert targets.hits + targets.misses == sum(map(len, batches))
    assert len(targets._kept) <= capacity
    assert max(asked(targets.proposer)) <= batch_size


def test_seed_version_and_state_each_change_the_noise_and_nothing_else_does():
    def seeds(seed=0, version="fake-1", state=4):
        proposer = FakeProposer(version=version)
        PolicyTargets(proposer, k=1, seed=seed).propose(make_batch([state]), OBSERVE)
        return proposer.asked[0][0]

    assert seeds() == seeds() >= 0
    assert len({seeds(), seeds(seed=1), seeds(version="fake-2"), seeds(state=5)}) == 4


def test_a_state_is_asked_about_once_and_the_rest_is_memory():
    proposer = FakeProposer()
    targets = PolicyTargets(proposer, k=2)
    assert targets.hit_rate == 0 and targets.policy_share == 0
    targets.propose(make_batch([1, 2, 2, 3]), OBSERVE)
    targets.propose(make_batch([3, 2, 4, 9], terminal=[9]), OBSERVE)
    assert asked(proposer) == [3, 2]  # never one row alone: it would be rounded in another way
    assert (targets.misses, targets.hits, targets.calls) == (4, 3, 2)
    assert targets.hit_rate == pytest.approx(3 / 7)


def test_observations_are_built_for_unknown_rows_only():
    built = []

    def observe(batch, rows):
        built.append(batch.next_index[rows].tolist())
        return OBSERVE(batch, rows)

    targets = PolicyTargets(FakeProposer(), k=1, batch_size=2)
    targets.propose(make_batch([5, 1, 9, 1], terminal=[9]), observe)
    targets.propose(make_batch([1, 2, 3, 4]), observe)
    assert built == [[1, 5], [2, 3], [4]]


@pytest.mark.parametrize("change", ["version", "proposer"])
def test_a_new_policy_is_asked_and_nothing_of_the_old_one_comes_back(change):
    old = FakeProposer(version="fake-1")
    targets = PolicyTargets(old, k=2)
    batch = make_batch([1, 2])
    before = targets.propose(batch, OBSERVE).following
    if change == "version":
        old.version = "longer-version"
    else:
        targets.proposer = FakeProposer(version="longer-version")
    after = targets.propose(batch, OBSERVE).following
    assert targets.calls == 2 and (before != after).all()
    fresh = PolicyTargets(FakeProposer(version="longer-version"), k=2).propose(batch, OBSERVE)
    np.testing.assert_array_equal(after, fresh.following)
    old.version, targets.proposer = "fake-1", old
    np.testing.assert_array_equal(targets.propose(batch, OBSERVE).following, before)
    assert targets.calls == 3  # the old version's chunks were dropped, not kept for a return


def test_a_policy_that_changes_during_a_call_is_asked_again():
    class Restless(FakeProposer):
        def propose(self, observations, k, seeds):
            chunks = super().propose(observations, k, seeds)
            self.version = "longer-version"
            return chunks

    batch = make_batch([1, 2])
    made = PolicyTargets(Restless(), k=2).propose(batch, OBSERVE).following
    fresh = PolicyTargets(FakeProposer(version="longer-version"), k=2).propose(batch, OBSERVE)
    np.testing.assert_array_equal(made, fresh.following)


def test_the_least_recently_used_states_are_dropped_first():
    proposer = FakeProposer()
    targets = PolicyTargets(proposer, k=1, capacity=2)
    for ids in ([1], [2], [1], [3], [1], [2]):
        targets.propose(make_batch(ids), OBSERVE)
    assert len(proposer.asked) == 4  # 1, 2, 3, and 2 again: it was used longest ago when 3 came


def test_chunks_of_another_length_are_not_mixed_up():
    targets = PolicyTargets(FakeProposer(), k=2)
    for steps in (2, 3, 2):
        following = targets.propose(make_batch([1], steps=steps), OBSERVE).following
        assert following.shape == (1, 2, steps, 1)
    assert targets.calls == 3


def test_seconds_in_the_policy_and_their_share(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("valueguide.online.targets.time.monotonic", lambda: now[0])

    seen = []

    class Slow(FakeProposer):
        def propose(self, observations, k, seeds):
            now[0] += 2.0
            seen.append(targets.policy_s)  # as another thread reads it: a call that runs counts so far
            now[0] += 1.0
            return super().propose(observations, k, seeds)

    targets = PolicyTargets(Slow(), k=1)
    targets.propose(make_batch([1]), OBSERVE)
    now[0] += 9.0
    assert seen == [2.0]
    targets.propose(make_batch([1]), OBSERVE)
    assert targets.policy_s == 3 and targets.policy_share == pytest.approx(0.25)


@pytest.mark.parametrize(("setting", "value"), [("k", 0), ("batch_size", 0), ("capacity", 0), ("seed", -1)])
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"policy targets: {setting}: expected"):
        PolicyTargets(FakeProposer(), **{setting: value})


class Wrong(FakeProposer):
    def __init__(self, change):
        super().__init__()
        self._change = change

    def propose(self, observations, k, seeds):
        return self._change(super().propose(observations, k, seeds))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c[:, :, :1],
            r"chunks: expected float32 \(2, 3, H >= 2, 1\), found float32 \(2, 3, 1, 1\)",
        ),
        (lambda c: c[:1], "chunks: expected"),
        (lambda c: c[:, 0], "chunks: expected"),
        (lambda c: c.astype(np.float16), "chunks: expected float32 .*found float16"),
        (lambda c: c * np.nan, "chunks: expected finite numbers"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DataError, match=f"policy targets: {message}"):
        PolicyTargets(Wrong(change), k=3).propose(make_batch([1, 2]), OBSERVE)


@pytest.mark.parametrize(
    ("batch", "message"),
    [(replace(make_batch([1]), next_index=None), "the ids"), (make_batch([-1]), "ids of 0 or more")],
)
def test_a_batch_that_does_not_name_its_successors_is_refused(batch, message):
    with pytest.raises(DataError, match=f"policy targets: next_index: expected {message}"):
        PolicyTargets(FakeProposer()).propose(batch, OBSERVE)


# -- in the background ---------------------------------------------------------------------------


def _numbered(step):
    return make_batch(np.random.default_rng(step).integers(0, 30, 6), terminal=[7])


def test_batches_come_in_order_with_the_proposals_they_would_have_alone():
    items = TargetBatches(_numbered, PolicyTargets(FakeProposer(), k=2), OBSERVE).iterate(4, prefetch=3)
    for step in range(4, 9):
        batch, proposals = next(items)
        np.testing.assert_array_equal(batch.next_index, _numbered(step).next_index)
        alone = PolicyTargets(FakeProposer(), k=2).propose(_numbered(step), OBSERVE)
        np.testing.assert_array_equal(proposals.following, alone.following)
    items.close()


def test_the_policy_is_asked_while_the_learner_is_busy():
    threads, made = [], threading.Semaphore(0)

    class Noted(FakeProposer):
        def propose(self, observations, k, seeds):
            threads.append(threading.current_thread())
            made.release()
            return super().propose(observations, k, seeds)

    items = TargetBatches(lambda step: make_batch([step]), PolicyTargets(Noted(), k=1), OBSERVE).iterate()
    next(items)
    for _ in range(3):  # the first item and two ahead, without asking for another
        assert made.acquire(timeout=5)
    items.close()
    assert threading.main_thread() not in threads and not threads[0].is_alive()


def test_what_was_made_ahead_for_the_old_policy_is_made_anew():
    targets = PolicyTargets(FakeProposer(version="fake-1"), k=2)
    items = TargetBatches(_numbered, targets, OBSERVE).iterate(prefetch=2)
    next(items)
    time.sleep(0.1)  # two more are waiting by now
    targets.proposer = FakeProposer(version="longer-version")
    for _ in range(4):
        batch, proposals = next(items)
        fresh = PolicyTargets(FakeProposer(version="longer-version"), k=2).propose(batch, OBSERVE)
        np.testing.assert_array_equal(proposals.following, fresh.following)
    items.close()


def test_an_error_of_the_policy_reaches_the_learner():
    items = TargetBatches(_numbered, PolicyTargets(Wrong(lambda c: c * np.nan)), OBSERVE).iterate()
    with pytest.raises(DataError, match="finite numbers"):
        next(items)


def test_torchs_random_stream_is_the_learners_alone():
    """Dropout draws from it between two batches: asking in the background must not shift it."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    items = TargetBatches(_numbered, PolicyTargets(FakeProposer(), k=2), OBSERVE).iterate()
    next(items)
    assert torch.equal(torch.rand(3), expected)
    items.close()
