"""Visual randomisation: light, colours, camera pose. Training ranges and wider held-out ones.

Only appearance changes here; objects that are added for held-out visuals are placed by
`sim.tasks.set_up`. Everything is drawn from the episode's seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from sim.scene import NOVEL_OBJECTS


@dataclass(frozen=True)
class VisualRange:
    """light: +- fraction of the light's strength; tilt: radians of its direction;
    colour: +- of each rgb value of objects and table; camera: metres; camera_angle: radians;
    extra: names of never-seen objects that may appear."""

    light: float
    tilt: float
    colour: float
    camera: float
    camera_angle: float
    extra: tuple[str, ...] = ()


RANGES: dict[str, VisualRange] = {
    "none": VisualRange(0, 0, 0, 0, 0),
    "train": VisualRange(0.20, 0.4, 0.08, 0.010, 0.015),
    "held_out": VisualRange(0.40, 0.8, 0.16, 0.020, 0.030, tuple(NOVEL_OBJECTS)),
}
#: Held-out draws stay outside the training range: at least this share of the held-out width.
_HELD_OUT_MINIMUM = 0.5


class Visuals:
    """Applies one draw to a model, always starting from the scene's own appearance."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._colour = model.geom_rgba.copy()
        self._camera_position = model.cam_pos.copy()
        self._camera_quat = model.cam_quat.copy()
        self._light = model.light_diffuse.copy()
        self._light_direction = model.light_dir.copy()
        self._ambient = np.array(model.vis.headlight.ambient)
        self._painted = [g for g in range(model.ngeom) if model.geom_group[g] == 0]
        self._front = model.camera("front").id

    def save(self) -> tuple[np.ndarray, ...]:
        """The present appearance, for `load`."""
        return tuple(part.copy() for part in self._parts())

    def load(self, appearance: tuple[np.ndarray, ...]) -> None:
        """Take a saved appearance."""
        for part, value in zip(self._parts(), appearance, strict=True):
            part[:] = value

    def _parts(self) -> tuple[np.ndarray, ...]:
        """Views of everything that `apply` changes."""
        m = self._model
        lights = (m.light_diffuse, m.vis.headlight.ambient, m.light_dir)
        return (m.geom_rgba, *lights, m.cam_pos, m.cam_quat)

    def apply(self, name: str, rng: np.random.Generator) -> None:
        """name: a key of RANGES. The same rng state always gives the same picture."""
        spread, held_out, m = RANGES[name], name == "held_out", self._model

        def draw(scale: float, shape: int | tuple[int, ...] = ()) -> np.ndarray:
            value = rng.uniform(-1, 1, shape)
            if held_out:
                value = np.sign(value) * (_HELD_OUT_MINIMUM + (1 - _HELD_OUT_MINIMUM) * np.abs(value))
            return scale * value

        m.geom_rgba[:] = self._colour
        shift = draw(spread.colour, (m.ngeom, 3))
        m.geom_rgba[self._painted, :3] = np.clip(self._colour[self._painted, :3] + shift[self._painted], 0, 1)
        strength = 1 + draw(spread.light)
        m.light_diffuse[:] = np.clip(self._light * strength, 0, 1)
        m.vis.headlight.ambient[:] = np.clip(self._ambient * (1 + draw(spread.light)), 0, 1)
        direction = self._light_direction[0] + [*draw(spread.tilt, 2), 0.0]
        m.light_dir[0] = direction / np.linalg.norm(direction)
        m.cam_pos[:] = self._camera_position
        m.cam_quat[:] = self._camera_quat
        m.cam_pos[self._front] += draw(spread.camera, 3)
        turn, quat = np.zeros(4), np.zeros(4)
        mujoco.mju_euler2Quat(turn, draw(spread.camera_angle, 3), "xyz")
        mujoco.mju_mulQuat(quat, self._camera_quat[self._front], turn)
        m.cam_quat[self._front] = quat
