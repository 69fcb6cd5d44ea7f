"""A disk that is really full, a small one in memory: nothing stored is lost, nothing is left over, and what
could not be written works once there is room."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import CheckpointError, DataError
from valueguide.online.replay import ReplayReader, ReplayWriter
from valueguide.online.versions import CriticVersions
from valueguide.progress.cache import AnswerCache
from valueguide.progress.request import Reply
from valueguide.serving.engine import Engine, Models
from valueguide.serving.keeper import Keeper
from valueguide.testing.stand_ins import load_critic, policy, write_critic

for _area in ("data", "online"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / _area))
from data_episodes import SPEC, assert_same_episode, make_episode  # noqa: E402
from segment_episodes import segment  # noqa: E402

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
MB = 2**20


class Disk:
    """A file system of 8 MB. `fill` leaves so many bytes; `empty` gives the room back."""

    def __init__(self, root: Path) -> None:
        self.root, self._ballast = root, root / "ballast"

    def fill(self, leave: int = 0) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(0, file.tell() - leave))

    def empty(self) -> None:
        self._ballast.unlink()

    def files(self) -> dict[str, int]:
        found = (path for path in self.root.rglob("*") if path.is_file() and path != self._ballast)
        return {str(path.relative_to(self.root)): path.stat().st_size for path in found}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs `mount`")
    if done.returncode:
        pytest.skip(f"needs to be allowed to mount: {done.stderr.decode().strip()}")
    yield Disk(root)
    subprocess.run(["umount", "-l", root], check=True)


@pytest.mark.parametrize("leave", [0, 8192, 40_000])
def test_dataset(disk: Disk, leave: int) -> None:
    """A little room: the disk fills up in the middle of an episode's files."""
    folder = disk.root / "day"
    with EpisodeWriter(folder, SPEC) as writer:
        writer.save(make_episode(0))
        before = disk.files()
        disk.fill(leave)
        while True:
            try:
                writer.save(make_episode(1))
            except DataError as error:
                assert "episode not stored" in str(error) and "No space" in str(error)
                break
        stored = EpisodeDataset.open(folder).episodes
        assert_same_episode(EpisodeDataset.open(folder).to_episode(0), make_episode(0))
        if leave == 0:
            assert stored == 1 and disk.files() == before
        disk.empty()
        assert writer.save(make_episode(2)) == stored
    assert_same_episode(EpisodeDataset.open(folder).to_episode(stored), make_episode(2))


def test_replay(disk: Disk) -> None:
    folder = disk.root / "replay"
    one = segment(1)
    with ReplayWriter(folder) as replay:
        assert replay.append(one) == 0
        before = disk.files()
        disk.fill()
        for _ in range(2):
            with pytest.raises(DataError, match="segment not stored: .*No space"):
                replay.append(one)
        assert disk.files() == before
        disk.empty()
        assert replay.append(one) == 1
    found = ReplayReader(folder)
    found.refresh()
    assert sorted(found.segments) == [0, 1] and not found.damaged


def test_versions_and_what_a_server_has_in_service(disk: Disk) -> None:
    versions = CriticVersions(disk.root / "versions")
    made = {}
    for number in (1, 2):
        with versions.draft() as draft:
            made[number] = write_critic(draft, number)
            versions.publish(draft)
    versions.promote(1)
    engine = Engine(Models(policy()))
    root = str(disk.root / "versions")
    keeper = Keeper(engine, "", root, lambda path: policy(), load_critic, lambda model, models: None)
    keeper.begin()
    before = disk.files()
    disk.fill(100_000)  # half of a critic's weights
    with pytest.raises((CheckpointError, OSError), match="No space"), versions.draft() as draft:
        write_critic(draft, 3)
        versions.publish(draft)
    disk.fill()
    with pytest.raises((CheckpointError, OSError), match="No space"):
        versions.promote(2)
    keeper.poll()
    assert disk.files() == before and versions.state().serving == 1
    assert engine.models.critic.version == made[1] and not keeper.troubles
    disk.empty()
    with versions.draft() as draft:
        made[3] = write_critic(draft, 3)
        versions.promote(versions.publish(draft))
    limit = time.monotonic() + 10
    while engine.models.critic.version != made[3]:
        keeper.poll()
        assert time.monotonic() < limit, keeper.troubles


def test_answers_that_are_kept(disk: Disk) -> None:
    cache = AnswerCache(disk.root / "answers")
    cache.put("ab" * 32, Reply("7"))
    before = disk.files()
    disk.fill()
    for key in ("ab" * 32, "ac" * 32, "cd" * 32):
        with pytest.raises(OSError, match="No space"):
            cache.put(key, Reply("8" * 10_000))
    kept = cache.get("ab" * 32)
    assert kept is not None and kept.text == "7" and disk.files() == before
    disk.empty()
    cache.put("cd" * 32, Reply("8"))
    assert (found := cache.get("cd" * 32)) is not None and found.text == "8"


def test_a_bag_keeps_what_came_before(disk: Disk) -> None:
    from valueguide.ros.bag import BagReader, BagWriter

    writer = BagWriter(disk.root / "bag", {}, flush_s=0.0)
    disk.fill(MB)
    draw = np.random.default_rng(1)
    with pytest.raises(DataError, match="bag not written: .*No space"):
        for number in range(3000):
            writer.write("/a", "std_msgs/msg/String", draw.bytes(1000), number)
    writer.close()
    reader = BagReader.open(disk.root / "bag")
    stamps = [message.log_ns for message in reader]
    assert reader.truncated and len(stamps) > 500 and stamps == list(range(len(stamps)))


def test_a_result_that_cannot_be_written_is_one_line(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.fill()
    target = disk.root / "fuzz.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "fuzz", "--messages", "20", "--targets", "wire", "--json", str(target)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: --json: file: expected") and "No space" in error
    disk.empty()
    assert not target.exists() or not json.loads(target.read_text() or "null")
    assert os.listdir(disk.root) in ([], ["fuzz.json"])
