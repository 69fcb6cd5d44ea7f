"""Each finished episode is taken in once, whatever dies in between; every n-th is held out."""

from __future__ import annotations

import errno
import shutil

import pytest

from valueguide.data import layout
from valueguide.data.compact import compact
from valueguide.data.growing import GrowingDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.online import replay
from valueguide.online.intake import HELD_OUT, LEDGER, REPLAY, Intake, Ledger
from valueguide.online.replay import ReplayReader
from valueguide.online.segments import segments_of
from valueguide.testing.small_learner import SMALL_SPEC, small_episode


def record(root, numbers):
    with EpisodeWriter(root, SMALL_SPEC) as writer:
        for number in numbers:
            writer.save(small_episode(number))
    return root


def opened(tmp_path, datasets=("day",), offline=(), **options) -> Intake:
    paths = [[str(tmp_path / name) for name in names] for names in (datasets, offline)]
    return Intake(tmp_path / "learner", *paths, **({"hold_out": 3} | options))


def take_all(intake):
    entries = []
    while intake.look():
        entries += [entry] if (entry := intake.take()) else []
    return entries


def stored(tmp_path, name=REPLAY):
    reader = ReplayReader(tmp_path / "learner" / name)
    reader.refresh()
    assert not reader.damaged
    return [(s.episode.rsplit(":", 1)[0], s.first_step, s.store) for s in reader.segments.values()]


def wanted(*numbers, name="day", store=None):
    """What `stored` should say of these, recorded in ascending order from 0."""
    return [
        (f"{name}:{n}", s.first_step, s.store)
        for n in numbers
        for s in segments_of(small_episode(n), "", store=store)
    ]


def test_every_third_episode_is_held_out_and_the_others_are_learned_from(tmp_path):
    record(tmp_path / "day", range(7))
    intake = opened(tmp_path)
    entries = take_all(intake)
    assert [e.held_out for e in entries] == [False, False, True, False, False, True, False]
    assert stored(tmp_path) == wanted(0, 1, 3, 4, 6) and stored(tmp_path, HELD_OUT) == wanted(2, 5)
    assert "correction" in {store for *_, store in stored(tmp_path)}
    assert intake.ledger.recorded_episodes == 7
    assert intake.ledger.recorded_steps == sum(len(small_episode(n).steps) for n in (0, 1, 3, 4, 6))
    assert intake.counts() == {"learned_from": 5, "held_out": 2, "offline": 0, "waiting": 0, "damaged": 0}


def test_a_restart_takes_nothing_twice_not_even_from_compacted_files(tmp_path):
    root = record(tmp_path / "day", range(4))
    first = opened(tmp_path)
    assert len(take_all(first)) == 4
    first.close()
    again = opened(tmp_path)
    assert take_all(again) == []
    compact(root)
    assert take_all(again) == []
    again.close()
    record(root, [4, 5])
    last = opened(tmp_path)
    assert [e.held_out for e in take_all(last)] == [False, True]
    assert stored(tmp_path) == wanted(0, 1, 3, 4) and stored(tmp_path, HELD_OUT) == wanted(2, 5)


def test_another_recording_in_a_folder_of_the_same_name_is_new(tmp_path):
    for day, numbers in (("a", range(2)), ("b", range(2, 4))):
        record(tmp_path / day / "day", numbers)
    assert len(take_all(opened(tmp_path, ("a/day", "b/day")))) == 4
    shutil.rmtree(tmp_path / "b")
    record(tmp_path / "b" / "day", [9])
    assert len(take_all(opened(tmp_path, ("a/day", "b/day")))) == 1


@pytest.mark.faults
@pytest.mark.parametrize("segments", [1, 2])
def test_a_death_between_two_segments_of_an_episode(tmp_path, monkeypatch, segments):
    record(tmp_path / "day", [4, 9])  # two segments each
    intake = opened(tmp_path)
    original, left = replay.ReplayWriter.append, [segments]

    def die(self, segment):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(self, segment)

    with monkeypatch.context() as patch:
        patch.setattr(replay.ReplayWriter, "append", die)
        if segments == 2:
            patch.setattr(Ledger, "note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        intake.look()
        with pytest.raises(KeyboardInterrupt):
            intake.take()
    assert len(stored(tmp_path)) == segments
    assert len(take_all(opened(tmp_path))) == 2
    assert [first for _, first, _ in stored(tmp_path)] == [0, 5, 0, 5]


def test_a_dataset_is_waited_for_and_a_damaged_episode_passed_over(tmp_path):
    intake = opened(tmp_path)
    assert not intake.look() and intake.take() is None and intake.problems == {}
    root = record(tmp_path / "day", range(3))
    path = layout.numbered(root, layout.DATA_TEMPLATE, 1)
    path.write_bytes(path.read_bytes()[:50])
    assert len(take_all(intake)) == 2
    (line,) = intake.problems.values()
    assert "file-001" in line and intake.counts()["damaged"] == 1


def test_an_episode_that_does_not_fit_the_replay_is_one_line(tmp_path):
    from dataclasses import replace

    record(tmp_path / "day", [0])
    other = replace(SMALL_SPEC, state=("place",))
    episode = small_episode(1)
    for step in episode.steps:
        step.observation = replace(step.observation, state=step.observation.state[:1])
    episode.final_observation = replace(episode.final_observation, state=episode.final_observation.state[:1])
    with EpisodeWriter(tmp_path / "other", other) as writer:
        writer.save(episode)
    record(tmp_path / "more", [2])
    intake = opened(tmp_path, ("day", "other", "more"))
    assert len(take_all(intake)) == 2
    (line,) = intake.problems.values()
    assert "skipped" in line and "state" in line and "\n" not in line


@pytest.mark.faults
@pytest.mark.parametrize("what", ["segment", "ledger"])
def test_on_a_full_disk_the_episode_waits(tmp_path, monkeypatch, what):
    record(tmp_path / "day", [0, 4])
    intake = opened(tmp_path)
    assert intake.look() and intake.take() is not None

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if what == "segment":
            patch.setattr(replay, "write_segment", full)
        else:
            patch.setattr("valueguide.online.intake.os.fsync", full)
        for _ in range(2):
            with pytest.raises((DataError, OSError), match="No space left"):
                intake.take()
            assert intake.waiting == 1
    assert intake.take() is not None and intake.problems == {}
    assert [first for _, first, _ in stored(tmp_path)] == [0, 0, 5]
    assert len(Ledger(tmp_path / "learner" / LEDGER).taken) == 2


def test_offline_datasets_are_imported_once_and_not_counted(tmp_path):
    root = record(tmp_path / "demos", range(3))
    intake = opened(tmp_path, (), ("demos",))
    assert [e.offline for e in take_all(intake)] == [True] * 3
    assert stored(tmp_path) == wanted(0, 1, 2, name="demos", store="offline")
    assert (intake.ledger.recorded_episodes, intake.ledger.recorded_steps) == (0, 0)
    intake.close()
    record(root, [3])
    assert take_all(opened(tmp_path, (), ("demos",))) == []


def test_the_ledger_drops_a_line_that_a_kill_cut_off_and_refuses_what_is_none(tmp_path):
    record(tmp_path / "day", range(2))
    take_all(opened(tmp_path))
    path = tmp_path / "learner" / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"episode": "da')
    assert len(Ledger(path).taken) == 2 and path.read_bytes() == whole
    path.write_bytes(whole + b'{"episode": 1}\n')
    with pytest.raises(DataError, match="line 3"):
        Ledger(path)


def test_a_bounded_replay_does_not_bring_evicted_episodes_back(tmp_path):
    record(tmp_path / "day", range(6))
    first = opened(tmp_path, max_bytes=4000)
    assert len(take_all(first)) == 6
    first.close()
    kept = stored(tmp_path)
    assert len(kept) < len(wanted(0, 1, 3, 4))
    assert take_all(opened(tmp_path, max_bytes=4000)) == [] and stored(tmp_path) == kept


def test_a_look_without_changes_opens_nothing(tmp_path, monkeypatch):
    record(tmp_path / "day", range(2))
    intake = opened(tmp_path)
    take_all(intake)
    monkeypatch.setattr(GrowingDataset, "_open", lambda *_: pytest.fail("read again"))
    assert not intake.look()
