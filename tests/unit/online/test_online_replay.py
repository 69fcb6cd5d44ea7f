"""Segments of episodes with takeovers, and the replay they are kept in and drawn from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from valueguide.online.replay import ReplayReader, ReplayWriter
from valueguide.online.replay_loader import Labelling, ReplayLoader
from valueguide.online.segments import Segment, segment_transitions, segments_of
from valueguide.types import Episode, Observation, Source, Step

GAMMA, E = 0.98, 4
NEVER = -1.0 / (1.0 - GAMMA)


def episode(sources: str, *, success: bool = False, terminated: bool = False, value: float = 0.0) -> Episode:
    """One step a letter: p policy, h human, s hold. The policy plans four steps at a time."""
    names: dict[str, Source] = {"p": "policy", "h": "human", "s": "hold"}
    steps, chunk, place = [], -1, 0
    for t, letter in enumerate(sources):
        fresh = letter == "p" and (t == 0 or sources[t - 1] != "p" or place == E)
        chunk, place = (chunk + 1, 0) if fresh else (chunk, place)
        last = t == len(sources) - 1
        steps.append(
            Step(
                observation=Observation({}, np.full(3, t + value, np.float32), "press the button"),
                action=np.full(2, t + value, np.float32),
                source=names[letter],
                terminated=last and terminated,
                truncated=last and not terminated,
                success=last and success,
                chunk_id=chunk if letter == "p" else -1,
                chunk_step=place if letter == "p" else 0,
                planned_chunk=np.zeros((E, 2), np.float32) if letter == "p" else None,
                policy_version="p1",
            )
        )
        place += letter == "p"
    final = Observation({}, np.full(3, len(sources) + value, np.float32), "press the button")
    return Episode(steps, final, "press the button")


def test_an_episode_is_cut_where_the_commander_changes() -> None:
    segments = segments_of(episode("ppppppshhhppp", success=True, terminated=True), "a")
    assert [(s.source, s.steps, s.end, s.store, s.first_step) for s in segments] == [
        ("policy", 6, "takeover", "rollout", 0),
        ("human", 3, "handback", "correction", 7),
        ("policy", 3, "success", "rollout", 10),
    ]
    assert [list(s.planned_start) for s in segments] == [[0, 4], [], [0]]
    # The observation after the last step is what came next, whoever commanded then.
    assert segments[0].state[-1, 0] == 6 and segments[1].state[-1, 0] == 10


def test_a_takeover_is_a_failure_or_bootstraps_and_says_that_the_plan_was_cut() -> None:
    first = segments_of(episode("pppppphhhp"), "a")[0]
    failed = segment_transitions(first, E, GAMMA, takeover="failure")
    assert list(failed.starts) == [0, 4]
    assert failed.chunks.discount[4] == 0.0
    assert failed.chunks.reward[4] == pytest.approx(-1 + GAMMA * NEVER)
    free = segment_transitions(first, E, GAMMA, takeover="bootstrap")
    assert free.chunks.discount[4] == pytest.approx(GAMMA**2)
    assert free.chunks.reward[4] == pytest.approx(-1 - GAMMA)
    for made in (failed, free):
        assert not made.cut[0] and made.cut[4]
        assert made.chunks.successor[0] == 4 and made.chunks.successor[4] == 6


def test_a_hand_back_bootstraps_under_both_rules() -> None:
    human = segments_of(episode("pphhhhhppp"), "a")[1]
    for rule in ("failure", "bootstrap"):
        made = segment_transitions(human, E, GAMMA, takeover=rule)  # type: ignore[arg-type]
        assert made.chunks.discount[4] == pytest.approx(GAMMA) and made.chunks.successor[4] == 5
        assert list(made.starts) == [0, 1, 2, 3, 4]


def small_segments(count: int, value: float = 0.0) -> list[Segment]:
    made = [segments_of(episode("pppphhhppp", value=value + 100 * i), f"e{i}") for i in range(count)]
    return [segment for parts in made for segment in parts]


def loader(folder: Path, **settings: object) -> ReplayLoader:
    reader = ReplayReader(folder)
    return ReplayLoader(reader, Labelling(E, GAMMA), 8, 0, "state", refresh_every=5, **settings)  # type: ignore[arg-type]


def test_what_was_appended_is_read_back_equal_also_by_a_reader_that_was_there_before(tmp_path) -> None:
    with ReplayWriter(tmp_path) as writer:
        reader = ReplayReader(tmp_path)
        for number, segment in enumerate(small_segments(3)):
            sequence = writer.append(segment)
            arrived, gone = reader.refresh()
            assert arrived == [sequence] and not gone
            again = reader.segments[sequence]
            for name in ("state", "action", "chunk_id", "planned", "planned_start"):
                np.testing.assert_array_equal(getattr(again, name), getattr(segment, name), err_msg=name)
            assert (again.source, again.end, again.episode) == (segment.source, segment.end, segment.episode)
            assert number >= 0


def test_batches_are_a_function_of_seed_and_step_and_survive_a_resume(tmp_path) -> None:
    segments = small_segments(8)
    with ReplayWriter(tmp_path) as writer:
        for segment in segments[:6]:
            writer.append(segment)
        first = loader(tmp_path)
        drawn, state = [], {}
        for step in range(30):
            if step == 12:
                for segment in segments[6:]:
                    writer.append(segment)
            if step == 15:
                state = first.state_dict()
            drawn.append(first.batch(step))
    second = loader(tmp_path)
    second.load_state_dict(state)
    for step in range(15, 30):
        again = second.batch(step)
        np.testing.assert_array_equal(again.index, drawn[step].index)
        np.testing.assert_array_equal(again.actions, drawn[step].actions)
    assert {int(i) >> 20 for i in drawn[0].index} <= {int(i) >> 20 for i in drawn[29].index} | set(range(100))


def test_rows_come_from_the_stores_in_the_wanted_shares(tmp_path) -> None:
    with ReplayWriter(tmp_path) as writer:
        for segment in small_segments(4):
            writer.append(segment)
    draw = loader(tmp_path, ratios={"offline": 0.5, "rollout": 0.25, "correction": 0.25})
    stores = np.concatenate([draw.batch(step).store for step in range(200)])
    # Nothing is offline, so the two others share its half.
    assert np.mean(stores == 1) == pytest.approx(0.5, abs=0.06)
    assert draw.shares["rollout"] == pytest.approx(0.5)


_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_online_replay import small_segments
from valueguide.online.replay import ReplayWriter
writer = ReplayWriter({folder!r})
for round in range(10**6):
    for segment in small_segments(1, 1000.0 * round):
        print(writer.append(segment), float(segment.state[0, 0]), flush=True)
"""


@pytest.mark.faults
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path) -> None:
    acknowledged: dict[int, float] = {}
    rng = np.random.default_rng(0)
    for _ in range(4):
        code = _WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "replay"))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(float(rng.uniform(0.0, 0.2)))
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        for line in lines:
            parts = line.split()
            if len(parts) == 2 and line.strip():
                acknowledged[int(parts[0])] = float(parts[1])
    reader = ReplayReader(tmp_path / "replay")
    reader.refresh()
    assert len(acknowledged) >= 4
    for sequence, value in acknowledged.items():
        assert reader.segments[sequence].state[0, 0] == value
