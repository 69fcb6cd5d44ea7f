"""The sidecar that LeRobot ignores: each episode's final observation and its facts."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data import layout
from valueguide.data.images import decode_image
from valueguide.data.schema import ENVIRONMENT_STATE, IMAGE_PREFIX, STATE
from valueguide.errors import DataError
from valueguide.types import Float32, UInt8

log = logging.getLogger("valueguide.data")
LOW_DIMENSIONAL = (
    "episode_index",
    "task",
    "final_task",
    "stamp_ns",
    STATE,
    ENVIRONMENT_STATE,
    "metadata",
    "digest",
)


@dataclass(frozen=True)
class FinalObservations:
    """One entry an episode, in dataset order. state: float32 (episodes, S).

    known: bool (episodes,); False where LeRobot appended the episode or the file was lost. The last
        frame then stands in for the final observation, and the metadata is empty.
    """

    known: NDArray[np.bool_]

    state: Float32
    environment_state: Float32 | None
    tasks: list[str]
    final_tasks: list[str]
    stamps_ns: list[int]
    metadata: list[dict[str, Any]]
    digests: list[str]
    places: list[tuple[Path, int] | None]

    @classmethod
    def read(
        cls,
        root: Path,
        episode_index: NDArray[np.int64],
        last_frames: list[dict[str, Any]],
        first: Collection[int] = (),
    ) -> FinalObservations:
        """last_frames: each episode's last frame in the sidecar's columns, for episodes without an entry.

        first: numbers of the files in which to look first; the others are left alone when all is there.
        Raises DataError naming the file that is damaged.
        """
        rows: dict[int, dict[str, Any]] = {}
        files = layout.existing(root, layout.FINALS_TEMPLATE)
        for number in sorted(files, key=lambda number: number not in first):
            if first and all(int(i) in rows for i in episode_index):
                break
            path = files[number]
            with layout.open_parquet(path) as file:
                names = [name for name in LOW_DIMENSIONAL if name in file.schema_arrow.names]
            for place, row in enumerate(layout.read_parquet(path, names).to_pylist()):
                rows[row["episode_index"]] = {**row, "place": (path, place)}
        known = np.array([int(i) in rows for i in episode_index])
        if not known.all():
            log.warning(
                "%s: meta/valueguide/final_observations has no row for episodes %s; nothing is learned from "
                "what followed their last frame",
                root,
                episode_index[~known].tolist(),
            )
        ordered = [
            rows.get(int(i)) or {**last, "metadata": "{}", "digest": "", "place": None}
            for i, last in zip(episode_index, last_frames, strict=True)
        ]
        privileged = [row[ENVIRONMENT_STATE] for row in ordered] if ENVIRONMENT_STATE in ordered[0] else None
        return cls(
            known=known,
            state=np.array([row[STATE] for row in ordered], np.float32),
            environment_state=None if privileged is None else np.array(privileged, np.float32),
            tasks=[row["task"] for row in ordered],
            final_tasks=[row["final_task"] for row in ordered],
            stamps_ns=[row["stamp_ns"] for row in ordered],
            metadata=[json.loads(row["metadata"]) for row in ordered],
            digests=[row["digest"] for row in ordered],
            places=[row["place"] for row in ordered],
        )

    def image(self, episode: int, column: str) -> UInt8:
        """uint8 (H, W, 3) RGB of the observation after the episode's last action."""
        place = self.places[episode]
        if place is None:
            raise DataError(f"episode {episode}: its final observation was not recorded")
        path, row = place
        cell = layout.read_row_group(path, row, column)[0].as_py()
        camera = column.removeprefix(IMAGE_PREFIX)
        return decode_image(cell["bytes"], f"{path}: camera {camera!r}, row {row}")
