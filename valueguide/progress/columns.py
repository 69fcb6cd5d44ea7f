"""Progress of every frame of a dataset, in a parquet file that LeRobot's reward-aligned training reads.

LeRobot 0.6.1 (`lerobot.rewards.sarm.rabc.RABCWeights`) wants index, episode_index, frame_index and
progress_sparse. The columns behind these say where each value is from, so that nobody takes a value between
two estimates for an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from valueguide.data.layout import read_parquet, write_table
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import DataError, mismatch
from valueguide.progress.controls import REAL
from valueguide.progress.request import Float32, Int64
from valueguide.progress.rows import Row

FILE = "gvl_progress.parquet"
#: Where a frame's value is from. "declared": the anchor, which the model is told to be 0. "between": linear
#: in time between the two nearest known frames. "missing": before the first or after the last of them, or the
#: episode has no estimate.
KINDS = ("estimated", "declared", "between", "missing")
_ESTIMATED, _DECLARED, _BETWEEN, _MISSING = range(len(KINDS))
_METADATA = b"valueguide.progress"


@dataclass(frozen=True)
class ProgressColumns:
    """One entry for each of the N frames of a dataset.

    value: float32 (N,) in [0, 1], NaN where missing. kind: int8 (N,), index into KINDS.
    before_s, after_s: float32 (N,), seconds in the episode of the known frames that the value lies between;
        both are the frame's own time for estimates, NaN where missing. The last estimate of an episode is
        often of the observation after its last action, one step after its last frame.
    """

    value: Float32
    kind: NDArray[np.int8]
    before_s: Float32
    after_s: Float32

    @property
    def estimated(self) -> NDArray[np.bool_]:
        """bool (N,): the model was asked about this very frame and answered."""
        return self.kind == _ESTIMATED


def spread_out(row: Row, length: int, fps: float) -> ProgressColumns:
    """One episode of `length` frames from its row; nothing is known without an answer (any other status)."""
    value, before, after = (np.full(length, np.nan, np.float32) for _ in range(3))
    kind = np.full(length, _MISSING, np.int8)
    known, levels, asked = _known(row)
    if len(known):
        frames = np.arange(known[0], min(known[-1] + 1, length))
        value[frames] = np.interp(frames, known, levels)
        place = np.searchsorted(known, frames)
        hit = known[place] == frames
        kind[frames] = np.where(hit, np.where(asked[place], _ESTIMATED, _DECLARED), _BETWEEN)
        before[frames] = known[np.where(hit, place, place - 1)] / fps
        after[frames] = known[place] / fps
    return ProgressColumns(value, kind, before, after)


def progress_columns(dataset: EpisodeDataset, rows: Sequence[Row], camera: str) -> ProgressColumns:
    """The real clips' rows of one camera over all frames of the dataset."""
    by_episode = {row["episode"]: row for row in rows if (row["camera"], row["variant"]) == (camera, REAL)}
    lengths = dataset.episode_end - dataset.episode_start
    parts = [
        spread_out(by_episode.get(int(number), {}), int(length), dataset.fps)
        for number, length in zip(dataset.episode_index, lengths, strict=True)
    ]
    return ProgressColumns(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("value", "kind", "before_s", "after_s")
        )
    )


def write_progress(path: Path, dataset: EpisodeDataset, columns: ProgressColumns, facts: Row) -> None:
    """Write the file; it appears whole. facts: kept in it, JSON-serialisable. Raises DataError (disk)."""
    index = {name: np.asarray(dataset.column(name)) for name in INDEX}
    table = pa.table(
        {
            **index,
            "progress_sparse": columns.value,
            "progress_kind": pa.DictionaryArray.from_arrays(columns.kind, list(KINDS)).cast(pa.string()),
            "progress_before_s": columns.before_s,
            "progress_after_s": columns.after_s,
        }
    )
    note = json.dumps({"dataset": dataset.dataset_id, **facts})
    try:
        write_table(path, table.replace_schema_metadata({_METADATA: note.encode()}))
    except OSError as error:
        raise DataError(
            f"{path}: progress not written: {error}. Choose another place with --parquet"
        ) from error


def read_progress(dataset: EpisodeDataset, path: Path | None = None) -> ProgressColumns:
    """The columns of `dataset`, by default from the file in its folder.

    Raises DataError when the file is missing or damaged, has other columns, or was made for other frames.
    """
    path = path or dataset.root / FILE
    if not path.exists():
        raise DataError(
            mismatch(str(path), "file", "per-frame progress", "none", "Run `valueguide progress score` first")
        )
    table = read_parquet(path)
    missing = [name for name in (*INDEX, *_VALUES) if name not in table.column_names]
    if missing:
        raise DataError(mismatch(str(path), "columns", ", ".join((*INDEX, *_VALUES)), table.column_names))
    stated = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}")).get("dataset")
    if stated != dataset.dataset_id or table.num_rows != dataset.frames:
        found = f"dataset {stated}, {table.num_rows} frames"
        expected = f"dataset {dataset.dataset_id}, {dataset.frames} frames"
        raise DataError(mismatch(str(path), "made for", expected, found, "Score the dataset again"))
    kinds = np.array([KINDS.index(kind) for kind in table["progress_kind"].to_pylist()], np.int8)
    value, before, after = (
        np.asarray(table[name].to_numpy(), np.float32) for name in _VALUES if name != "progress_kind"
    )
    return ProgressColumns(value, kinds, before, after)


INDEX = ("index", "episode_index", "frame_index")
_VALUES = ("progress_sparse", "progress_kind", "progress_before_s", "progress_after_s")


def _known(row: Row) -> tuple[Int64, Any, NDArray[np.bool_]]:
    """Frames with a value, ascending, their values, and which of them the model was asked about."""
    if row.get("status") not in ("ok", "partial"):
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool)
    frames = np.array(row["frames"], np.int64)
    values = np.array([np.nan if value is None else value for value in row["progress"]], float)
    asked = ~np.isnan(values)
    if "log_probability" not in row:  # GVL's prompt declares the anchor; token probability has no anchor.
        values[0] = 0.0
    known = ~np.isnan(values)
    return frames[known], values[known], asked[known]
