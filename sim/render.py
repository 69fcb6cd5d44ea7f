"""Off-screen rendering through EGL, and projection of points into a camera image."""

from __future__ import annotations

import os

import mujoco
import numpy as np
from numpy.typing import NDArray

from valueguide.errors import EnvironmentSetupError

CAMERAS = {"front": "front", "wrist": "cam"}


class CameraRenderer:
    """Renders the two cameras at one size. Close it: EGL complains at exit otherwise."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # any of several library-specific errors, none of them ours
            raise EnvironmentSetupError(
                f"rendering: expected a working off-screen OpenGL "
                f"({os.environ['MUJOCO_GL']}), found: {error}. "
                "Install libegl1 and libgl1-mesa-dri (Debian, Ubuntu), or set MUJOCO_GL=osmesa with "
                "libosmesa6, or use the suite wxai-state, which renders nothing"
            ) from error
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._size = (height, width)

    def images(self, data: mujoco.MjData) -> dict[str, NDArray[np.uint8]]:
        """Camera name -> uint8 (height, width, 3) RGB of the current state."""
        return {name: self.image(data, name) for name in CAMERAS}

    def image(self, data: mujoco.MjData, name: str) -> NDArray[np.uint8]:
        """uint8 (height, width, 3) RGB of the current state. name: a key of CAMERAS."""
        self._renderer.update_scene(data, CAMERAS[name])
        return self._renderer.render().copy()

    def close(self) -> None:
        self._renderer.close()


def project(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: str,
    points: NDArray[np.floating],
    height: int,
    width: int,
) -> NDArray[np.float32]:
    """Pixel coordinates (n, 2), x right and y down, of points (n, 3) in metres; behind the camera: NaN."""
    index = model.camera(CAMERAS[camera]).id
    rotation = data.cam_xmat[index].reshape(3, 3)
    local = (np.asarray(points, float) - data.cam_xpos[index]) @ rotation
    focal = 0.5 * height / np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    depth = np.where(local[:, 2] < -1e-6, -local[:, 2], np.nan)
    pixels = np.stack(
        [width / 2 + focal * local[:, 0] / depth, height / 2 - focal * local[:, 1] / depth], axis=1
    )
    return pixels.astype(np.float32)
