"""Nothing that `save` returned is lost to kill -9 or a full disk; what was half-written is dropped."""

import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_episodes import SPEC, assert_same_episode, make_episode

from valueguide.data import layout
from valueguide.data import writer as writer_module
from valueguide.data.compact import compact
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError

pytestmark = pytest.mark.faults
RECORDER = """
import sys
from data_episodes import SPEC, make_episode
from valueguide.data.writer import EpisodeWriter
with EpisodeWriter(sys.argv[1], SPEC) as writer:
    index = int(sys.argv[2])
    while True:
        assert writer.save(make_episode(index)) == index
        print(index, flush=True)
        index += 1
"""
COMPACTOR = """
import sys
from valueguide.data.compact import compact
print("go", flush=True)
while True:
    compact(sys.argv[1], float(sys.argv[2]))
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after(process, delay):
    """SIGKILL `delay` seconds after the first line; returns the lines that were printed."""
    first = process.stdout.readline()
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    return (first + rest).split()


def test_kill_9_at_random_moments_loses_no_saved_episode(tmp_path):
    rng = random.Random(0)
    saved = 0
    for _ in range(5):
        printed = kill_after(start(RECORDER, tmp_path, saved), rng.uniform(0.0, 0.15))
        dataset = EpisodeDataset.open(tmp_path)  # Readable before any repair.
        assert dataset.episodes >= int(printed[-1]) + 1
        with EpisodeWriter(tmp_path, SPEC):
            pass
        dataset = EpisodeDataset.open(tmp_path)
        saved = dataset.episodes
        assert saved >= int(printed[-1]) + 1
        assert dataset.frames == 5 * saved
    for index in range(saved):
        assert_same_episode(dataset.to_episode(index), make_episode(index))
    assert not list(tmp_path.rglob("*.tmp"))


def test_kill_9_during_compaction_leaves_a_whole_dataset(tmp_path):
    root = tmp_path / "set"
    with EpisodeWriter(root, SPEC) as writer:
        for i in range(6):
            writer.save(make_episode(i))
    identity = EpisodeDataset.open(root).dataset_id
    rng = random.Random(1)
    for _ in range(4):
        kill_after(start(COMPACTOR, root, 0.02), rng.uniform(0.0, 0.1))
        assert EpisodeDataset.open(root).dataset_id == identity
    compact(root)
    assert list(tmp_path.iterdir()) == [root]
    with EpisodeWriter(root, SPEC) as writer:
        assert writer.save(make_episode(6)) == 6


STAGES = [layout.DATA_TEMPLATE, layout.FINALS_TEMPLATE, layout.EPISODES_TEMPLATE, layout.TASKS, layout.STATS,
          layout.INFO]  # fmt: skip


def stop_before(monkeypatch, stage, error):
    """Make the rename of file kind `stage` fail with `error`, leaving everything before it in place."""
    folder = stage.split("/chunk")[0]
    replace = os.replace

    def fail(source, target):
        if folder in str(target):
            raise error
        replace(source, target)

    monkeypatch.setattr(layout.os, "replace", fail)


def assert_same_stats(a, b):
    assert a.keys() == b.keys()
    for name in a:
        for statistic in a[name]:
            np.testing.assert_allclose(a[name][statistic], b[name][statistic], atol=1e-9)


class Killed(BaseException):
    """Stands for the process's end: nothing that handles errors may run."""


@pytest.mark.parametrize("stage", STAGES)
def test_half_written_episode_is_dropped_with_one_line_at_reopen(tmp_path, monkeypatch, caplog, stage):
    writer = EpisodeWriter(tmp_path, SPEC)
    writer.save(make_episode(0))
    stats = json.loads((tmp_path / layout.STATS).read_text())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_before(patch, stage, Killed())
        writer.save(make_episode(1))
    writer.close()
    (tmp_path / "data" / "chunk-000" / ".file-001.parquet.tmp").write_bytes(b"PAR1 half")
    assert EpisodeDataset.open(tmp_path).episodes == 1
    with caplog.at_level(logging.WARNING, "valueguide.data"), EpisodeWriter(tmp_path, SPEC) as writer:
        assert len(caplog.records) == 1
        assert "dropped half-written episode 1, kept the 1 before it" in caplog.records[0].getMessage()
        assert_same_stats(json.loads((tmp_path / layout.STATS).read_text()), stats)
        assert writer.save(make_episode(1)) == 1
    dataset = EpisodeDataset.open(tmp_path)
    assert_same_episode(dataset.to_episode(0), make_episode(0))
    assert_same_episode(dataset.to_episode(1), make_episode(1))
    assert json.loads((tmp_path / layout.STATS).read_text())["action"]["count"] == [10]


def test_a_kill_during_the_repair_leaves_no_statistics_of_the_dropped_episode(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path, SPEC)
    writer.save(make_episode(0))
    stats = json.loads((tmp_path / layout.STATS).read_text())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_before(patch, layout.INFO, Killed())
        writer.save(make_episode(1))
    writer.close()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            writer_module, "_known_stats", killed
        )  # Files are deleted, stats.json is not yet right.
        EpisodeWriter(tmp_path, SPEC)
    with EpisodeWriter(tmp_path, SPEC):
        assert_same_stats(json.loads((tmp_path / layout.STATS).read_text()), stats)
    (tmp_path / layout.STATS).unlink()
    with EpisodeWriter(tmp_path, SPEC):
        assert_same_stats(json.loads((tmp_path / layout.STATS).read_text()), stats)


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_is_one_clear_error_and_recording_goes_on(tmp_path, monkeypatch, stage):
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(make_episode(0))
        refused = pytest.raises(DataError, match="episode not stored.*No space left")
        with monkeypatch.context() as patch, refused as caught:
            stop_before(patch, stage, OSError(28, "No space left on device"))
            writer.save(make_episode(1))
        assert "\n" not in str(caught.value)
        assert len(layout.existing(tmp_path, layout.DATA_TEMPLATE)) == 1  # Room was given back.
        assert writer.save(make_episode(1)) == 1
    dataset = EpisodeDataset.open(tmp_path)
    assert_same_episode(dataset.to_episode(0), make_episode(0))
    assert_same_episode(dataset.to_episode(1), make_episode(1))
    assert json.loads((tmp_path / layout.STATS).read_text())["action"]["count"] == [10]


def test_a_real_refused_write_loses_nothing(tmp_path):
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(make_episode(0))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(DataError, match="episode not stored"):
                writer.save(make_episode(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert writer.save(make_episode(1)) == 1
    assert EpisodeDataset.open(tmp_path).episodes == 2


def test_missing_committed_files_are_reported_not_repaired_away(tmp_path):
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(make_episode(0))
        writer.save(make_episode(1))
    layout.numbered(tmp_path, layout.EPISODES_TEMPLATE, 1).unlink()
    with pytest.raises(DataError, match="counts 2 episodes, files hold 1"):
        EpisodeWriter(tmp_path, SPEC)
    assert len(layout.existing(tmp_path, layout.DATA_TEMPLATE)) == 2
    (tmp_path / layout.INFO).unlink()
    with pytest.raises(DataError, match="info.json: file is missing but data files exist"):
        EpisodeWriter(tmp_path, SPEC)


def test_save_cost_does_not_grow(tmp_path, monkeypatch):
    """The number of files that one save reads or writes is the same for the 2nd and the 30th episode."""
    calls = []
    write = layout.write_atomic
    monkeypatch.setattr(layout, "write_atomic", lambda path, fill: (calls.append(path), write(path, fill)))
    monkeypatch.setattr(writer_module.layout, "read_parquet", lambda *a: pytest.fail("a save read a file"))
    with EpisodeWriter(tmp_path, SPEC) as writer:
        for i in range(3):
            calls.clear()
            writer.save(make_episode(2 * i))
            assert len(calls) == (6 if i == 0 else 5)


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    """A power failure cannot be staged here; the order of calls that survives one can."""
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("flush", target.name))
        fsync(descriptor)

    monkeypatch.setattr(layout.os, "fsync", noted_fsync)
    monkeypatch.setattr(
        layout.os, "replace", lambda a, b: (events.append(("rename", Path(b).name)), replace(a, b))
    )
    layout.write_json(tmp_path / "value.json", 1)
    assert events == [("flush", ".value.json.tmp"), ("rename", "value.json"), ("flush", tmp_path.name)]
    events.clear()
    with EpisodeWriter(tmp_path / "set", SPEC) as writer:
        writer.save(make_episode(0))
    renamed = [name for kind, name in events if kind == "rename"]
    assert renamed[-1] == "info.json"  # The commit comes last.
