"""configs/cameras/sim.yaml describes the camera that the simulator renders."""

from __future__ import annotations

import numpy as np
import pytest

from sim.env import TabletopEnv
from valueguide.config.camera import load_cameras
from valueguide.ros.draw import hand_paths
from valueguide.ros.projection import project


@pytest.mark.parametrize(
    ("visuals", "size", "pixels"), [("none", 128, 0.05), ("none", 224, 0.05), ("train", 128, 8)]
)
def test_paths_land_where_the_simulator_puts_them(visuals: str, size: int, pixels: float) -> None:
    env = TabletopEnv("carrot_on_plate", observation="state", visuals=visuals, image_size=size)
    env.reset(seed=3)
    actions = np.random.default_rng(0).uniform(-0.03, 0.03, (4, 16, 5)).astype(np.float32)
    wanted = env.project_candidates(actions)
    start = env.world.arm.position().astype(np.float32)
    paths = hand_paths(actions, "cartesian_delta", start, None)
    assert paths is not None
    view = load_cameras("sim")["front"]
    for path, line in zip(paths, wanted, strict=True):
        np.testing.assert_allclose(project(path, view, size, size), line, atol=pixels)
    env.close()
