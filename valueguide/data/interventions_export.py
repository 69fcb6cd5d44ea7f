"""Writes a dataset out in one of LeRobot's intervention conventions, as a plain LeRobotDataset v3.

The new folder has exactly the columns that LeRobot's own recorder would have written (see
`valueguide.data.interventions` for where that is in LeRobot), so that LeRobot merges it with, and resumes it
as, its own recordings. Nothing in it is valueguide's.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from valueguide.data import layout
from valueguide.data.columns import array_column, image_column
from valueguide.data.interventions import (
    CONVENTIONS,
    INTERVENTION,
    IS_INTERVENTION,
    PENALTY,
    Convention,
)
from valueguide.data.layout import DATA_TEMPLATE, EPISODES_TEMPLATE, numbered
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import ACTION, IMAGE_PREFIX, INDEX_FEATURES, Feature
from valueguide.data.stats import SAMPLED_FRAMES, Stats, array_stats, image_stats, merge, to_json
from valueguide.data.tables import episode_table, frame_table, info, task_table
from valueguide.disk import flush
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import SOURCES

Int64 = NDArray[np.int64]
_POLICY, _HUMAN, _EXPERT, _HOLD = (SOURCES.index(name) for name in ("policy", "human", "expert", "hold"))
_BOOL: Feature = {"dtype": "bool", "shape": (1,), "names": None}
_FLOAT: Feature = {"dtype": "float32", "shape": (1,), "names": None}
_PENALTY: Feature = {"dtype": "float32", "shape": (1,), "names": ["discrete_penalty"]}
_COLUMNS: dict[Convention, dict[str, Feature]] = {
    "dagger": {INTERVENTION: _BOOL},
    "hil_serl": {"next.reward": _FLOAT, "next.done": _BOOL, PENALTY: _FLOAT, IS_INTERVENTION: _FLOAT},
    "gym_record": {"next.reward": _FLOAT, "next.done": _BOOL, PENALTY: _PENALTY},
}


def export_interventions(
    dataset: EpisodeDataset,
    out: str | Path,
    convention: Convention,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write `dataset` to the new folder `out`; the original is only read.

    Kept of each frame: observations, action, instruction, and what the convention has columns for.

    - "dagger": `intervention`, True for humans and experts. No rewards or outcomes.
    - "hil_serl": `complementary_info.is_intervention` likewise, `next.reward`, and `next.done` where the
      episode terminated, as LeRobot's buffer stores it: a truncated episode has no done.
    - "gym_record": only what humans and experts did, each stretch between two of the policy's steps as an
      episode of its own that ends with `next.done`. It is the form of demonstrations.

    Hold steps are left out, as LeRobot's recorders leave out pauses; their rewards, and an end that fell on
    one, go to the step before. `complementary_info.discrete_penalty` is the dataset's own, or else 0:
    LeRobot's `concatenate_batch_transitions` mixes two buffers wrongly when only one of them has it.

    progress: called with the number of the dataset's episodes done. Returns JSON-ready facts: "found" (how
    the dataset itself said who acted), "episodes", "frames" (both written), "frames_of" (source -> how many
    written), "left_out" (source -> how many not).
    Raises ConfigError: unknown convention, `out` exists or lies inside the dataset. Raises DataError: no
    step that the convention can hold, disk full, damaged file. Nothing is left at `out` then.
    """
    out = Path(out).resolve()
    if convention not in CONVENTIONS:
        raise ConfigError(mismatch("interventions", "convention", " or ".join(CONVENTIONS), repr(convention)))
    if out.exists() or out.is_relative_to(dataset.root):
        found = "one that exists" if out.exists() else f"a place inside the dataset {dataset.root}"
        raise ConfigError(mismatch(str(out), "output", "a new folder", found))
    stretches = [_stretches(dataset, i, convention) for i in range(dataset.episodes)]
    written: Counter[str] = Counter()
    for rows in (rows for episode in stretches for rows in episode):
        written.update(SOURCES[s] for s in dataset.source[rows])
    if not written:
        wanted = "steps of a human or an expert" + (", or of a policy" if convention != "gym_record" else "")
        raise DataError(mismatch(str(dataset.root), "steps", wanted, "none"))
    building = out.with_name(f".{out.name}.exporting")
    try:
        shutil.rmtree(building, ignore_errors=True)  # A run that was killed may have left one.
        _write(dataset, stretches, convention, building, progress)
        os.rename(building, out)
        flush(out.parent)
    except OSError as error:
        raise DataError(f"{out}: not exported: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    every = Counter(SOURCES[s] for s in dataset.source)
    return {
        "dataset": str(out),
        "interventions": convention,
        "found": dataset.interventions,
        "episodes": sum(map(len, stretches)),
        "frames": sum(written.values()),
        "frames_of": dict(written),
        "left_out": dict(every - written),
    }


def _stretches(dataset: EpisodeDataset, i: int, convention: Convention) -> list[Int64]:
    """The frames of each episode to write from episode `i`, without those that the convention cannot hold."""
    frames = np.arange(dataset.episode_start[i], dataset.episode_end[i])
    moving = frames[dataset.source[frames] != _HOLD]
    if convention != "gym_record":
        return [moving] if moving.size else []
    policy = dataset.source[moving] == _POLICY
    cuts = np.flatnonzero(policy[1:] != policy[:-1]) + 1
    return [rows for rows in np.split(moving, cuts) if rows.size and dataset.source[rows[0]] != _POLICY]


def _write(
    dataset: EpisodeDataset,
    stretches: list[list[Int64]],
    convention: Convention,
    root: Path,
    progress: Callable[[int], None],
) -> None:
    source = _Source.of(dataset, convention, [int(rows[-1]) for parts in stretches for rows in parts])
    fps = int(dataset.fps) if dataset.fps.is_integer() else dataset.fps
    tasks: dict[str, int] = {}
    total: Stats = {}
    episode, first_frame = 0, 0
    for parts in stretches:
        for rows in parts:
            texts = [dataset.instructions[dataset.instruction[row]] for row in rows]
            task_index = [tasks.setdefault(text, len(tasks)) for text in texts]
            columns, stats = source.columns(rows)
            place = {"episode": episode, "first_frame": first_frame}
            table, index_stats = frame_table(columns, source.features, task_index, fps=fps, **place)
            stats = {**stats, **index_stats}
            layout.write_table(numbered(root, DATA_TEMPLATE, episode), table)
            row = episode_table(texts, len(rows), stats, file=episode, **place)
            layout.write_table(numbered(root, EPISODES_TEMPLATE, episode), row)
            total = merge(total, stats)
            episode, first_frame = episode + 1, first_frame + len(rows)
        progress(1)
    layout.write_table(root / layout.TASKS, task_table(tasks))
    layout.write_json(root / layout.STATS, to_json(total))
    robot = layout.read_json(dataset.root / layout.INFO).get("robot_type")
    counts = {"episodes": episode, "frames": first_frame, "tasks": len(tasks)}
    layout.write_json(root / layout.INFO, info(source.features, fps=fps, robot_type=robot, **counts))


@dataclass(frozen=True)
class _Source:
    """The columns that are written, by name, each (N, *shape) over all frames; pictures are read later."""

    dataset: EpisodeDataset
    features: dict[str, Feature]
    values: dict[str, Any]
    cameras: dict[str, str]

    @classmethod
    def of(cls, dataset: EpisodeDataset, convention: Convention, ends: list[int]) -> _Source:
        known = dataset.features
        cameras = {IMAGE_PREFIX + c if IMAGE_PREFIX + c in known else c: c for c in dataset.cameras}
        features: dict[str, Feature] = {
            name: {
                "dtype": "image",
                "shape": (*dataset.image_shape(camera), 3),
                "names": ["height", "width", "channels"],
            }
            for name, camera in cameras.items()
        }
        values: dict[str, Any] = {}
        for name, feature in known.items():
            wanted = name == ACTION or name.startswith("observation.")
            if wanted and feature["dtype"] not in ("image", "video"):
                features[name], values[name] = feature, dataset.column(name)
        features.update(_COLUMNS[convention])
        facts = _facts(dataset, ends if convention == "gym_record" else [])
        values.update({name: facts[name] for name in _COLUMNS[convention]})
        return cls(dataset, {**features, **INDEX_FEATURES}, values, cameras)

    def columns(self, rows: Int64) -> tuple[dict[str, pa.Array], Stats]:
        """Everything but the index columns, for some frames, and the statistics of it."""
        columns: dict[str, pa.Array] = {}
        stats: Stats = {}
        for name, camera in self.cameras.items():
            pictures = [self.dataset.stored_image(int(row), camera) for row in rows]
            kinds = ["png" if picture.startswith(b"\x89PNG") else "jpeg" for picture in pictures]
            columns[name] = image_column(pictures, [f"frame-{i:06d}.{kind}" for i, kind in enumerate(kinds)])
            sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_FRAMES).astype(int))
            stats[name] = image_stats([self.dataset.image(int(rows[i]), camera) for i in sample])
        for name, values in self.values.items():
            if self.features[name]["dtype"] == "string":
                columns[name] = pa.array([values[row] for row in rows], pa.string())
            else:
                columns[name] = array_column(values[rows], self.features[name])
                stats[name] = array_stats(values[rows])
        return columns, stats


def _facts(dataset: EpisodeDataset, ends: list[int]) -> dict[str, NDArray[Any]]:
    """What the conventions say of each frame, (N,), with what fell on holds given to the step before.

    ends: frames that are done because the written episode ends there, whatever the reason.
    """
    owner = np.arange(dataset.frames)
    owner[dataset.source == _HOLD] = -1
    for start, end in zip(dataset.episode_start, dataset.episode_end, strict=True):
        np.maximum.accumulate(owner[start:end], out=owner[start:end])
    owned = np.flatnonzero(owner >= 0)  # Holds before the first step belong to nobody.
    reward, done = np.zeros(dataset.frames, np.float32), np.zeros(dataset.frames, bool)
    np.add.at(reward, owner[owned], dataset.reward[owned])
    np.logical_or.at(done, owner[owned], dataset.terminated[owned])
    done[ends] = True
    human = np.isin(dataset.source, (_HUMAN, _EXPERT))
    penalty = dataset.column(PENALTY) if PENALTY in dataset.features else np.zeros(dataset.frames)
    return {
        INTERVENTION: human,
        IS_INTERVENTION: human.astype(np.float32),
        "next.reward": reward,
        "next.done": done,
        PENALTY: np.asarray(penalty, np.float32),
    }
