"""RGB pictures to PNG or JPEG bytes and back."""

from __future__ import annotations

import cv2
import numpy as np

from valueguide.errors import DataError
from valueguide.types import UInt8

JPEG_QUALITY = 95
PNG_LEVEL = 1  # Level 1 is some five times faster than the default and only slightly larger.


def encode_image(image: UInt8, image_format: str) -> bytes:
    """image: uint8 (H, W, 3) RGB. image_format: "png" or "jpeg"."""
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    if image_format == "png":
        done, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    else:
        done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise DataError(f"picture of shape {image.shape}: could not be encoded as {image_format}")
    return encoded.tobytes()


def decode_image(encoded: bytes, where: str) -> UInt8:
    """uint8 (H, W, 3) RGB. Raises DataError naming `where` when the bytes are no picture."""
    if not encoded:
        raise DataError(f"{where}: the picture is empty")
    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DataError(f"{where}: the stored bytes are not a readable picture")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
