"""The physical state of the tabletop: the compiled scene, the arm in it, and where things are."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.arm import Arm, ArmState
from sim.scene import NOVEL_OBJECTS, OBJECTS, build_model

Array = NDArray[np.float64]
#: Where objects that take no part in an episode wait: behind the front camera, on the floor.
_PARKING = np.array([3.0, -0.6, -0.55])
_UP = np.array([0.0, 0.0, 1.0])
#: What stands up less than this is no obstacle, such as a towel; everything stands lower than _OVERHEAD (m).
_FLAT, _OVERHEAD = 0.004, 0.40
SCENE_STATE_NAMES = tuple(
    f"{name}.{field}" for name in OBJECTS for field in ("x", "y", "z", "sin_yaw", "cos_yaw")
) + ("drawer", "button")


@dataclass(frozen=True)
class WorldState:
    """A saved moment. data is a whole copy: MuJoCo's state vector leaves out where bodies, cameras and lights
    are, which lags a physics step behind the joints, so pictures and measurements would differ."""

    data: mujoco.MjData
    arm: ArmState
    present: tuple[str, ...]


class World:
    """Model, data and arm of one episode, with named look-ups. Positions in metres, base frame."""

    def __init__(self) -> None:
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model, self.data)
        self.present: tuple[str, ...] = ()
        every = [*OBJECTS, *NOVEL_OBJECTS]
        self._qpos = {n: int(self.model.jnt_qposadr[self.model.body(n).jntadr[0]]) for n in every}
        self._dof = {n: int(self.model.jnt_dofadr[self.model.body(n).jntadr[0]]) for n in every}
        self._gripped = {int(self.model.body(n).id): n for n in (*every, "drawer")}
        self._fingers = [int(self.model.body(f"carriage_{side}").id) for side in ("left", "right")]

    def save(self) -> WorldState:
        """What `load` needs to go on from here, bit for bit."""
        return WorldState(copy.copy(self.data), self.arm.save(), self.present)

    def load(self, state: WorldState) -> None:
        """Take a state that a `World` saved; the same one may be loaded any number of times."""
        mujoco.mj_copyData(self.data, self.model, state.data)
        self.arm.load(state.arm)
        self.present = state.present

    def clear(self) -> None:
        """Rest state: the arm at home, drawer and button at zero, every object parked."""
        mujoco.mj_resetData(self.model, self.data)
        self.arm.home()
        for i, name in enumerate(self._qpos):
            self._set_pose(name, _PARKING + [0, 0.15 * i, 0], 0.0)
        self.present = ()

    def place(self, name: str, xy: Array, yaw: float) -> None:
        """Put an object upright on the table at xy (2,) with the given yaw."""
        self._set_pose(name, np.array([*xy, {**OBJECTS, **NOVEL_OBJECTS}[name].rest_height]), yaw)
        self.present = (*self.present, name)

    def settle(self, steps: int = 50) -> None:
        """Let physics run with the arm holding still."""
        for _ in range(steps):
            mujoco.mj_step(self.model, self.data)

    def _set_pose(self, name: str, position: Array, yaw: float) -> None:
        start = self._qpos[name]
        self.data.qpos[start : start + 3] = position
        self.data.qpos[start + 3 : start + 7] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def position(self, body: str) -> Array:
        """(3,) origin of a body."""
        return self.data.body(body).xpos.copy()

    def geom_position(self, geom: str) -> Array:
        """(3,) centre of a geom."""
        return self.data.geom(geom).xpos.copy()

    def yaw_of(self, body: str) -> float:
        """Heading of a body's x axis in the table plane, radians."""
        rotation = self.data.body(body).xmat
        return float(np.arctan2(rotation[3], rotation[0]))

    def velocity(self, name: str) -> Array:
        """(3,) linear velocity of a movable object, m/s."""
        start = self._dof[name]
        return self.data.qvel[start : start + 3].copy()

    def speed(self, name: str) -> float:
        """Linear speed of a movable object, m/s."""
        return float(np.linalg.norm(self.velocity(name)))

    def obstacles(self, points: Array, besides: str) -> int:
        """Over how many of the points (N, 2) something stands beside the body `besides` and the arm."""
        scene, geom = np.array([1, 0, 0, 0, 0, 0], np.uint8), np.zeros(1, np.int32)  # the arm is in group 2
        body, count = int(self.model.body(besides).id), 0
        for x, y in points:
            start = np.array([x, y, _OVERHEAD])
            down = mujoco.mj_ray(self.model, self.data, start, -_UP, scene, 1, body, geom)
            count += bool(_OVERHEAD - down > _FLAT)
        return count

    def half_size(self, name: str) -> tuple[float, float]:
        """Half of an object's size across the fingers that hold it, and along them, metres."""
        geom = self.model.geom(name)
        radius, length = (float(value) for value in geom.size[:2])
        if geom.type[0] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            return radius, radius + length
        return (radius, radius) if geom.type[0] == mujoco.mjtGeom.mjGEOM_CYLINDER else (length, radius)

    def gripped(self) -> str | None:
        """The object, or "drawer", that touches both fingers now; None when there is none."""
        touching: list[set[int]] = [set(), set()]
        for pair in self.model.geom_bodyid[self.data.contact.geom[: self.data.ncon]]:
            for side, finger in enumerate(self._fingers):
                if finger in pair:
                    touching[side].update(int(body) for body in pair)
        held = sorted((touching[0] & touching[1]) & self._gripped.keys())
        return self._gripped[held[0]] if held else None

    @property
    def drawer(self) -> float:
        """How far the drawer is open, metres."""
        return float(self.data.joint("drawer").qpos[0])

    @property
    def button(self) -> float:
        """How far the button is pressed, metres."""
        return float(self.data.joint("button").qpos[0])

    def scene_state(self) -> NDArray[np.float32]:
        """Privileged state, float32 (37,): see SCENE_STATE_NAMES. Absent objects are all zero."""
        out = np.zeros(len(SCENE_STATE_NAMES), np.float32)
        for i, name in enumerate(OBJECTS):
            if name in self.present:
                yaw = self.yaw_of(name)
                out[5 * i : 5 * i + 5] = [*self.position(name), np.sin(yaw), np.cos(yaw)]
        out[-2:] = self.drawer, self.button
        return out
