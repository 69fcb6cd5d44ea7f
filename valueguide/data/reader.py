"""Opens a LeRobotDataset v3, recorded by valueguide or not, for training and analysis.

Low-dimensional columns are read into numpy once; pictures are decoded when asked for. Rows count on
after the N frames: row N + i is the final observation of episode i, its true last successor.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data import layout
from valueguide.data.finals import FinalObservations
from valueguide.data.images import encode_image
from valueguide.data.interventions import FLAGS, INTERVENTION, IS_INTERVENTION, convention_of, read_sources
from valueguide.data.outcomes import GUESSES, Outcomes, derive_outcomes
from valueguide.data.rebuild import rebuild_episode
from valueguide.data.schema import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, SCALARS, STATE, DatasetSpec
from valueguide.data.source_files import DataFiles, VideoFiles
from valueguide.data.swap import restore_interrupted
from valueguide.errors import DataError, mismatch
from valueguide.types import Episode, Float32, UInt8

log = logging.getLogger("valueguide.data")
Int64 = NDArray[np.int64]


class EpisodeDataset:
    """An open dataset of N frames in `episodes` episodes; use `EpisodeDataset.open`.

    state: float32 (N, S). action: float32 (N, A). environment_state: float32 (N, D) or None.
    episode_start, episode_end: int64 (episodes,), half-open frame ranges. episode_index: their numbers.
    instruction: int64 (N,), index into `instructions`.
    reward: float32 (N,); terminated, truncated, success: bool (N,); source: int64 (N,), see types.SOURCES.
    outcomes_recorded: False where nothing tells how episodes ended and a rule guessed `success`.
    final_state, final_environment_state: the observation after each episode's last action.
    has_final: bool (episodes,), False where that observation is unknown (plain LeRobotDatasets) and the
        last frame stands in for it: not a successor to learn from.
    metadata: one dictionary an episode. fps: frames per second. cameras: camera names.
    spec: the recorder's spec, None for a plain LeRobotDataset.
    interventions: how the dataset says who acted, see interventions.convention_of.
    """

    def __init__(
        self,
        root: Path,
        info: dict[str, Any],
        success: bool | Sequence[bool] | None,
        only: Collection[int] | None = None,
    ) -> None:
        self.root = root
        self.fps = float(info["fps"])
        self.features: dict[str, Any] = info["features"]
        self.spec = _spec(root)
        self.interventions = convention_of(self.features, str(root / layout.INFO))
        self._files = DataFiles(root, info, only)
        if self._files.frames == 0:
            raise DataError(f"{root}: the dataset is empty; record an episode first")
        names = [name for name in _eager_columns() if name in self.features]
        columns = self._files.read(names)
        self.action = _float32(columns, ACTION)
        self.state = _float32(columns, STATE) if STATE in columns else np.zeros((self.frames, 0), np.float32)
        self.environment_state = (
            _float32(columns, ENVIRONMENT_STATE) if ENVIRONMENT_STATE in columns else None
        )
        self.episode_start, self.episode_end, self.episode_index = _bounds(columns["episode_index"])
        if only is None:
            self._check_complete(info)
        self.instructions, self.instruction = _instructions(root, info, np.asarray(columns["task_index"]))
        self.source = read_sources(columns, self.features, self.frames, self._files.place)
        outcomes: Outcomes = derive_outcomes(
            columns, self.episode_start, self.episode_end, success, str(root), self.interventions
        )
        self.reward, self.terminated = outcomes.reward, outcomes.terminated
        self.truncated, self.success = outcomes.truncated, outcomes.success
        self.outcomes_recorded = outcomes.rule not in GUESSES
        if outcomes.rule:
            log.warning("%s: %s", root, outcomes.rule)
        self._finals = (
            FinalObservations.read(root, self.episode_index, self._last_frames(), only or ())
            if self.spec
            else None
        )
        self.has_final = self._finals.known if self._finals else np.zeros(self.episodes, bool)
        self.final_state, self.final_environment_state = self._final_vectors()
        self.metadata = self._finals.metadata if self._finals else [{} for _ in range(self.episodes)]
        self._videos = VideoFiles(root, info, _episode_rows(root, self.episode_index, self.features))

    @classmethod
    def open(
        cls,
        root: str | Path,
        success: bool | Sequence[bool] | None = None,
        only: Collection[int] | None = None,
    ) -> EpisodeDataset:
        """Open the folder `root`.

        only: numbers of data files; the dataset then holds the committed episodes of these, and
            `episode_index` says which those are. By default the whole dataset.

        success: for a plain LeRobotDataset, whether episodes succeeded: one value for all or one each.
            Without it a `next.success` column decides, and without that every episode counts as a
            success at its last frame. Datasets recorded by valueguide know their outcomes.
        Raises DataError: missing folder, no episodes, other dataset version, damaged file (named).
        """
        root = Path(root).resolve()
        restore_interrupted(root)
        if not root.is_dir():
            raise DataError(f"{root}: folder not found; expected a LeRobotDataset v3")
        info = layout.read_json(root / layout.INFO)
        try:
            version = str(info["codebase_version"])
            empty = int(info["total_episodes"]) == 0
            if ACTION not in info["features"]:
                raise DataError(mismatch(str(root / layout.INFO), "features", "a column 'action'", "none"))
        except (KeyError, TypeError) as error:
            raise DataError(f"{root / layout.INFO}: field {error} is missing") from error
        if not version.startswith("v3"):
            raise DataError(
                mismatch(str(root), "dataset version", "v3.x", version, "Convert it with LeRobot")
            )
        if empty:
            raise DataError(f"{root}: the dataset is empty; record an episode first")
        return cls(root, info, success, only)

    @property
    def frames(self) -> int:
        """N, without the final observations."""
        return self._files.frames

    @property
    def episodes(self) -> int:
        return len(self.episode_start)

    @property
    def rows(self) -> int:
        """N + episodes: every frame, then the final observation of each episode."""
        return self.frames + self.episodes

    @property
    def data_files(self) -> list[Path]:
        """The files that hold the frames."""
        return [file.path for file in self._files.files]

    @property
    def cameras(self) -> list[str]:
        """Names of the colour cameras whose pictures are stored; depth maps are not read."""
        return [n.removeprefix(IMAGE_PREFIX) for n, f in self.features.items() if _is_camera(f)]

    @property
    def episode_success(self) -> NDArray[np.bool_]:
        """bool (episodes,): success at the last frame."""
        return self.success[self.episode_end - 1]

    @property
    def episode_terminated(self) -> NDArray[np.bool_]:
        """bool (episodes,): the last frame ended in success or failure, not by a limit."""
        return self.terminated[self.episode_end - 1]

    def column(self, name: str) -> NDArray[Any] | list[str]:
        """Any stored column except pictures: array (N, *shape), or list of str. Reads the files."""
        if name not in self.features or self.features[name]["dtype"] in ("image", "video"):
            numeric = sorted(n for n, f in self.features.items() if f["dtype"] not in ("image", "video"))
            raise DataError(mismatch(str(self.root), "column", f"one of {numeric}", repr(name)))
        return self._files.read([name])[name]

    def image(self, row: int, camera: str) -> UInt8:
        """uint8 (H, W, 3) RGB of row 0 … N + episodes - 1, decoded now."""
        column = self._image_column(camera)
        if not 0 <= row < self.rows:
            raise DataError(mismatch(str(self.root), "row", f"0 … {self.rows - 1}", row))
        if row >= self.frames:
            episode = row - self.frames
            if self._finals is not None and self.has_final[episode]:
                return self._finals.image(episode, column)
            row = int(self.episode_end[episode]) - 1
        if self.features[column]["dtype"] == "video":
            episode = int(np.searchsorted(self.episode_start, row, side="right")) - 1
            return self._videos.picture(episode, row - int(self.episode_start[episode]), column)
        return self._files.picture(row, column)

    def stored_image(self, frame: int, camera: str) -> bytes:
        """The picture of frame 0 … N - 1 as a file's content: as it is stored, or PNG where that is video."""
        column = self._image_column(camera)
        if self.features[column]["dtype"] == "video":
            return encode_image(self.image(frame, camera), "png")
        return self._files.encoded_picture(frame, column)

    def images(self, rows: NDArray[np.integer[Any]], camera: str) -> UInt8:
        """uint8 (B, H, W, 3) RGB, decoded now; `FrameCache` serves the same call from memory maps."""
        return np.stack([self.image(int(row), camera) for row in rows])

    def image_shape(self, camera: str) -> tuple[int, int]:
        """(height, width) of one camera, found on its first frame."""
        height, width, _ = self.image(0, camera).shape
        return height, width

    def rows_of(self, name: str) -> Float32:
        """float32 (N + episodes, D) of "state" or "environment_state": frames, then final observations."""
        frames, final = getattr(self, name), getattr(self, "final_" + name)
        return np.concatenate([frames, final])

    def to_episode(self, i: int) -> Episode:
        """Episode `i` as it was recorded, pictures included."""
        if not 0 <= i < self.episodes:
            raise DataError(mismatch(str(self.root), "episode", f"0 … {self.episodes - 1}", i))
        return rebuild_episode(self, i, self._finals)

    def recorded(self, i: int) -> dict[str, NDArray[Any] | list[str]]:
        """Whatever vg.* and intervention columns exist, for the frames of episode `i`; reads its files.

        HIL-SERL's column comes as `intervention` too.
        """
        flag = next((name for name in FLAGS if name in self.features), INTERVENTION)
        names = [n for n in self.features if n.startswith("vg.") or n == flag]
        found = self._files.read_range(names, int(self.episode_start[i]), int(self.episode_end[i]))
        return {INTERVENTION if name == IS_INTERVENTION else name: values for name, values in found.items()}

    @cached_property
    def dataset_id(self) -> str:
        """sha256 (16 hex digits) of the content; independent of how the files are split."""
        digest = hashlib.sha256(json.dumps(sorted(self.features)).encode())
        digest.update(json.dumps([self.instructions, self.metadata], sort_keys=True).encode())
        for values in (
            self.episode_start,
            self.instruction,
            self.state,
            self.action,
            self.reward,
            self.terminated,
            self.success,
            self.source,
            self.final_state,
            self.environment_state,
        ):
            if values is not None:
                digest.update(np.ascontiguousarray(values).tobytes())
        pictures = self._finals.digests if self._finals else _file_sizes(self.root)
        digest.update(json.dumps(pictures).encode())
        return digest.hexdigest()[:16]

    def _image_column(self, camera: str) -> str:
        for name in (IMAGE_PREFIX + camera, camera):
            if name in self.features and _is_camera(self.features[name]):
                return name
        raise DataError(mismatch(str(self.root), "camera", f"one of {self.cameras}", repr(camera)))

    def _final_vectors(self) -> tuple[Float32, Float32 | None]:
        if self._finals is not None:
            return self._finals.state, self._finals.environment_state
        last = self.episode_end - 1
        return self.state[last], None if self.environment_state is None else self.environment_state[last]

    def _last_frames(self) -> list[dict[str, Any]]:
        """Each episode's last frame in the columns of the sidecar."""
        frames = []
        for start, end in zip(self.episode_start, self.episode_end, strict=True):
            task = self.instructions[self.instruction[end - 1]]
            frame: dict[str, Any] = {"task": task, "final_task": task, STATE: self.state[end - 1]}
            frame["stamp_ns"] = round(float(end - start) / self.fps * 1e9)
            if self.environment_state is not None:
                frame[ENVIRONMENT_STATE] = self.environment_state[end - 1]
            frames.append(frame)
        return frames

    def _check_complete(self, info: dict[str, Any]) -> None:
        for kind, found in (("episodes", self.episodes), ("frames", self.frames)):
            if found != info[f"total_{kind}"]:
                raise DataError(
                    mismatch(
                        f"{self.root}",
                        f"{kind} in the data files",
                        info[f"total_{kind}"],
                        found,
                        "A data file is missing",
                    )
                )


def _is_camera(feature: dict[str, Any]) -> bool:
    facts = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    depth = facts.get("is_depth_map") or facts.get("video.is_depth_map")
    return feature["dtype"] in ("image", "video") and not depth


def _eager_columns() -> list[str]:
    outcome = [name for name in SCALARS if name.startswith("next.")]
    return [STATE, ENVIRONMENT_STATE, ACTION, *outcome, *FLAGS, "vg.source", "episode_index", "task_index"]


def _float32(columns: dict[str, Any], name: str) -> Float32:
    values = np.asarray(columns[name], np.float32)
    return values.reshape(len(values), -1)


def _bounds(column: Any) -> tuple[Int64, Int64, Int64]:
    """Start, end and number of each episode from the per-frame episode_index."""
    index = np.asarray(column)
    start = np.flatnonzero(np.append(True, index[1:] != index[:-1]))
    return start, np.append(start[1:], len(index)), index[start]


def _spec(root: Path) -> DatasetSpec | None:
    path = root / layout.SPEC
    return DatasetSpec.from_dict(layout.read_json(path), str(path)) if path.exists() else None


def _instructions(root: Path, info: dict[str, Any], task_index: Int64) -> tuple[list[str], Int64]:
    table = layout.read_parquet(root / layout.TASKS)
    text = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
    if text is None or "task_index" not in table.column_names:
        raise DataError(mismatch(str(root / layout.TASKS), "columns", "task, task_index", table.column_names))
    known = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    count = max(int(info.get("total_tasks") or 0), int(task_index.max()) + 1)
    missing = set(np.unique(task_index).tolist()) - set(known)
    if missing:
        raise DataError(f"{root / layout.TASKS}: no instruction for task_index {sorted(missing)}")
    return [known.get(i, "") for i in range(count)], task_index.astype(np.int64)


def _episode_rows(root: Path, episode_index: Int64, features: dict[str, Any]) -> list[dict[str, Any]]:
    """Episode metadata in dataset order; needed only where pictures are videos."""
    if not any(feature["dtype"] == "video" for feature in features.values()):
        return []
    rows: dict[int, dict[str, Any]] = {}
    for path in layout.existing(root, layout.EPISODES_TEMPLATE).values():
        with layout.open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        rows.update({row["episode_index"]: row for row in layout.read_parquet(path, names).to_pylist()})
    missing = [int(i) for i in episode_index if int(i) not in rows]
    if missing:
        raise DataError(f"{root}: meta/episodes has no row for episodes {missing}")
    return [rows[int(i)] for i in episode_index]


def _file_sizes(root: Path) -> list[tuple[str, int]]:
    files = [*(root / "data").rglob("*.parquet"), *(root / "videos").rglob("*.mp4")]
    return sorted((str(path.relative_to(root)), path.stat().st_size) for path in files)
