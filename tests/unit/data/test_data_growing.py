"""A dataset that is read while it is recorded: each committed file once, a damaged one alone is left out."""

from __future__ import annotations

import pytest

from valueguide.data import layout
from valueguide.data.compact import compact
from valueguide.data.growing import GrowingDataset
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.testing.small_learner import SMALL_SPEC, small_episode


def record(root, numbers) -> None:
    with EpisodeWriter(root, SMALL_SPEC) as writer:
        for number in numbers:
            writer.save(small_episode(number))


def seen(parts) -> list[tuple[int, int]]:
    """Its place in the dataset and the number in its metadata, of each episode."""
    return [
        (int(part.episode_index[i]), part.metadata[i]["number"])
        for part in parts
        for i in range(part.episodes)
    ]


def data_file(root, number):
    return layout.numbered(root, layout.DATA_TEMPLATE, number)


def test_what_was_committed_since_the_last_look_and_nothing_without_a_folder(tmp_path):
    root = tmp_path / "day"
    growing = GrowingDataset(root)
    assert growing.look() == []
    with EpisodeWriter(root, SMALL_SPEC) as writer:
        assert growing.look() == []
        for number in (7, 8):
            writer.save(small_episode(number))
        assert seen(growing.look()) == [(0, 7), (1, 8)]
        assert growing.look() == []
        writer.save(small_episode(9))
        assert seen(growing.look()) == [(2, 9)]
    part = EpisodeDataset.open(root, only={2})
    whole = EpisodeDataset.open(root)
    assert part.has_final.all() and (part.final_state == whole.final_state[2:]).all()
    assert (part.action == whole.action[whole.episode_start[2] :]).all()


def test_a_damaged_file_is_one_line_and_the_others_go_on(tmp_path):
    root = tmp_path / "day"
    record(root, range(5))
    whole = data_file(root, 2).read_bytes()
    data_file(root, 2).write_bytes(whole[:100])
    growing = GrowingDataset(root)
    assert [index for index, _ in seen(growing.look())] == [0, 1, 3, 4]
    (line,) = growing.damaged.values()
    assert "file-002.parquet" in line and "\n" not in line
    data_file(root, 2).write_bytes(whole)  # Restored from a copy: tried again when the dataset grows.
    assert growing.look() == []
    record(root, [5])
    assert sorted(seen(growing.look())) == [(2, 2), (5, 5)] and not growing.damaged


def test_what_a_killed_recorder_left_beyond_the_count_waits(tmp_path):
    root = tmp_path / "day"
    record(root, range(2))
    info = (root / layout.INFO).read_bytes()
    record(root, [2])
    (root / layout.INFO).write_bytes(info)
    growing = GrowingDataset(root)
    assert [index for index, _ in seen(growing.look())] == [0, 1] and not growing.damaged
    record(root, [3])  # drops the leftover
    assert seen(growing.look()) == [(2, 3)] and not growing.damaged


def test_compacted_files_come_again_with_the_same_numbers(tmp_path):
    root = tmp_path / "day"
    record(root, range(4))
    growing = GrowingDataset(root)
    before = seen(growing.look())
    compact(root)
    record(root, [4])
    assert seen(growing.look()) == [*before, (4, 4)]


def test_a_damaged_info_is_an_error_and_tried_again(tmp_path):
    root = tmp_path / "day"
    record(root, range(2))
    info = (root / layout.INFO).read_bytes()
    (root / layout.INFO).write_bytes(info[:10])
    growing = GrowingDataset(root)
    for _ in range(2):
        with pytest.raises(DataError, match=r"info\.json"):
            growing.look()
    (root / layout.INFO).write_bytes(info)
    assert len(seen(growing.look())) == 2
