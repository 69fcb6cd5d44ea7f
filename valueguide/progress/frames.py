"""Which frames of an episode are asked about, how large they are shown, and in which order."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.request import Int64
from valueguide.types import UInt8


def sample_positions(length: int, count: int) -> Int64:
    """int64 (min(count, length),): evenly spread frames, the first (anchor) and the last always among them.

    Raises ConfigError for count < 2 and DataError for an episode of fewer than two frames.
    """
    if count < 2:
        raise ConfigError(mismatch("frames", "count", "2 or more (an anchor and one to ask about)", count))
    if length < 2:
        raise DataError(mismatch("episode", "frames", "2 or more", length))
    return np.round(np.linspace(0, length - 1, min(count, length))).astype(np.int64)


def shrink(image: UInt8, longest_edge: int) -> UInt8:
    """uint8 (h, w, 3) with the same aspect ratio and no edge above `longest_edge`; 0 keeps the size.

    Never enlarges: an enlarged picture costs tokens and shows nothing more.
    """
    height, width = image.shape[:2]
    scale = longest_edge / max(height, width) if longest_edge else 1.0
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def shuffled(count: int, seed: int, content: str) -> Int64:
    """int64 (count,): a uniform permutation of 0 … count - 1.

    content: a digest of the frames that are shuffled. Different clips get unrelated orders from the same
    seed; else the (known) order of an in-context example would give away that of the clip.
    """
    digest = hashlib.sha256(f"{seed}/{count}/{content}".encode()).digest()
    return np.random.default_rng(list(digest)).permutation(count).astype(np.int64)


def frames_digest(frames: UInt8) -> str:
    """sha256 over shape and bytes."""
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames).tobytes())
    return digest.hexdigest()


def video_frames(path: Path, count: int) -> UInt8:
    """uint8 (m, H, W, 3) RGB: evenly spread frames of a video file, m = min(count, its length).

    Raises DataError when the file is missing or is no video.
    """
    if not path.is_file():
        raise DataError(mismatch(str(path), "video", "a file", "none"))
    video = cv2.VideoCapture(str(path))
    frames = []
    while True:  # counted by decoding: the length in a header may be wrong
        more, frame = video.read()
        if not more:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    video.release()
    if len(frames) < 2:
        raise DataError(mismatch(str(path), "video", "two or more frames", len(frames)))
    return np.stack([frames[i] for i in sample_positions(len(frames), count)]).astype(np.uint8)
