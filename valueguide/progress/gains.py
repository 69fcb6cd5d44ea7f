"""Gain of progress over a chunk, and a file of sample weights beside the progress that LeRobot reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from valueguide.data.layout import write_table
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.columns import INDEX
from valueguide.progress.request import Float32, Int64
from valueguide.progress.rows import Row

_METADATA = b"valueguide.weights"


def progress_gain(value: Float32, episode_start: Int64, episode_end: Int64, chunk: int) -> Float32:
    """float32 (N,): progress `chunk` frames later, or at the episode's last frame, minus progress now.

    value: float32 (N,), NaN where missing; a gain that needs a missing value is NaN. The same differences
    that LeRobot 0.6.1 takes (`RABCWeights`), so that both speak of the same gains.
    """
    if chunk < 1:
        raise ConfigError(mismatch("progress gain", "chunk", "1 or more frames", chunk))
    last = np.repeat(episode_end - 1, episode_end - episode_start)
    ahead = np.minimum(np.arange(len(value)) + chunk, last)
    return (value[ahead] - value).astype(np.float32)


def above_task_mean(gain: Float32, task: Int64) -> Float32:
    """float32 (N,): gain less the mean of the known gains of its task, an advantage over what is usual there.

    task: int64 (N,). NaN stays NaN.
    """
    out = gain.copy()
    for number in np.unique(task):
        mine = (task == number) & ~np.isnan(gain)
        if mine.any():
            out[mine] -= gain[mine].mean()
    return out


def write_weights(
    path: Path, dataset: EpisodeDataset, value: Float32, gain: Float32, weight: Float32, facts: Row
) -> None:
    """Parquet with index, episode_index, frame_index, progress_sparse, gain and weight; appears whole.

    facts: kept in it, JSON-serialisable. Raises DataError (disk).
    """
    columns = {name: np.asarray(dataset.column(name)) for name in INDEX}
    table = pa.table({**columns, "progress_sparse": value, "gain": gain, "weight": weight})
    note = json.dumps({"dataset": dataset.dataset_id, **facts})
    try:
        write_table(path, table.replace_schema_metadata({_METADATA: note.encode()}))
    except OSError as error:
        raise DataError(f"{path}: weights not written: {error}. Choose another --out") from error
