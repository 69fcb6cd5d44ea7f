"""Films for the report: two episodes side by side, as H.264."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np

from valueguide.errors import EnvironmentSetupError
from valueguide.types import UInt8

_WHITE, _INK = (255, 255, 255), (17, 24, 39)
_GREEN, _RED = (34, 160, 90), (214, 62, 62)
_HEADER, _GAP = 40, 8
_FONT = cv2.FONT_HERSHEY_DUPLEX


def side_by_side(
    left: Sequence[UInt8], right: Sequence[UInt8], titles: tuple[str, str], verdicts: tuple[str, str]
) -> list[UInt8]:
    """Two episodes of equal frame size in one film, each with its title.

    The shorter one stays on its last frame. From its last frame on, each side wears its verdict:
    green for "success", red for anything else.
    """
    frames: list[UInt8] = []
    height, width = left[0].shape[:2]
    for number in range(max(len(left), len(right))):
        page = np.full((height + _HEADER, 2 * width + _GAP, 3), _INK, np.uint8)
        sides = zip((left, right), titles, verdicts, (0, width + _GAP), strict=True)
        for film, title, verdict, x in sides:
            last = len(film) - 1
            page[_HEADER:, x : x + width] = film[min(number, last)]
            cv2.putText(page, title, (x + 10, 27), _FONT, 0.6, _WHITE, 1, cv2.LINE_AA)
            if number >= last:
                _badge(page, verdict, x + width - 8)
        frames.append(page)
    return frames


def _badge(page: UInt8, text: str, right: int) -> None:
    color = _GREEN if text == "success" else _RED
    (width, _), _ = cv2.getTextSize(text, _FONT, 0.5, 1)
    cv2.rectangle(page, (right - width - 16, 9), (right, 32), color, -1, cv2.LINE_AA)
    cv2.putText(page, text, (right - width - 8, 25), _FONT, 0.5, _WHITE, 1, cv2.LINE_AA)


def encode_mp4(frames: Sequence[UInt8], fps: float, crf: int = 24) -> bytes:
    """Frames of one size as an H.264 mp4 that every browser plays. Odd sizes lose their last row or column.

    Raises EnvironmentSetupError when PyAV or its H.264 encoder is missing.
    """
    try:
        import av
    except ImportError as error:
        raise EnvironmentSetupError(
            "videos: expected the package av (PyAV), found none. pip install av, or use --videos 0"
        ) from error
    if "libx264" not in av.codecs_available:
        raise EnvironmentSetupError(
            "videos: expected an av (PyAV) with libx264, found one without. "
            "Install the av wheel from PyPI, or use --videos 0"
        )
    height, width = (size - size % 2 for size in frames[0].shape[:2])
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": str(crf), "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return sink.getvalue()
