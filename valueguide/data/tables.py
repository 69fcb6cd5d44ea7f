"""The Arrow tables and JSON that make a folder a LeRobotDataset v3: frames, episodes, tasks, info."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from valueguide.data import layout
from valueguide.data.columns import array_column, hf_metadata
from valueguide.data.schema import INDEX_FEATURES, Feature
from valueguide.data.stats import Stats, array_stats


def frame_table(
    columns: dict[str, pa.Array],
    features: dict[str, Feature],
    task_index: list[int],
    *,
    fps: float,
    episode: int,
    first_frame: int,
) -> tuple[pa.Table, Stats]:
    """One episode's frames with the index columns that LeRobot wants, and the statistics of those.

    columns: the other columns of `features`, T rows each. task_index: T numbers.
    first_frame: how many frames the dataset holds before this episode.
    """
    count = np.arange(len(task_index))
    index = {
        "timestamp": (count / fps).astype(np.float32),
        "frame_index": count,
        "episode_index": np.full(len(count), episode),
        "index": first_frame + count,
        "task_index": np.array(task_index),
    }
    every = {**columns, **{n: array_column(v, INDEX_FEATURES[n]) for n, v in index.items()}}
    table = pa.table({name: every[name] for name in features})
    stats = {name: array_stats(values) for name, values in index.items()}
    return table.replace_schema_metadata(hf_metadata(features)), stats


def episode_table(
    tasks: list[str], length: int, stats: Stats, *, file: int, episode: int, first_frame: int
) -> pa.Table:
    """The row of meta/episodes for an episode whose frames are data file number `file`.

    tasks: the instruction of each frame, or each of them once.
    """
    chunk, number = divmod(file, layout.FILES_PER_CHUNK)
    row: dict[str, Any] = {
        "episode_index": episode,
        "tasks": list(dict.fromkeys(tasks)),
        "length": length,
        "data/chunk_index": chunk,
        "data/file_index": number,
        "dataset_from_index": first_frame,
        "dataset_to_index": first_frame + length,
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": number,
    }
    for name, entry in sorted(stats.items()):
        row.update({f"stats/{name}/{key}": value.tolist() for key, value in entry.items()})
    return pa.table({key: [value] for key, value in row.items()})


def task_table(tasks: dict[str, int]) -> pa.Table:
    """meta/tasks.parquet: LeRobot reads it with pandas and wants the instruction as the index."""
    description = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {"task_index": pa.array(list(tasks.values()), pa.int64()), "task": pa.array(list(tasks))}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(description)})


def info(
    features: dict[str, Feature],
    *,
    fps: float,
    robot_type: str | None,
    episodes: int,
    frames: int,
    tasks: int,
) -> dict[str, Any]:
    """The content of meta/info.json."""
    return {
        "codebase_version": layout.CODEBASE_VERSION,
        "fps": fps,
        "features": {name: {**entry, "shape": list(entry["shape"])} for name, entry in features.items()},
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": layout.FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": layout.DATA_TEMPLATE,
        "video_path": None,
        "robot_type": robot_type,
        "splits": {"train": f"0:{episodes}"},
    }
