"""The files behind an open dataset: which episode lies where, and lazily read pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from valueguide.data import layout
from valueguide.data.columns import to_numpy
from valueguide.data.images import decode_image
from valueguide.data.schema import Feature
from valueguide.errors import DataError, EnvironmentSetupError, mismatch
from valueguide.types import UInt8

CACHED_GROUPS = 8
CACHED_VIDEOS = 2


@dataclass(frozen=True)
class DataFile:
    """One data file: its frames are start … start + sum(group_rows) - 1 of the dataset."""

    path: Path
    start: int
    rows: int
    group_rows: tuple[int, ...]


class DataFiles:
    """Column access over the data files in order, limited to the first `episodes` committed episodes.

    only: numbers of the files to look at, by default all.
    """

    def __init__(self, root: Path, info: dict[str, Any], only: Collection[int] | None = None) -> None:
        self.root = root
        self.features: dict[str, Feature] = info["features"]
        self.files: list[DataFile] = []
        start = 0
        for number, path in layout.existing(root, layout.DATA_TEMPLATE).items():
            if only is not None and number not in only:
                continue
            with layout.open_parquet(path) as file:
                rows = _committed_rows(file, path, int(info["total_episodes"]))
                groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            if rows:
                self.files.append(DataFile(path, start, rows, groups))
                start += rows
        self.frames = start
        self._starts = np.array([file.start for file in self.files], np.int64)
        self._groups: OrderedDict[tuple[int, int, str], pa.Array] = OrderedDict()

    def read(self, names: list[str]) -> dict[str, NDArray[Any] | list[str]]:
        """Whole columns: arrays (N, *shape), (N,) for shape (1,); lists of str for string columns."""
        tables = [layout.read_parquet(file.path, names).slice(0, file.rows) for file in self.files]
        return self._columns(names, tables, self.files)

    def read_range(self, names: list[str], start: int, stop: int) -> dict[str, NDArray[Any] | list[str]]:
        """Like `read`, for the frames start … stop - 1; touches only the row groups that hold them."""
        tables, files = [], []
        for file in self.files:
            first, last = max(start - file.start, 0), min(stop - file.start, file.rows)
            if first >= last:
                continue
            ends = np.cumsum(file.group_rows)
            groups = range(
                int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last)) + 1
            )
            before = int(ends[groups[0]]) - file.group_rows[groups[0]]
            table = layout.read_row_groups(file.path, list(groups), names)
            tables.append(table.slice(first - before, last - first))
            files.append(file)
        return self._columns(names, tables, files)

    def _columns(
        self, names: list[str], tables: list[pa.Table], files: list[DataFile]
    ) -> dict[str, NDArray[Any] | list[str]]:
        read: dict[str, NDArray[Any] | list[str]] = {}
        for name in names:
            pieces = [self._column(table, name, file.path) for table, file in zip(tables, files, strict=True)]
            if self.features[name]["dtype"] == "string":
                read[name] = [text for piece in pieces for text in piece.to_pylist()]
                continue
            shape = tuple(self.features[name]["shape"])
            stacked = [
                to_numpy(
                    piece,
                    () if shape == (1,) and not _nested(piece) else shape,
                    f"{file.path}: column {name}",
                )
                for piece, file in zip(pieces, files, strict=True)
            ]
            values = np.concatenate(stacked)
            read[name] = values.reshape(len(values)) if shape == (1,) else values
        return read

    def place(self, frame: int) -> str:
        """The data file and the row in it of one frame, for errors."""
        file = self.files[self._number(frame)]
        return f"{file.path}: row {frame - file.start}"

    def picture(self, frame: int, column: str) -> UInt8:
        """The decoded picture of one frame, uint8 (H, W, 3) RGB."""
        return decode_image(self.encoded_picture(frame, column), self._name(frame, column))

    def encoded_picture(self, frame: int, column: str) -> bytes:
        """The picture of one frame as it is stored, a PNG or JPEG file's content."""
        where = self._number(frame)
        file = self.files[where]
        row, group = frame - file.start, 0
        while row >= file.group_rows[group]:
            row -= file.group_rows[group]
            group += 1
        cell = self._group(where, group, column)[row].as_py()
        name = self._name(frame, column)
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            raise DataError(f"{name}: the picture is missing")
        encoded = cell["bytes"]
        if encoded is None:
            try:
                encoded = (self.root / cell["path"]).read_bytes()
            except OSError as error:
                raise DataError(f"{name}: {cell['path']} is not readable: {error}") from error
        return bytes(encoded)

    def _number(self, frame: int) -> int:
        return int(np.searchsorted(self._starts, frame, side="right")) - 1

    def _name(self, frame: int, column: str) -> str:
        return f"{self.files[self._number(frame)].path}: {column}, frame {frame}"

    def _group(self, where: int, group: int, column: str) -> pa.Array:
        key = (where, group, column)
        if key not in self._groups:
            self._groups[key] = layout.read_row_group(self.files[where].path, group, column)
            while len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    @staticmethod
    def _column(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
        if name not in table.column_names:
            raise DataError(f"{path}: column {name!r} is missing although meta/info.json lists it")
        return table[name]


def _nested(column: pa.ChunkedArray) -> bool:
    return pa.types.is_nested(column.type)


def _committed_rows(file: pq.ParquetFile, path: Path, episodes: int) -> int:
    """Rows that belong to committed episodes; a recorder that died may have left a file beyond them."""
    if file.schema_arrow.get_field_index("episode_index") < 0:
        raise DataError(f"{path}: column 'episode_index' is missing; is this a LeRobotDataset v3?")
    index = file.read(columns=["episode_index"])["episode_index"].to_numpy()
    if np.any(np.diff(index) < 0):
        row = int(np.diff(index).argmin()) + 1
        raise DataError(mismatch(str(path), "episode_index", "ascending", f"a step back at row {row}"))
    return int(np.searchsorted(index, episodes, side="left"))


class VideoFiles:
    """Frames of the video columns of a plain LeRobotDataset, decoded an episode at a time with PyAV."""

    def __init__(self, root: Path, info: dict[str, Any], episodes: list[dict[str, Any]]) -> None:
        self.root = root
        self.template = info.get("video_path") or ""
        self.fps = float(info["fps"])
        self.episodes = episodes
        self._decoded: OrderedDict[tuple[int, str], UInt8] = OrderedDict()

    def picture(self, episode: int, step: int, column: str) -> UInt8:
        """uint8 (H, W, 3) RGB of step `step` of the episode at position `episode`."""
        key = (episode, column)
        if key not in self._decoded:
            self._decoded[key] = self._decode(self.episodes[episode], column)
            while len(self._decoded) > CACHED_VIDEOS:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(key)
        return self._decoded[key][step]

    def _decode(self, episode: dict[str, Any], column: str) -> UInt8:
        try:
            import av
        except ImportError as error:
            raise EnvironmentSetupError(
                f"{column}: this dataset stores video, which needs PyAV; run: pip install av"
            ) from error
        path = self.root / self.template.format(
            video_key=column,
            chunk_index=episode[f"videos/{column}/chunk_index"],
            file_index=episode[f"videos/{column}/file_index"],
        )
        first = float(episode[f"videos/{column}/from_timestamp"])
        wanted = int(episode["length"])
        frames: list[UInt8] = []
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                container.seek(max(0, int(first / stream.time_base)), stream=stream)
                for picture in container.decode(stream):
                    if picture.time is not None and picture.time < first - 0.5 / self.fps:
                        continue
                    frames.append(picture.to_ndarray(format="rgb24"))
                    if len(frames) == wanted:
                        break
        except (OSError, av.error.FFmpegError) as error:
            raise DataError(f"{path}: video is missing or damaged: {error}") from error
        if len(frames) < wanted:
            raise DataError(f"{path}: expected {wanted} frames from {first:.3f} s, found {len(frames)}")
        return np.stack(frames)
