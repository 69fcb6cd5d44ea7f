"""Decoded pictures in memory-mapped files, built once per dataset, so that training never decodes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from valueguide.data.layout import FRAME_CACHE, write_json
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import DataError, mismatch
from valueguide.types import UInt8


class FrameCache:
    """One uint8 array (N + episodes, H, W, 3) a camera; rows as in `EpisodeDataset`."""

    def __init__(self, maps: dict[str, UInt8], folder: Path) -> None:
        self.maps = maps
        self.folder = folder

    @classmethod
    def build(
        cls,
        dataset: EpisodeDataset,
        folder: str | Path | None = None,
        cameras: list[str] | None = None,
        progress: bool = True,
    ) -> FrameCache:
        """Open the cache of `dataset`, decoding all pictures first if there is none yet.

        folder: where caches are kept, by default `.valueguide_frames` in the dataset's folder; each
            lies in a subfolder named by dataset_id, so a changed dataset gets a new one.
        An interrupted build leaves nothing that a later one would take for finished.
        Raises DataError when the disk is full or a picture is damaged.
        """
        cameras = dataset.cameras if cameras is None else cameras
        parent = Path(folder) if folder is not None else dataset.root / FRAME_CACHE
        ready = parent / dataset.dataset_id
        maps: dict[str, UInt8] = {}
        for camera in cameras:
            target = ready / camera
            if not (target / "shape.json").exists():
                try:
                    _decode_all(dataset, camera, target, progress)
                except OSError as error:
                    raise DataError(f"{target}: frame cache not built: {error}") from error
            maps[camera] = _open(target, dataset.rows)
        return cls(maps, ready)

    def image(self, row: int, camera: str) -> UInt8:
        return self._map(camera)[row]

    def images(self, rows: NDArray[np.integer[Any]], camera: str) -> UInt8:
        """uint8 (B, H, W, 3), copied out of the map."""
        return np.asarray(self._map(camera)[rows])

    def _map(self, camera: str) -> UInt8:
        if camera not in self.maps:
            raise DataError(mismatch(str(self.folder), "camera", f"one of {sorted(self.maps)}", repr(camera)))
        return self.maps[camera]


def _decode_all(dataset: EpisodeDataset, camera: str, target: Path, progress: bool) -> None:
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    building.mkdir(parents=True, exist_ok=True)
    try:
        shape = (dataset.rows, *dataset.image_shape(camera), 3)
        pixels = np.lib.format.open_memmap(building / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
        _reserve(building / "frames.npy")
        for row in tqdm(range(dataset.rows), desc=f"decoding {camera}", unit="frame", disable=not progress):
            picture = dataset.image(row, camera)
            if picture.shape != shape[1:]:
                raise DataError(mismatch(str(dataset.root), f"{camera}, row {row}", shape[1:], picture.shape))
            pixels[row] = picture
        pixels.flush()
        del pixels
        write_json(building / "shape.json", list(shape))
        if target.exists():
            shutil.rmtree(target)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _reserve(path: Path) -> None:
    """Claim the file's disk blocks now: a full disk is an OSError here, and a SIGBUS in a memory map."""
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(target: Path, rows: int) -> UInt8:
    shape = tuple(json.loads((target / "shape.json").read_text()))
    try:
        pixels = np.load(target / "frames.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{target}: damaged frame cache; delete the folder: {error}") from error
    if pixels.shape != shape or len(pixels) != rows:
        raise DataError(
            mismatch(str(target), "frame cache", (rows, *shape[1:]), pixels.shape, "Delete the folder")
        )
    return pixels
