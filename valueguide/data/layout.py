"""Where the files of a LeRobotDataset v3 lie, and how one is written so that a crash cannot halve it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from valueguide.disk import flush
from valueguide.errors import DataError

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_TEMPLATE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_TEMPLATE = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FINALS_TEMPLATE = "meta/valueguide/final_observations/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FOLDER_OF = {DATA_TEMPLATE: "data", EPISODES_TEMPLATE: "meta/episodes"}
FOLDER_OF[FINALS_TEMPLATE] = "meta/valueguide/final_observations"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
SPEC = "meta/valueguide/spec.json"
LOCK = "meta/valueguide/lock"
FRAME_CACHE = ".valueguide_frames"
TEMPORARY = ".tmp"


def numbered(root: Path, template: str, number: int) -> Path:
    """The path of file `number`, counted through all chunk folders."""
    return root / template.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)


def existing(root: Path, template: str) -> dict[int, Path]:
    """The files of one kind that are on disk, by number, ascending."""
    found = {}
    for path in (root / FOLDER_OF[template]).glob("chunk-*/file-*.parquet"):
        chunk, file = path.parent.name.removeprefix("chunk-"), path.stem.removeprefix("file-")
        if chunk.isdigit() and file.isdigit():
            found[int(chunk) * FILES_PER_CHUNK + int(file)] = path
    return dict(sorted(found.items()))


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file, flush it to disk, then rename it to `path`.

    After return, `path` holds the whole content even if the power fails; before the rename it holds
    what it held before. Raises OSError; the temporary file is removed then.
    """
    make_folder(path.parent)
    temporary = path.with_name("." + path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush(path.parent)


def make_folder(folder: Path) -> None:
    """Create `folder` so that it survives a power failure: each new level is flushed in its parent."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        flush(level.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`write_atomic` of content that is there already."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_atomic(path, write)


def write_table(path: Path, table: pa.Table, row_group_size: int | None = None) -> None:
    """One parquet file; by default one row group, as LeRobot lays out an episode."""
    size = row_group_size or max(table.num_rows, 1)
    write_atomic(path, lambda file: pq.write_table(table, file, compression="snappy", row_group_size=size))


def read_json(path: Path) -> Any:
    """Raises DataError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing; is this the folder of a LeRobotDataset v3?") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises DataError naming the file when it is missing or truncated."""
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing; the dataset is incomplete") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged or truncated parquet file: {_first_line(error)}") from error


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """All row groups of the asked columns. Raises DataError naming the file."""
    with open_parquet(path) as file:
        try:
            return file.read(columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: damaged or truncated parquet file: {_first_line(error)}") from error


def read_row_groups(path: Path, groups: list[int], columns: list[str]) -> pa.Table:
    """Some columns of some row groups. Raises DataError naming the file."""
    with open_parquet(path) as file:
        try:
            return file.read_row_groups(groups, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: damaged or truncated parquet file: {_first_line(error)}") from error


def read_row_group(path: Path, group: int, column: str) -> pa.Array:
    """One column of one row group. Raises DataError naming the file."""
    return read_row_groups(path, [group], [column])[column].combine_chunks()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
