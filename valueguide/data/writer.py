"""Records episodes as a LeRobotDataset v3 that survives kill -9, without torch or lerobot.

Each saved episode is one data file, one episode-metadata file and one sidecar row. Every file is
written under a temporary name, flushed and renamed; replacing meta/info.json, which counts the
episodes, comes last and is the commit. Whatever lies beyond that count is dropped at the next open.
The cost of a save does not grow with the dataset; `valueguide.data.compact` merges the small files.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from valueguide.data import layout
from valueguide.data.encode import EncodedEpisode, encode_episode
from valueguide.data.layout import DATA_TEMPLATE, EPISODES_TEMPLATE, FINALS_TEMPLATE, numbered
from valueguide.data.schema import DatasetSpec
from valueguide.data.stats import Stats, from_json, merge, of_row, to_json
from valueguide.data.swap import restore_interrupted
from valueguide.data.tables import episode_table, frame_table, info, task_table
from valueguide.errors import DataError
from valueguide.types import Episode

log = logging.getLogger("valueguide.data")
TEMPLATES = (DATA_TEMPLATE, EPISODES_TEMPLATE, FINALS_TEMPLATE)


@dataclass
class _Committed:
    """What meta/info.json has confirmed, plus the number of the next file."""

    episodes: int
    frames: int
    next_file: int
    tasks: dict[str, int]
    stats: Stats


class EpisodeWriter:
    """An `EpisodeSink` over the folder `root`. Use from one thread, as a context manager or with close().

    Opens a new dataset, or resumes the one in `root` after dropping what a crash left half-written.
    Raises DataError when `root` holds a dataset with another spec, a foreign dataset, or is being
    recorded by another process.
    """

    def __init__(self, root: str | Path, spec: DatasetSpec) -> None:
        self.root = Path(root).resolve()
        self.spec = spec
        try:
            restore_interrupted(self.root)
            self._lock: int | None = lock(self.root)
        except OSError as error:
            raise DataError(f"{self.root}: cannot record here: {error}") from error
        try:
            _create_or_check(self.root, spec)
            self._state: _Committed | None = _recover(self.root)
        except BaseException:
            self.close()
            raise

    def save(self, episode: Episode) -> int:
        """Store the episode durably; returns its index.

        Raises DataError when the episode does not fit the spec or the disk refuses; nothing is stored
        then, earlier episodes are untouched, and recording may go on.
        """
        if self._lock is None:
            raise DataError(f"{self.root}: the recording is closed")
        encoded = encode_episode(episode, self.spec)
        try:
            if self._state is None:
                self._state = _recover(self.root)
            state, self._state = self._state, None  # An interrupted save leaves None: look again next time.
            self._state = self._store(state, encoded)
        except OSError as error:
            self._discard()
            raise DataError(
                f"{self.root}: episode not stored: {error}. Earlier episodes are safe; free space and go on"
            ) from error
        return state.episodes

    def close(self) -> None:
        """Release the folder. Everything saved is already on disk."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _store(self, state: _Committed, encoded: EncodedEpisode) -> _Committed:
        tasks = dict(state.tasks)
        for task in encoded.tasks:
            tasks.setdefault(task, len(tasks))
        place = {"episode": state.episodes, "first_frame": state.frames}
        task_index = [tasks[task] for task in encoded.tasks]
        features = self.spec.features()
        frames, index_stats = frame_table(encoded.columns, features, task_index, fps=self.spec.fps, **place)
        stats = {**encoded.stats, **index_stats}
        if state.stats:  # LeRobot wants the same columns in every episode row.
            stats = {name: stats[name] for name in stats if name in state.stats}
        number = state.next_file
        layout.write_table(numbered(self.root, DATA_TEMPLATE, number), frames)
        final = {"episode_index": pa.array([state.episodes], pa.int64()), **encoded.final}
        layout.write_table(numbered(self.root, FINALS_TEMPLATE, number), pa.table(final))
        row = episode_table(encoded.tasks, encoded.length, stats, file=number, **place)
        layout.write_table(numbered(self.root, EPISODES_TEMPLATE, number), row)
        if len(tasks) > len(state.tasks):
            layout.write_table(self.root / layout.TASKS, task_table(tasks))
        after = _Committed(
            episodes=state.episodes + 1,
            frames=state.frames + encoded.length,
            next_file=number + 1,
            tasks=tasks,
            stats=merge(state.stats, stats),
        )
        layout.write_json(self.root / layout.STATS, to_json(after.stats))
        layout.write_json(self.root / layout.INFO, _info(self.spec, after.episodes, after.frames, len(tasks)))
        return after

    def _discard(self) -> None:
        """Free what a failed save left, so that a full disk has room again; the next save re-checks."""
        with contextlib.suppress(OSError, DataError):
            self._state = _recover(self.root)


def lock(root: Path) -> int:
    """Take the folder for this process until the descriptor is closed (a kill closes it too)."""
    path = root / layout.LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(f"{root}: another process is recording here; choose another folder") from error
    return descriptor


def _info(spec: DatasetSpec, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    return info(
        spec.features(),
        fps=spec.fps,
        robot_type=spec.robot_type or None,
        episodes=episodes,
        frames=frames,
        tasks=tasks,
    )


def _create_or_check(root: Path, spec: DatasetSpec) -> None:
    if not (root / layout.INFO).exists():
        if layout.existing(root, DATA_TEMPLATE):
            raise DataError(f"{root / layout.INFO}: file is missing but data files exist; restore it first")
        layout.write_json(root / layout.SPEC, spec.to_dict())
        layout.write_json(root / layout.INFO, _info(spec, 0, 0, 0))
        return
    difference = recorded_spec(root).difference(spec)
    if difference:
        raise DataError(f"{root}: the dataset has another spec: {difference}. Record into a new folder")


def recorded_spec(root: Path) -> DatasetSpec:
    """The spec of the recording in `root`. Raises DataError when valueguide did not record it."""
    if not (root / layout.SPEC).exists():
        raise DataError(f"{root}: not a dataset recorded by valueguide; choose another folder")
    return DatasetSpec.from_dict(layout.read_json(root / layout.SPEC), str(root / layout.SPEC))


def _recover(root: Path) -> _Committed:
    """Delete whatever meta/info.json does not count, in one logged line, and return what it does."""
    counted = layout.read_json(root / layout.INFO)
    episodes, frames, n_tasks = (counted[f"total_{kind}"] for kind in ("episodes", "frames", "tasks"))
    last = _last_committed(root, episodes)
    leftovers = [
        path
        for template in TEMPLATES
        for number, path in layout.existing(root, template).items()
        if number > last[template]
    ]
    temporary = [p for folder in ("data", "meta") for p in (root / folder).rglob(f".*{layout.TEMPORARY}")]
    for path in leftovers + temporary:
        path.unlink()
    if leftovers or temporary:
        log.warning("%s: dropped half-written episode %d, kept the %d before it", root, episodes, episodes)
    return _Committed(
        episodes=episodes,
        frames=frames,
        next_file=max(last.values()) + 1,
        tasks=_known_tasks(root, n_tasks),
        stats=_known_stats(root, frames),
    )


def _last_committed(root: Path, episodes: int) -> dict[str, int]:
    """Template -> number of the last file that info.json counts, -1 when there is none.

    Our data and episode files share their numbers; after LeRobot appended to the folder they may not.
    """
    columns = ["episode_index", "data/chunk_index", "data/file_index"]
    for number, path in reversed(layout.existing(root, EPISODES_TEMPLATE).items()):
        last, chunk, file = (column[-1].as_py() for column in layout.read_parquet(path, columns).columns)
        if last < episodes:
            if last != episodes - 1:
                raise DataError(f"{root}: meta/info.json counts {episodes} episodes, files hold {last + 1}")
            data = chunk * layout.FILES_PER_CHUNK + file
            return {DATA_TEMPLATE: data, EPISODES_TEMPLATE: number, FINALS_TEMPLATE: number}
    if episodes:
        raise DataError(f"{root}: meta/info.json counts {episodes} episodes, but meta/episodes holds none")
    return dict.fromkeys(TEMPLATES, -1)


def _known_tasks(root: Path, count: int) -> dict[str, int]:
    if count == 0:
        return {}
    table = layout.read_parquet(root / layout.TASKS)
    pairs = zip(table["task"].to_pylist(), table["task_index"].to_pylist(), strict=True)
    return {task: number for task, number in sorted(pairs, key=lambda pair: pair[1]) if number < count}


def _known_stats(root: Path, frames: int) -> Stats:
    """stats.json, or the per-episode statistics added up again where it counts other frames.

    It is written before the commit, so a crash may have left it counting a dropped episode.
    """
    with contextlib.suppress(DataError):
        stored = from_json(layout.read_json(root / layout.STATS))
        if "index" in stored and stored["index"]["count"].tolist() == [frames]:
            return stored
    total: Stats = {}
    for path in layout.existing(root, EPISODES_TEMPLATE).values():
        for row in layout.read_parquet(path).to_pylist():
            total = merge(total, of_row(row))
    if total:
        layout.write_json(root / layout.STATS, to_json(total))
    return total
