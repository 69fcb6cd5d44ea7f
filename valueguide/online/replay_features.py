"""Outputs of a frozen encoder for the segments of a replay, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from valueguide.errors import DataError
from valueguide.online.segment_file import map_tensors, write_tensors
from valueguide.online.segments import Segment
from valueguide.types import Float32


def kept_features(
    folder: str | Path, encode: Callable[[Segment], Float32]
) -> Callable[[int, Segment], Float32]:
    """A `FeatureSource` that calls `encode` once for a segment and serves memory maps from then on.

    folder: belongs to one replay and one encoder; its name should hold the encoder's version.
    encode: segment -> float32 (T+1, F).
    A damaged file is made again. Raises DataError when the disk refuses.
    """
    root = Path(folder)

    def features(sequence: int, segment: Segment) -> Float32:
        path = root / f"{sequence:012d}.safetensors"
        try:
            return map_tensors(path)[0]["features"]
        except (FileNotFoundError, DataError, KeyError):
            made = np.asarray(encode(segment), np.float32)
        try:
            write_tensors(path, {"features": made}, {})
        except OSError as error:
            raise DataError(f"{path}: features not kept: {error}") from error
        return map_tensors(path)[0]["features"]

    return features
