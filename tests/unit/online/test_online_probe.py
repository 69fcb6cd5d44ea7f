"""Probes: drawn evenly, with returns that mean something, kept bit for bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from segment_episodes import TASKS, episode, segment

from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.online.probe import PROBE, Probe, make_probe, realised_return, segments_in
from valueguide.online.replay import ReplayWriter
from valueguide.online.replay_loader import Labelling
from valueguide.online.segments import segments_of
from valueguide.testing.fakes import FakeProposer

LABELLING = Labelling(4, gamma=0.5)  # "never" is -2
ROLLOUTS = [segment(number, "rollout", steps=12) for number in range(12)]


def states(probe: Probe) -> set[bytes]:
    return {observation.state.tobytes() for observation in probe.observations}


def test_chunks_are_those_that_ran_with_the_returns_that_followed() -> None:
    # Twelve steps, plans at 0, 4 and 8; success makes the last three steps 0.
    (one,) = segments_of(episode("pppppppppppp"), "a")
    probe = make_probe([one], LABELLING, states=10, k=2)
    order = np.argsort(probe.chunks[:, 0, 0])
    assert probe.chunks[order, :, 0].tolist() == [[100 * i + c for c in range(4)] for i in range(3)]
    assert [probe.observations[i].state[0] for i in order] == [0, 4, 8]
    # From step 8: one step of -1. From 4: five. From 0: nine. Sum of -0.5^i.
    np.testing.assert_allclose(probe.returns[order], [-2 * (1 - 0.5**9), -2 * (1 - 0.5**5), -1.0], rtol=1e-6)
    assert probe.episode.tolist() == [0, 0, 0]
    assert probe.facts["candidates"] == "chunks of other states" and probe.facts["gamma"] == 0.5


def test_a_takeover_is_worth_what_the_rule_says_and_a_hand_back_says_nothing() -> None:
    policy, human, _ = segments_of(episode("pppphhhhpppp"), "a")
    failed = realised_return(policy, LABELLING)
    np.testing.assert_allclose(failed, [-2.0, -2.0, -2.0, -2.0])  # -1 -0.5 -0.25 -0.125 * 2
    assert failed[0] != realised_return(replace(policy, end="success"), LABELLING)[0]
    assert np.isneginf(realised_return(policy, replace(LABELLING, takeover="bootstrap"))).all()
    assert np.isneginf(realised_return(human, LABELLING)).all()


def test_what_is_not_known_is_left_out() -> None:
    unknown = replace(ROLLOUTS[1], end="failure", episode_steps=None)
    with pytest.raises(DataError, match="chunks of rollout: expected 2 or more, found 0"):
        make_probe([unknown], LABELLING)
    # Plans of 3 steps do not say what E = 4 steps were meant.
    short = replace(ROLLOUTS[1], planned=ROLLOUTS[1].planned[:, :3])
    with pytest.raises(DataError, match="found 0. Finished rollouts are needed"):
        make_probe([short], LABELLING)
    human = segment(2, "correction", steps=12)
    with pytest.raises(DataError):
        make_probe([human], LABELLING)
    assert len(make_probe([replace(human, end="success")], LABELLING, stores=("correction",))) == 9


def test_tasks_share_the_states_evenly_and_the_seed_decides_which() -> None:
    some = [one for one in ROLLOUTS if one.task == TASKS[0]] + [ROLLOUTS[1], ROLLOUTS[3]]
    assert sum(len(LABELLING.apply(one).starts) for one in some) == 24
    probe = make_probe(some, LABELLING, states=10)
    assert [probe.tasks.count(task) for task in TASKS] == [5, 5]
    assert [make_probe(some, LABELLING, states=20).tasks.count(task) for task in TASKS] == [14, 6]
    assert len(states(probe)) == 10  # without replacement
    of_episode = {id(one): one.episode for one in some}
    assert len(np.unique(probe.episode)) <= len(of_episode) and probe.episode.dtype == np.int64
    assert make_probe(some, LABELLING, states=10).digest == probe.digest
    assert states(make_probe(some, LABELLING, states=10, seed=1)) != states(probe)
    # Every state of the task has the same chance, 6 of 18.
    counts: Counter[bytes] = Counter()
    for seed in range(60):
        counts.update(states(make_probe(some[:6], LABELLING, states=6, seed=seed)))
    assert len(counts) == 18 and min(counts.values()) > 6 and max(counts.values()) < 38


def test_candidates_are_chunks_of_other_states_or_proposals() -> None:
    probe = make_probe(ROLLOUTS, LABELLING, states=30, k=5)
    known = {chunk.tobytes(): task for chunk, task in zip(probe.chunks, probe.tasks, strict=True)}
    for chunk, candidates, task in zip(probe.chunks, probe.candidates, probe.tasks, strict=True):
        assert len({one.tobytes() for one in candidates}) == 5
        assert all(known[one.tobytes()] == task for one in candidates)
        assert chunk.tobytes() not in {one.tobytes() for one in candidates}
    # With fewer states than candidates, chunks come twice rather than from the state itself.
    few = make_probe(ROLLOUTS[:1], LABELLING, states=2, k=3)
    assert few.candidates.shape == (2, 3, 4, 2) and (few.candidates[0] == few.chunks[1]).all()
    proposer = FakeProposer(horizon=6, action_dim=2, version="base-7")
    made = make_probe(ROLLOUTS, LABELLING, states=8, k=3, proposer=proposer)
    assert made.candidates.shape == (8, 3, 4, 2) and made.facts["candidates"] == "policy base-7"


def test_it_is_kept_bit_for_bit_and_its_digest_goes_by_the_content(tmp_path: Path) -> None:
    probe = make_probe(ROLLOUTS, LABELLING, states=6, k=3, facts={"source": "day1"})
    probe.save(tmp_path / PROBE)
    again = Probe.load(tmp_path / PROBE)
    assert again.digest == probe.digest and again.facts == probe.facts and again.tasks == probe.tasks
    for a, b in zip(probe.observations, again.observations, strict=True):
        np.testing.assert_array_equal(a.images["front"], b.images["front"])
        np.testing.assert_array_equal(a.environment_state, b.environment_state)
        np.testing.assert_array_equal(a.state, b.state)
    for name in ("chunks", "returns", "episode", "candidates"):
        np.testing.assert_array_equal(getattr(probe, name), getattr(again, name))
    changed = [
        replace(probe, returns=probe.returns + 1),
        replace(probe, chunks=probe.chunks + 1),
        replace(probe, candidates=probe.candidates + 1),
        replace(probe, facts={}),
        replace(probe, episode=probe.episode + 1),
        replace(probe, observations=[replace(o, task="other") for o in probe.observations]),
        replace(probe, observations=[replace(o, state=o.state + 1) for o in probe.observations]),
    ]
    assert len({probe.digest, *(other.digest for other in changed)}) == 8


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / PROBE
    with pytest.raises(CheckpointError, match="expected a probe, found no such file"):
        Probe.load(path)
    make_probe(ROLLOUTS, LABELLING, states=6).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum"):
        Probe.load(path)
    ReplayWriter(tmp_path / "replay").append(ROLLOUTS[0])
    (other,) = (tmp_path / "replay" / "segments").iterdir()
    with pytest.raises(DataError, match="format: expected valueguide.probe/1"):
        Probe.load(other)


def test_shapes_and_numbers_are_checked() -> None:
    probe = make_probe(ROLLOUTS, LABELLING, states=6)
    for wrong in (
        {"returns": probe.returns[1:]},
        {"episode": probe.episode[1:]},
        {"chunks": probe.chunks[:, :3]},
        {"candidates": probe.candidates[:, :1]},
        {"observations": probe.observations[:1]},
    ):
        with pytest.raises(DataError, match="probe: shapes"):
            replace(probe, **wrong)
    with pytest.raises(DataError, match="finite"):
        replace(probe, returns=np.where(np.arange(6) == 2, np.float32(np.nan), probe.returns))
    for states_, k in ((1, 8), (8, 1)):
        with pytest.raises(ConfigError, match="probe: states and k"):
            make_probe(ROLLOUTS, LABELLING, states=states_, k=k)


def test_segments_come_from_a_replay_and_nothing_else_that_is_no_dataset(tmp_path: Path) -> None:
    with ReplayWriter(tmp_path / "replay") as writer:
        for one in ROLLOUTS:
            writer.append(one)
    from_disk = make_probe(segments_in(tmp_path / "replay"), LABELLING, states=9)
    assert from_disk.digest == make_probe(ROLLOUTS, LABELLING, states=9).digest
    with pytest.raises(DataError, match="expected a replay or a LeRobotDataset v3, found neither"):
        list(segments_in(tmp_path))
