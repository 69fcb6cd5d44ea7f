"""JPEG and PNG pictures on the wire: their true size is read from the bytes before anything is decoded.

Only what a camera driver needs is taken: baseline JPEG and plain 8-bit RGB PNG. Progressive JPEG, animated or
annotated PNG can cost far more time or memory than their size says.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.types import UInt8

#: How pictures may travel. PNG gives back every bit; JPEG is the smallest.
PICTURES = ("raw", "jpeg", "png")
JPEG_QUALITY = 95
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
_PNG_RGB8 = (8, 2, 0, 0, 0)  # depth, colour type, compression, filter, interlace
_BASELINE = 0xC0
_OTHER_FRAMES = {*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}


def encode_picture(image: NDArray[Any], encoding: str) -> bytes:
    """uint8 (height, width, 3), RGB, as a file of that format. Raises DataError when it cannot be encoded."""
    suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if encoding == "jpeg":
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    try:
        done, data = cv2.imencode(
            suffix, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), options
        )
    except cv2.error as error:
        raise DataError(f"picture {image.shape}: cannot be encoded as {encoding}: {error.err}") from None
    if not done:
        raise DataError(f"picture {image.shape}: cannot be encoded as {encoding}")
    return data.tobytes()


def decode_picture(data: bytes, encoding: str, size: tuple[int, int], where: str) -> UInt8:
    """uint8 (height, width, 3), RGB. size: the (height, width) that was announced.

    Raises DataError when the bytes are no such picture, or one of another size.
    """
    found = _jpeg_size(data) if encoding == "jpeg" else _png_size(data)
    if found is None:
        plain = "baseline JPEG" if encoding == "jpeg" else "8-bit RGB PNG without extras"
        raise DataError(mismatch(where, "content", plain, "other bytes"))
    if found != size:
        raise DataError(mismatch(where, "picture", size, found))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None or image.shape != (*size, 3):
        raise DataError(mismatch(where, "content", f"a whole {encoding} picture", "damaged bytes"))
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG with nothing but header, pixels and end; None for anything else."""
    if not data.startswith(_PNG_START) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, *details = struct.unpack(">IIBBBBB", data[16:29])
    if tuple(details) != _PNG_RGB8:
        return None
    at = len(_PNG_START)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind not in _PNG_CHUNKS:
            return None
        at += 12 + length
        if kind == b"IEND":
            return (height, width) if at == len(data) else None
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a baseline JPEG of three components; None for anything else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        if kind in _ALONE:
            at += 2
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if kind in _OTHER_FRAMES:
            return None
        if kind == _BASELINE:
            if size is not None or at + 10 > len(data):
                return None
            depth, height, width, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            if (depth, components) != (8, 3):
                return None
            size = height, width
        if kind == 0xDA:  # Pixels follow. A second frame header among them would announce another size.
            return size if size and not _has_frame_header(data, at + 2 + length) else None
        at += 2 + length
    return None


def _has_frame_header(data: bytes, start: int) -> bool:
    """In pixel data 0xFF is followed by 0, a restart mark or the end; anything else is a new segment."""
    at = data.find(b"\xff", start)
    while 0 <= at < len(data) - 1:
        following = data[at + 1]
        if following == 0xD9:
            return at + 2 != len(data)
        if following not in (0, 0xFF) and following not in _ALONE:
            return True
        at = data.find(b"\xff", at + 1)
    return False
