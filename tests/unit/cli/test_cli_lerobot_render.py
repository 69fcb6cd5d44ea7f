"""Drawing LeRobot's environments: effects off, unused cameras left out, nothing between decisions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from valueguide.cli.lerobot_render import RenderSwitch, install
from valueguide.cli.suites import resolve_suite


class _FakePhysics:
    """Draws white pictures and lists what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        quality = SimpleNamespace(shadowsize=4096, offsamples=4)
        self.model = SimpleNamespace(vis=SimpleNamespace(quality=quality))

    def render(self, **call: Any) -> np.ndarray:
        self.asked.append(call)
        return np.full((call.get("height", 4), 4, 3), 255, np.uint8)


def test_dm_control_draws_one_camera_without_effects() -> None:
    physics = _FakePhysics()
    quality = physics.model.vis.quality
    switch = install(SimpleNamespace(_env=SimpleNamespace(physics=physics)))
    assert isinstance(switch, RenderSwitch) and (quality.shadowsize, quality.offsamples) == (0, 0)
    assert physics.render(height=6, camera_id="top").mean() == 255
    assert not physics.render(height=6, camera_id="angle").any()
    (call,) = physics.asked
    assert call["render_flag_overrides"] == {"shadow": False, "reflection": False}


def test_switched_off_it_answers_black_of_the_right_shape() -> None:
    simulator = _FakePhysics()
    switch = install(SimpleNamespace(_env=simulator))
    assert switch is not None
    first = simulator.render(height=7)
    switch.on = False
    dark = simulator.render(height=7)
    assert dark.shape == first.shape and not dark.any() and first.all() and len(simulator.asked) == 1
    switch.on = True
    assert simulator.render(height=7).all()


def test_unknown_renderers_are_left_alone() -> None:
    assert install(SimpleNamespace()) is None
    assert install(SimpleNamespace(_env=SimpleNamespace())) is None


def test_metaworld_shows_the_current_state_when_drawing_is_switched_on_again() -> None:
    env = resolve_suite("metaworld").make("button-press-v3")
    action = np.array([0.3, 1.0, -0.5, 0.0], np.float32)
    start, _ = env.reset(seed=3)
    env.set_render(False)
    raw, *_ = env.step(action)
    assert "pixels" not in raw and "pixels" not in env.observe()
    raw, *_ = env.step(action)
    env.set_render(True)
    now = env.observe()
    np.testing.assert_array_equal(now["agent_pos"], raw["agent_pos"])
    env.reset(seed=3)
    env.step(action)
    always, *_ = env.step(action)
    np.testing.assert_array_equal(now["pixels"]["image"], always["pixels"]["image"])
    assert (now["pixels"]["image"] != start["pixels"]["image"]).any()
    env.close()
