"""Points of the robot's frame in a camera's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from valueguide.config.camera import CameraView
from valueguide.errors import DataError, mismatch
from valueguide.types import Float32

#: Metres in front of the lens below which a point cannot be drawn.
_NEAR = 1e-3
_MODELS = ("", "plumb_bob", "rational_polynomial")


def rotation_matrix(quaternion: Sequence[float]) -> NDArray[np.float64]:
    """Unit quaternion x, y, z, w -> rotation matrix (3, 3)."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def project(points: NDArray[np.floating], view: CameraView, width: int, height: int) -> Float32:
    """Points (n, 3), metres, robot's frame -> pixels float32 (n, 2), x right and y down.

    width, height: of the picture, which may be a scaled one of the camera's. Behind the camera: NaN.
    """
    rotation = rotation_matrix(view.orientation)
    local = (np.asarray(points, np.float64).reshape(-1, 3) - view.position) @ rotation
    visible = np.isfinite(local).all(axis=1) & (local[:, 2] > _NEAR)
    pixels = np.full((len(local), 2), np.nan, np.float32)
    if visible.any():
        scale = np.diag([width / view.width, height / view.height, 1.0])
        matrix = scale @ np.asarray(view.matrix, np.float64).reshape(3, 3)
        distortion = np.asarray(view.distortion, np.float64)
        still = np.zeros(3)
        found, _ = cv2.projectPoints(local[visible], still, still, matrix, distortion)
        pixels[visible] = found.reshape(-1, 2)
    return pixels


def with_camera_info(view: CameraView, message: Any, where: str) -> CameraView:
    """`view` with size, matrix and distortion of a sensor_msgs/CameraInfo.

    Raises DataError naming `where` for an uncalibrated camera or another distortion model, like a fisheye's.
    """
    if message.distortion_model not in _MODELS:
        raise DataError(
            mismatch(where, "distortion_model", " or ".join(_MODELS[1:]), message.distortion_model)
        )
    matrix, distortion = [float(v) for v in message.k], [float(v) for v in message.d]
    if not any(matrix):
        raise DataError(mismatch(where, "k", "a camera matrix", "zeros: the camera is not calibrated"))
    return replace(
        view, width=int(message.width), height=int(message.height), matrix=matrix, distortion=distortion
    )
