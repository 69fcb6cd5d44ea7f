"""Some episodes of a LeRobotDataset v3 as a new dataset, with everything that was recorded of them as it was.

Only what counts episodes and frames changes: episode_index and index, the places in meta/episodes, totals
and statistics. All other columns, pictures included, keep their stored values bit for bit; video files and
meta/tasks.parquet are copied as files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from valueguide.data import layout
from valueguide.data.layout import (
    DATA_TEMPLATE,
    EPISODES_TEMPLATE,
    FILES_PER_CHUNK,
    FINALS_TEMPLATE,
    numbered,
)
from valueguide.data.reader import EpisodeDataset
from valueguide.data.stats import Stats, array_stats, merge, of_row, to_json
from valueguide.disk import flush
from valueguide.errors import ConfigError, DataError, mismatch

_COUNTERS = ("episode_index", "index")


def write_subset(
    dataset: EpisodeDataset,
    out: str | Path,
    episodes: Sequence[int],
    note: dict[str, Any],
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Write the episodes (places in `dataset`), renumbered from 0 in their order, to the new folder `out`.

    note: kept as meta/valueguide/subset.json. progress: called with the number of episodes done.
    The original is only read. Raises ConfigError: `out` exists or lies in the dataset, an unknown episode.
    Raises DataError: no episode, disk full, damaged file. Nothing is left at `out` then.
    """
    out = Path(out).resolve()
    if out.exists() or out.is_relative_to(dataset.root):
        found = "one that exists" if out.exists() else f"a place inside the dataset {dataset.root}"
        raise ConfigError(mismatch(str(out), "output", "a new folder", found))
    kept = sorted(set(episodes))
    if not kept:
        raise DataError(mismatch(str(dataset.root), "episodes to keep", "one or more", "none"))
    if kept[0] < 0 or kept[-1] >= dataset.episodes:
        raise ConfigError(
            mismatch("episodes", "places", f"0 … {dataset.episodes - 1}", f"{kept[0]}, {kept[-1]}")
        )
    building = out.with_name(f".{out.name}.filtering")
    try:
        shutil.rmtree(building, ignore_errors=True)  # A run that was killed may have left one.
        _build(dataset, building, kept, progress)
        layout.write_json(building / "meta/valueguide/subset.json", note)
        os.rename(building, out)
        flush(out.parent)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{out}: not written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(dataset: EpisodeDataset, root: Path, kept: list[int], progress: Callable[[int], None]) -> None:
    numbers = [int(dataset.episode_index[i]) for i in kept]
    lengths = dataset.episode_end[kept] - dataset.episode_start[kept]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    place = {old: (new, int(starts[new])) for new, old in enumerate(numbers)}
    file_of: dict[int, int] = {}
    for path in dataset.data_files:
        inside = [n for n in numbers if n not in file_of and n in _episodes_of(path)]
        if inside:
            number = len(set(file_of.values()))
            _copy_frames(path, numbered(root, DATA_TEMPLATE, number), inside, place)
            file_of.update(dict.fromkeys(inside, number))
            progress(len(inside))
    total = _copy_episodes(dataset.root, root, place, file_of)
    _copy_finals(dataset.root, root, place, file_of)
    layout.write_json(root / layout.STATS, to_json(total))
    for name in (layout.TASKS, layout.SPEC):
        if (dataset.root / name).exists():
            _copy_file(dataset.root / name, root / name)
    facts = layout.read_json(dataset.root / layout.INFO)
    counts = {"total_episodes": len(kept), "total_frames": int(starts[-1])}
    layout.write_json(root / layout.INFO, {**facts, **counts, "splits": {"train": f"0:{len(kept)}"}})


def _episodes_of(path: Path) -> set[int]:
    column = layout.read_parquet(path, ["episode_index"])["episode_index"]
    return set(np.unique(column.to_numpy()).tolist())


def _copy_frames(source: Path, target: Path, episodes: list[int], place: dict[int, tuple[int, int]]) -> None:
    """The frames of some episodes of one file, one row group an episode; memory stays at one episode."""

    def write(file: BinaryIO) -> None:
        with layout.open_parquet(source) as frames:
            ends = np.cumsum([frames.metadata.row_group(i).num_rows for i in range(frames.num_row_groups)])
            index = frames.read(columns=["episode_index"])["episode_index"].to_numpy()
            with pq.ParquetWriter(file, frames.schema_arrow, compression="snappy") as writer:
                for episode in episodes:
                    first, last = np.searchsorted(index, [episode, episode + 1])
                    groups = range(
                        int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last)) + 1
                    )
                    table = frames.read_row_groups(list(groups))
                    before = int(ends[groups[0] - 1]) if groups[0] else 0
                    table = table.slice(int(first) - before, int(last - first))
                    new, start = place[episode]
                    table = _replaced(table, "episode_index", np.full(len(table), new))
                    table = _replaced(table, "index", start + np.arange(len(table)))
                    writer.write_table(table, row_group_size=max(len(table), 1))

    layout.write_atomic(target, write)


def _copy_episodes(
    source: Path, root: Path, place: dict[int, tuple[int, int]], file_of: dict[int, int]
) -> Stats:
    """meta/episodes with new numbers and places, beside their data files; the statistics of all of them."""
    rows: dict[int, pa.Table] = {}
    total: Stats = {}
    for path in layout.existing(source, EPISODES_TEMPLATE).values():
        table = layout.read_parquet(path)
        for at, old in enumerate(table["episode_index"].to_pylist()):
            if old in place and old not in rows:
                new, start = place[old]
                row, stats = _renumbered(table.slice(at, 1), new, start, file_of[old])
                rows[old], total = row, merge(total, stats)
                for column in [
                    c for c in row.column_names if c.startswith("videos/") and c.endswith("/file_index")
                ]:
                    _copy_video(source, root, row, column.split("/")[1])
    missing = sorted(set(place) - set(rows))
    if missing:
        raise DataError(f"{source}: meta/episodes has no row for episodes {missing}")
    for number in sorted(set(file_of.values())):
        group = [rows[old] for old in place if file_of[old] == number]
        table = pa.concat_tables(group, promote_options="default").sort_by("episode_index")
        layout.write_table(numbered(root, EPISODES_TEMPLATE, number), table)
    return total


def _renumbered(row: pa.Table, episode: int, start: int, file: int) -> tuple[pa.Table, Stats]:
    """The row of an episode at its new place, and its statistics."""
    length = int(row["length"][0].as_py())
    values = {
        "episode_index": episode,
        "dataset_from_index": start,
        "dataset_to_index": start + length,
    }
    for kind in ("data", "meta/episodes"):
        values[f"{kind}/chunk_index"], values[f"{kind}/file_index"] = divmod(file, FILES_PER_CHUNK)
    for name, value in values.items():
        if name in row.column_names:
            row = _replaced(row, name, np.array([value]))
    stats = of_row(row.to_pylist()[0])
    counters = {"episode_index": np.full(length, episode), "index": start + np.arange(length)}
    for name in _COUNTERS:
        if name in stats:
            found = array_stats(counters[name])
            stats[name] = {key: found.get(key, value) for key, value in stats[name].items()}
            for key, changed in stats[name].items():
                column = f"stats/{name}/{key}"
                field = row.schema.field(column)
                at = row.column_names.index(column)
                row = row.set_column(at, field, pa.array([changed.tolist()], field.type))
    return row, stats


def _copy_finals(
    source: Path, root: Path, place: dict[int, tuple[int, int]], file_of: dict[int, int]
) -> None:
    """The final observations of the kept episodes, one row group a row as the reader wants them."""
    rows: dict[int, pa.Table] = {}
    for path in layout.existing(source, FINALS_TEMPLATE).values():
        table = layout.read_parquet(path)
        for at, old in enumerate(table["episode_index"].to_pylist()):
            if old in place:
                rows[old] = _replaced(table.slice(at, 1), "episode_index", np.array([place[old][0]]))
    for number in sorted({file_of[old] for old in rows}):
        group = pa.concat_tables([rows[old] for old in place if old in rows and file_of[old] == number])
        layout.write_table(numbered(root, FINALS_TEMPLATE, number), group, 1)


def _copy_video(source: Path, root: Path, row: pa.Table, key: str) -> None:
    template = layout.read_json(source / layout.INFO)["video_path"]
    where = {kind: int(row[f"videos/{key}/{kind}"][0].as_py()) for kind in ("chunk_index", "file_index")}
    name = template.format(video_key=key, **where)
    if not (root / name).exists():
        _copy_file(source / name, root / name)


def _replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def _copy_file(source: Path, target: Path) -> None:
    def write(file: BinaryIO) -> None:
        with open(source, "rb") as original:
            shutil.copyfileobj(original, file)

    layout.write_atomic(target, write)
