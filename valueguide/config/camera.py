"""Where fixed cameras are and how they see, to draw paths into their pictures. See configs/cameras/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import yaml

from valueguide.errors import ConfigError, mismatch

CAMERAS = Path(__file__).resolve().parents[2] / "configs" / "cameras"
#: Numbers of coefficients that OpenCV's (and ROS's plumb_bob and rational_polynomial) model may have.
_DISTORTION = (0, 4, 5, 8, 12, 14)


@dataclass(frozen=True)
class CameraView:
    """One camera that does not move in the robot's frame.

    position: of the camera in the robot's frame, metres. orientation: quaternion x, y, z, w of its optical
    frame (x right, y down, z into the picture) in the robot's frame.
    camera_info: topic of sensor_msgs/CameraInfo that gives the rest; empty: given here.
    width, height: pixels that `matrix` holds for. matrix: the camera matrix, 9 numbers row by row.
    distortion: coefficients in the order of OpenCV and CameraInfo.
    """

    position: list[float]
    orientation: list[float]
    camera_info: str = ""
    width: int = 0
    height: int = 0
    matrix: list[float] = field(default_factory=list)
    distortion: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._check("position", 3)
        self._check("orientation", 4)
        if abs(float(np.linalg.norm(self.orientation)) - 1) > 0.01:
            raise ConfigError(mismatch("camera", "orientation", "a unit quaternion", self.orientation))
        if not self.camera_info or self.matrix:
            self._check("matrix", 9)
            if self.width < 1 or self.height < 1:
                raise ConfigError(
                    mismatch("camera", "width and height", "1 or more pixels", (self.width, self.height))
                )
            if not (self.matrix[0] > 0 and self.matrix[4] > 0):
                raise ConfigError(mismatch("camera", "matrix", "focal lengths above 0", self.matrix))
        if len(self.distortion) not in _DISTORTION:
            raise ConfigError(
                mismatch("camera", "distortion", f"{_DISTORTION} coefficients", len(self.distortion))
            )
        self._check("distortion", len(self.distortion))

    def _check(self, name: str, size: int) -> None:
        values = getattr(self, name)
        if len(values) != size or not np.isfinite(values).all():
            raise ConfigError(mismatch("camera", name, f"{size} finite numbers", values))


def load_cameras(name_or_path: str) -> dict[str, CameraView]:
    """`configs/cameras/<name>.yaml` or any path: camera name -> view. No such name: no camera.

    Raises ConfigError naming the file and the field for a path that does not exist or a wrong file.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = CAMERAS / f"{name_or_path}.yaml"
        if not path.exists():
            return {}
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, found {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(mismatch(str(path), "content", "camera: view", type(content).__name__))
    return {str(name): _decode(view, f"{path}: {name}") for name, view in content.items()}


def _decode(content: Any, where: str) -> CameraView:
    if not isinstance(content, dict):
        raise ConfigError(mismatch(where, "content", "a mapping", type(content).__name__))
    try:
        return draccus.decode(CameraView, content)
    except Exception as error:  # draccus raises several kinds; all of them mean a wrong file
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
