"""Shaped rewards against exact values on a chain, and the telescoping sum."""

from __future__ import annotations

import numpy as np
import pytest
from data_episodes import SPEC, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.data.loader import ChunkLoader
from valueguide.data.reader import EpisodeDataset
from valueguide.data.shaping import shape_rewards
from valueguide.data.transitions import Labels, episode_labels, sparse_labels
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.types import Float32

GAMMA = 0.5
ONE = np.array([0]), np.array([4])


def _potential(*values: float) -> Float32:
    return np.array(values, np.float32)


def test_success_by_hand() -> None:
    """Rewards -1, -1, -1, 0; the last step's target is terminal, so the picture behind it does not count."""
    labels = sparse_labels(4, True, True, GAMMA, success_steps=1)
    found = shape_rewards(labels, *ONE, _potential(0.0, 1.0, 2.0, 4.0, 9.0), GAMMA)
    assert found.labels.reward.tolist() == [-1 + 0.5, -1 + 1.0 - 1, -1 + 2.0 - 2, 0 - 4.0]
    assert found.labels.mask.tolist() == [1, 1, 1, 0] and found.unshaped == 0
    # Returns -1.75, -1.5, -1, 0, each less its potential.
    assert found.labels.mc_return.tolist() == [-1.75, -2.5, -3.0, -4.0]


def test_a_time_limit_keeps_the_potential_of_what_follows() -> None:
    labels = sparse_labels(4, False, False, GAMMA)
    found = shape_rewards(labels, *ONE, _potential(0.0, 1.0, 2.0, 4.0, 8.0), GAMMA)
    assert found.labels.reward[-1] == -1 + 4.0 - 4.0
    assert found.labels.mc_return.tolist() == [-2.0, -3.0, -4.0, -6.0]  # -2 for ever, less the potential


def test_what_is_missing_is_left_and_counted() -> None:
    labels = sparse_labels(4, False, False, GAMMA)
    found = shape_rewards(labels, *ONE, _potential(0.0, 1.0, np.nan, 4.0, 8.0), GAMMA)
    assert found.labels.reward.tolist() == [-0.5, -1.0, -1.0, -1.0] and found.unshaped == 2
    nothing = shape_rewards(labels, *ONE, np.full(5, np.nan, np.float32), GAMMA)
    assert nothing.unshaped == 4
    assert np.array_equal(nothing.labels.reward, labels.reward)
    assert np.allclose(nothing.labels.mc_return, labels.mc_return)


def test_a_final_observation_without_potential_does_not_matter_where_it_is_terminal() -> None:
    labels = sparse_labels(4, True, True, GAMMA, success_steps=1)
    known = shape_rewards(labels, *ONE, _potential(0.0, 1.0, 2.0, 4.0, 9.0), GAMMA)
    unknown = shape_rewards(labels, *ONE, _potential(0.0, 1.0, 2.0, 4.0, np.nan), GAMMA)
    assert unknown.unshaped == 0 and np.array_equal(unknown.labels.reward, known.labels.reward)


@given(st.integers(0, 2**16), st.floats(0.0, 0.99))
@settings(max_examples=60, deadline=None)
def test_returns_move_by_the_potential_and_by_nothing_else(seed: int, gamma: float) -> None:
    """The sum telescopes: G' = G - Phi(s) for every step of every kind of episode."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=5)
    end = np.cumsum(lengths)
    success, ended = rng.random(5) < 0.4, rng.random(5) < 0.5
    labels = episode_labels(end - lengths, end, success, success | ended, gamma)
    potential = rng.uniform(0, 10, size=end[-1] + 5).astype(np.float32)
    found = shape_rewards(labels, end - lengths, end, potential, gamma).labels
    assert np.allclose(found.mc_return, labels.mc_return - potential[: end[-1]], atol=1e-3)
    assert np.array_equal(found.mask, labels.mask)


#: A chain of places 0 … 5: 5 is the goal, 0 a pit; each step goes down (0) or up (1).
PLACES, GOAL, PIT = 6, 5, 0


def _walks(rng: np.random.Generator, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Places and actions of random walks that end at the goal, in the pit, or after 7 steps."""
    places, actions = [], []
    for _ in range(count):
        seen, done = [int(rng.integers(1, GOAL))], []
        while seen[-1] not in (GOAL, PIT) and len(done) < 7:
            done.append(int(rng.integers(2)))
            seen.append(seen[-1] + (1 if done[-1] else -1))
        places.append(seen)
        actions.append(done)
    return places, actions


def _q_values(labels: Labels, walks: list[list[int]], actions: list[list[int]], gamma: float) -> Float32:
    """The fixed point of Q-learning on the transitions of the walks, float64 (PLACES, 2)."""
    before = np.concatenate([w[:-1] for w in walks])
    after = np.concatenate([w[1:] for w in walks])
    action = np.concatenate(actions)
    q = np.zeros((PLACES, 2))
    for _ in range(400):
        target = labels.reward + gamma * labels.mask * q[after].max(1)
        total, seen = np.zeros_like(q), np.zeros_like(q)
        np.add.at(total, (before, action), target)
        np.add.at(seen, (before, action), 1)
        q = np.divide(total, seen, out=q.copy(), where=seen > 0)
    return q


@pytest.mark.parametrize("seed", range(5))
def test_the_best_action_on_a_chain_stays_the_best(seed: int) -> None:
    """Exact values: Q' = Q - Phi, even for a potential that points into the pit."""
    rng, gamma = np.random.default_rng(seed), 0.9
    walks, actions = _walks(rng, 400)
    end = np.cumsum([len(a) for a in actions])
    start = end - [len(a) for a in actions]
    won = np.array([w[-1] == GOAL for w in walks])
    ended = won | np.array([w[-1] == PIT for w in walks])
    labels = episode_labels(start, end, won, ended, gamma, success_steps=1)
    phi = rng.uniform(0, 30, PLACES)
    phi[PIT] = 100.0
    potential = np.concatenate([phi[np.concatenate([w[:-1] for w in walks])], phi[[w[-1] for w in walks]]])
    shaped = shape_rewards(labels, start, end, potential.astype(np.float32), gamma).labels
    plain = _q_values(labels, walks, actions, gamma)[1:GOAL]
    moved = _q_values(shaped, walks, actions, gamma)[1:GOAL]
    assert np.allclose(moved, plain - phi[1:GOAL, None], atol=1e-3)
    assert plain.argmax(1).tolist() == moved.argmax(1).tolist() == [1, 1, 1, 1]
    # What is prevented: a terminal state that keeps its potential lures into the pit.
    ahead = np.concatenate([phi[w[1:]] for w in walks])
    bad = Labels(labels.reward + gamma * ahead - potential[: end[-1]], labels.mask, labels.mc_return)
    assert _q_values(bad, walks, actions, gamma)[1].argmax() == 0


@pytest.mark.parametrize("wrong", [np.zeros(4, np.float32), np.array([0, np.inf, 0, 0, 0], np.float32)])
def test_potentials_that_do_not_fit_are_refused(wrong: Float32) -> None:
    with pytest.raises(DataError, match="shaping: potential"):
        shape_rewards(sparse_labels(4, True, True, GAMMA), *ONE, wrong, GAMMA)


def test_a_loader_gives_chunks_with_shaped_rewards(tmp_path_factory: pytest.TempPathFactory) -> None:
    """n steps of shaped rewards add up to gamma^n Phi(s') - Phi(s) more, also over chunks."""
    root = tmp_path_factory.mktemp("shaped") / "data"
    with EpisodeWriter(root, SPEC) as writer:
        for seed, ending in enumerate(("success", "limit", "failure")):
            writer.save(make_episode(seed, 9, ending))
    dataset = EpisodeDataset.open(root)
    potential = np.random.default_rng(0).uniform(0, 5, dataset.rows).astype(np.float32)
    plain = ChunkLoader(dataset, 3, 0.9, observation="state")
    shaped = ChunkLoader(dataset, 3, 0.9, observation="state", potential=potential)
    assert (plain.unshaped, shaped.unshaped) == (0, 0)
    a, b = plain.transitions, shaped.transitions
    ahead = b.discount * potential[b.successor]  # 0 behind terminal steps
    assert np.allclose(b.reward, a.reward + ahead - potential[: dataset.frames], atol=1e-4)
    assert np.allclose(b.mc_return, a.mc_return - potential[: dataset.frames], atol=1e-3)
    potential[2] = np.nan
    assert ChunkLoader(dataset, 3, 0.9, observation="state", potential=potential).unshaped == 2
