"""Merges the many small files of a recording into few, without ever exposing a half-merged dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from valueguide.data import layout
from valueguide.data.columns import hf_metadata
from valueguide.data.layout import (
    DATA_TEMPLATE,
    EPISODES_TEMPLATE,
    FILES_PER_CHUNK,
    FINALS_TEMPLATE,
    FRAME_CACHE,
    numbered,
)
from valueguide.data.schema import Feature
from valueguide.data.swap import aside, exchange, restore_interrupted
from valueguide.data.writer import EpisodeWriter, recorded_spec
from valueguide.errors import DataError

NOT_COPIED = ("data", "meta/episodes", "meta/valueguide/final_observations", layout.LOCK, FRAME_CACHE)


def compact(root: str | Path, target_mb: float = 100.0) -> int:
    """Merge the files of the valueguide dataset in `root` up to `target_mb` each; returns how many remain.

    Frames, indices and dataset_id stay the same; every episode stays one parquet row group. The merged
    dataset is built beside `root` and swapped in at once, so a crash leaves the old one or the new one.
    Needs free space for a second copy. Raises DataError: not a valueguide recording, being recorded
    into, disk full, damaged file.
    """
    root = Path(root).resolve()
    restore_interrupted(root)
    spec = recorded_spec(root)
    with EpisodeWriter(root, spec):  # Holds the lock, and drops what a crash left.
        merged = root.with_name(f".{root.name}.compacting")
        try:
            for left_by_a_crash in (merged, aside(root)):
                shutil.rmtree(left_by_a_crash, ignore_errors=True)
            count = _build(root, merged, int(target_mb * 1024 * 1024), spec.features())
            if (root / FRAME_CACHE).exists():  # It is found by dataset_id, which stays the same.
                (root / FRAME_CACHE).rename(merged / FRAME_CACHE)
            exchange(root, merged)
        except OSError as error:
            shutil.rmtree(merged, ignore_errors=True)
            raise DataError(f"{root}: not compacted, the dataset is unchanged: {error}") from error
    return count


def _build(root: Path, merged: Path, target_bytes: int, features: dict[str, Feature]) -> int:
    numbers = list(layout.existing(root, DATA_TEMPLATE))
    # LeRobot may describe the episodes of several data files in one file, so rows are matched, not files.
    tables = [layout.read_parquet(numbered(root, EPISODES_TEMPLATE, n))
              for n in layout.existing(root, EPISODES_TEMPLATE)]  # fmt: skip
    episodes = pa.concat_tables(tables, promote_options="default").sort_by("episode_index")
    chunk, file = (episodes.column(f"data/{name}_index") for name in ("chunk", "file"))
    data_file = pc.add(pc.multiply(chunk, FILES_PER_CHUNK), file)
    count = 0
    for group in _groups(root, numbers, target_bytes):
        sources = [numbered(root, DATA_TEMPLATE, n) for n in group]
        _merge_data(sources, numbered(merged, DATA_TEMPLATE, count), features)
        paths = [numbered(root, FINALS_TEMPLATE, n) for n in group]
        finals = [layout.read_parquet(path) for path in paths if path.exists()]
        if finals:  # episodes that LeRobot appended have none
            # One row group a row, so that reading one final picture does not read them all.
            layout.write_table(numbered(merged, FINALS_TEMPLATE, count), pa.concat_tables(finals), 1)
        rows = episodes.filter(pc.is_in(data_file, pa.array(group, pa.int64())))
        layout.write_table(numbered(merged, EPISODES_TEMPLATE, count), _renumbered(rows, count))
        count += 1
    _carry_over(root, merged)
    return count


def _groups(root: Path, numbers: list[int], target_bytes: int) -> Iterator[list[int]]:
    group: list[int] = []
    size = 0
    for number in numbers:
        bytes_here = numbered(root, DATA_TEMPLATE, number).stat().st_size
        if group and size + bytes_here > target_bytes:
            yield group
            group, size = [], 0
        group.append(number)
        size += bytes_here
    if group:
        yield group


def _merge_data(sources: list[Path], target: Path, features: dict[str, Feature]) -> None:
    """Copy row group by row group: memory stays at one episode."""

    def write(file: BinaryIO) -> None:
        with layout.open_parquet(sources[0]) as first:
            # Files that LeRobot appended carry its own array types around the same numbers.
            fields = [pa.field(f.name, _storage(f.type), f.nullable) for f in first.schema_arrow]
            schema = pa.schema(fields, hf_metadata(features))
        with pq.ParquetWriter(file, schema, compression="snappy") as writer:
            for source in sources:
                with layout.open_parquet(source) as episodes:
                    for group in range(episodes.num_row_groups):
                        table = _plain(episodes.read_row_group(group), schema)
                        writer.write_table(table, row_group_size=max(table.num_rows, 1))

    layout.write_atomic(target, write)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same columns with extension types replaced by what they store, in the order of `schema`."""
    columns = []
    for name in schema.names:
        column = table.column(name)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        columns.append(column.cast(schema.field(name).type))
    return pa.table(columns, schema=schema)


def _renumbered(episodes: pa.Table, number: int) -> pa.Table:
    """Point the rows' file references at file `number`."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    for kind in ("data", "meta/episodes"):
        for name, value in (("chunk_index", chunk), ("file_index", file)):
            column = f"{kind}/{name}"
            values = pa.array(np.full(episodes.num_rows, value, np.int64))
            episodes = episodes.set_column(episodes.column_names.index(column), column, values)
    return episodes


def _carry_over(root: Path, merged: Path) -> None:
    """Copy everything else, flushed to disk: info, statistics, tasks, spec, and files that users added."""
    for source in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = source.relative_to(root)
        if any(relative.is_relative_to(skipped) for skipped in NOT_COPIED):
            continue
        layout.write_atomic(merged / relative, partial(_copy, source))
        shutil.copystat(source, merged / relative)


def _copy(source: Path, file: BinaryIO) -> None:
    with open(source, "rb") as original:
        shutil.copyfileobj(original, file)
