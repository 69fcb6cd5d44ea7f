"""Points to pixels, and camera views from files and CameraInfo messages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from valueguide.config.camera import CameraView, load_cameras
from valueguide.errors import ConfigError, DataError
from valueguide.ros.projection import project, rotation_matrix, with_camera_info

MATRIX = [100.0, 0, 50, 0, 100, 40, 0, 0, 1]
#: At the origin, looking along the robot's x: right is -y, down is -z.
AHEAD = CameraView([0, 0, 0], [-0.5, 0.5, -0.5, 0.5], width=100, height=80, matrix=MATRIX)


def test_points_land_where_a_pinhole_puts_them() -> None:
    points = np.array([[1, 0, 0], [1, -0.1, 0], [2, 0, -0.2], [-1, 0, 0], [0, 0, 0], [np.nan, 0, 0]])
    found = project(points, AHEAD, 100, 80)
    np.testing.assert_allclose(found[:3], [[50, 40], [60, 40], [50, 50]], atol=1e-4)
    assert np.isnan(found[3:]).all(), "behind the camera, inside it, nowhere"
    np.testing.assert_allclose(project(points, AHEAD, 200, 160)[:3], 2 * found[:3], atol=1e-3)
    assert project(np.zeros((0, 3)), AHEAD, 100, 80).shape == (0, 2)


def test_rotation_is_a_rotation() -> None:
    turned = rotation_matrix(AHEAD.orientation)
    np.testing.assert_allclose(turned @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(turned @ [1, 0, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)


@given(arrays(np.float64, (5, 3), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_any_points_give_a_pixel_or_nan(points: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        found = project(points, AHEAD, 100, 80)
    assert found.shape == (5, 2) and found.dtype == np.float32


def _info(**changes: object) -> SimpleNamespace:
    fields = {"k": [200.0, 0, 80, 0, 200, 60, 0, 0, 1], "d": [0.1, 0, 0, 0, 0], "width": 160, "height": 120,
              "distortion_model": "plumb_bob"}  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def test_camera_info_brings_matrix_size_and_distortion() -> None:
    view = CameraView(AHEAD.position, AHEAD.orientation, camera_info="front/camera_info")
    known = with_camera_info(view, _info(), "front/camera_info")
    x, y = project(np.array([[1.0, -0.2, 0.0]]), known, 160, 120)[0]
    assert (x, y) == (pytest.approx(80 + 200 * 0.2 * (1 + 0.1 * 0.04), abs=1e-3), pytest.approx(60, abs=1e-3))
    with pytest.raises(DataError, match="front/camera_info: distortion_model"):
        with_camera_info(view, _info(distortion_model="equidistant"), "front/camera_info")
    with pytest.raises(DataError, match="not calibrated"):
        with_camera_info(view, _info(k=[0.0] * 9), "front/camera_info")


def _write(folder: Path, content: object) -> str:
    path = folder / "cameras.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_views_are_read_and_wrong_ones_are_named(tmp_path: Path) -> None:
    good = {"position": [0, 0, 1], "orientation": [0, 0, 0, 1], "camera_info": "front/camera_info"}
    assert load_cameras(_write(tmp_path, {"front": good}))["front"].position == [0, 0, 1]
    assert load_cameras("sim")["front"].width == 128
    assert load_cameras("no_such_robot") == {}
    fixed = {"camera_info": "", "matrix": MATRIX, "width": 100, "height": 80}
    for change, message in (
        ({"position": [0, 0]}, "position: expected 3"),
        ({"orientation": [0, 0, 0, 2]}, "unit quaternion"),
        ({"orientation": [0, 0, 0, float("nan")]}, "orientation: expected 4 finite"),
        ({"camera_info": ""}, "matrix: expected 9"),
        ({**fixed, "height": 0}, "width and height"),
        ({**fixed, "matrix": [0.0] * 9}, "focal lengths"),
        ({"distortion": [0.1]}, "distortion"),
        ({"colour": "red"}, "colour"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            load_cameras(_write(tmp_path, {"front": {**good, **change}}))
        assert "cameras.yaml: front" in str(error.value)
    for content in ("front", {"front": 3}):
        with pytest.raises(ConfigError, match="expected a? ?(camera|mapping)|a mapping"):
            load_cameras(_write(tmp_path, content))
    with pytest.raises(ConfigError, match="readable YAML"):
        load_cameras(str(tmp_path / "missing.yaml"))
