"""Builds the MuJoCo model: the WidowX AI arm on a riser, a table, movable objects, a cabinet, a button.

The arm's MJCF and meshes come from the `trossen-arm-sim` wheel (Apache-2.0). Frame: the table's
surface is z = 0, x points away from the arm, y to its left, metres.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass

import mujoco
import numpy as np

GEOM = mujoco.mjtGeom
TIMESTEP = 0.004
RISER_HEIGHT = 0.10
TABLE_LOW = np.array([-0.20, -0.50])
TABLE_HIGH = np.array([0.62, 0.50])
TABLE_COLOUR = (0.62, 0.52, 0.42, 1.0)
GRIPPER_OPEN = 0.044  # metres a finger travels from closed to open
HOME_JOINTS = np.array([0.0, 1.6, 1.3, -0.9, 0.0, 0.0])
BASKET = np.array([0.14, -0.27])
TOWEL = np.array([0.29, -0.13])
BUTTON = np.array([0.0, 0.29])
CABINET_ANGLE = np.deg2rad(58.0)
CABINET_RADIUS = 0.40
_SLIPPERY = [0.9, 0.02, 0.001]
_GRIPPY = [1.2, 0.02, 0.001]


@dataclass(frozen=True)
class MovableObject:
    """name: body name; rest_height: z of the body's origin when it lies on the table (m);
    symmetry: yaw period of its shape (rad); radius: clearance needed when it is placed (m)."""

    name: str
    rest_height: float
    symmetry: float
    radius: float


OBJECTS: dict[str, MovableObject] = {
    o.name: o
    for o in (
        MovableObject("carrot", 0.015, np.pi, 0.045),
        MovableObject("plate", 0.006, 0.0, 0.060),
        MovableObject("eggplant", 0.018, np.pi, 0.045),
        MovableObject("green_cube", 0.018, np.pi / 2, 0.027),
        MovableObject("yellow_cube", 0.018, np.pi / 2, 0.027),
        MovableObject("can", 0.041, 0.0, 0.024),
        MovableObject("spoon", 0.009, np.pi, 0.060),
    )
}
#: Objects that no task mentions and no training episode contains: held-out visuals place them.
NOVEL_OBJECTS: dict[str, MovableObject] = {
    o.name: o
    for o in (
        MovableObject("blue_ball", 0.02, 0.0, 0.025),
        MovableObject("white_box", 0.015, np.pi / 2, 0.03),
    )
}


def build_model() -> mujoco.MjModel:
    """Compile the scene. Rendering is set up without shadows and multisampling: on a CPU they cost 10x."""
    assets = str(importlib.resources.files("trossen_arm_sim")) + "/assets/"
    spec = mujoco.MjSpec.from_file(assets + "wxai_follower.xml")
    spec.meshdir = assets
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 640, 480
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.headlight.ambient = [0.45] * 3
    spec.visual.headlight.diffuse = [0.55] * 3
    _prepare_arm(spec)
    _add_table(spec)
    _add_objects(spec)
    _add_cabinet(spec)
    _add_button(spec)
    return spec.compile()


def _prepare_arm(spec: mujoco.MjSpec) -> None:
    spec.body("base_link").pos = [0, 0, RISER_HEIGHT]
    for body in spec.bodies:
        for geom in list(body.geoms):
            if geom.meshname in ("camera_mount_d405", "d405"):
                spec.delete(geom)
            elif geom.group == 3 and body.name.startswith("carriage"):
                geom.friction, geom.condim, geom.solref, geom.priority = [1.5, 0.05, 0.001], 4, [0.01, 1], 1


def _add_table(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    centre, half = (TABLE_LOW + TABLE_HIGH) / 2, (TABLE_HIGH - TABLE_LOW) / 2
    world.add_geom(name="table", type=GEOM.mjGEOM_BOX, pos=[*centre, -0.02], size=[*half, 0.02],
                   rgba=TABLE_COLOUR, friction=[1, 0.005, 0.0001])  # fmt: skip
    world.add_geom(name="floor", type=GEOM.mjGEOM_PLANE, pos=[0, 0, -0.6], size=[6, 6, 0.1],
                   rgba=[0.35, 0.36, 0.38, 1])  # fmt: skip
    world.add_geom(name="riser", type=GEOM.mjGEOM_BOX, size=[0.06, 0.06, RISER_HEIGHT / 2],
                   pos=[0, 0, RISER_HEIGHT / 2], rgba=[0.2, 0.2, 0.2, 1])  # fmt: skip
    world.add_light(name="key", pos=[0.3, 0, 2], dir=[0, 0, -1], castshadow=False,
                    type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)  # fmt: skip
    world.add_camera(name="front", pos=[0.80, 0, 0.52], xyaxes=[0, 1, 0, -0.64, 0, 0.77], fovy=48)
    world.add_geom(name="towel", type=GEOM.mjGEOM_BOX, size=[0.06, 0.06, 0.001], pos=[*TOWEL, 0.001],
                   rgba=[0.2, 0.3, 0.8, 1])  # fmt: skip


def _free_body(spec: mujoco.MjSpec, name: str) -> mujoco.MjsBody:
    body = spec.worldbody.add_body(name=name, pos=[3, 0, -0.5])
    body.add_freejoint()
    return body


def _add_objects(spec: mujoco.MjSpec) -> None:
    lying = [0.7071, 0, 0.7071, 0]
    body = _free_body(spec, "carrot")
    body.add_geom(name="carrot", type=GEOM.mjGEOM_CAPSULE, size=[0.014, 0.035, 0], quat=lying,
                  rgba=[1, 0.45, 0.05, 1], mass=0.04, friction=_GRIPPY, condim=4)  # fmt: skip
    body.add_geom(name="carrot_top", type=GEOM.mjGEOM_BOX, size=[0.012, 0.006, 0.006], pos=[-0.055, 0, 0],
                  rgba=[0.1, 0.6, 0.1, 1], mass=0.002, contype=0, conaffinity=0)  # fmt: skip
    body = _free_body(spec, "plate")
    body.add_geom(name="plate", type=GEOM.mjGEOM_CYLINDER, size=[0.058, 0.006, 0],
                  rgba=[0.9, 0.9, 0.95, 1], mass=0.3, friction=_GRIPPY)  # fmt: skip
    body = _free_body(spec, "eggplant")
    body.add_geom(name="eggplant", type=GEOM.mjGEOM_CAPSULE, size=[0.017, 0.028, 0], quat=lying,
                  rgba=[0.35, 0.05, 0.4, 1], mass=0.05, friction=_GRIPPY, condim=4)  # fmt: skip
    for name, colour in (("green_cube", [0.1, 0.7, 0.2, 1]), ("yellow_cube", [0.95, 0.8, 0.1, 1])):
        body = _free_body(spec, name)
        body.add_geom(name=name, type=GEOM.mjGEOM_BOX, size=[0.018] * 3, rgba=colour, mass=0.04,
                      friction=_GRIPPY, condim=4)  # fmt: skip
    body = _free_body(spec, "can")
    body.add_geom(name="can", type=GEOM.mjGEOM_CYLINDER, size=[0.022, 0.04, 0], rgba=[0.8, 0.05, 0.05, 1],
                  mass=0.06, friction=_GRIPPY, condim=4)  # fmt: skip
    body = _free_body(spec, "spoon")
    body.add_geom(name="spoon", type=GEOM.mjGEOM_BOX, size=[0.055, 0.008, 0.008],
                  rgba=[0.8, 0.8, 0.85, 1], mass=0.03, friction=_GRIPPY, condim=4)  # fmt: skip
    body.add_geom(name="spoon_bowl", type=GEOM.mjGEOM_ELLIPSOID, size=[0.022, 0.018, 0.009],
                  pos=[0.07, 0, 0], rgba=[0.8, 0.8, 0.85, 1], mass=0.01, friction=_GRIPPY)  # fmt: skip
    body = _free_body(spec, "blue_ball")
    body.add_geom(name="blue_ball", type=GEOM.mjGEOM_SPHERE, size=[0.02, 0, 0], rgba=[0.1, 0.35, 0.9, 1],
                  mass=0.04, friction=[1, 0.02, 0.005], condim=6)  # fmt: skip
    body = _free_body(spec, "white_box")
    body.add_geom(name="white_box", type=GEOM.mjGEOM_BOX, size=[0.024, 0.018, 0.015],
                  rgba=[0.92, 0.9, 0.85, 1], mass=0.04, friction=_SLIPPERY)  # fmt: skip
    basket = spec.worldbody.add_body(name="basket", pos=[*BASKET, 0])
    walls = (
        ([0, 0, 0.003], [0.07, 0.06, 0.003]),
        ([0.067, 0, 0.025], [0.003, 0.06, 0.025]),
        ([-0.067, 0, 0.025], [0.003, 0.06, 0.025]),
        ([0, 0.057, 0.025], [0.07, 0.003, 0.025]),
        ([0, -0.057, 0.025], [0.07, 0.003, 0.025]),
    )
    for i, (pos, size) in enumerate(walls):
        basket.add_geom(
            name=f"basket_{i}", type=GEOM.mjGEOM_BOX, pos=pos, size=size, rgba=[0.7, 0.55, 0.35, 1]
        )


def _add_cabinet(spec: mujoco.MjSpec) -> None:
    half = CABINET_ANGLE / 2
    cabinet = spec.worldbody.add_body(
        name="cabinet",
        pos=[CABINET_RADIUS * np.cos(CABINET_ANGLE), CABINET_RADIUS * np.sin(CABINET_ANGLE), 0],
        quat=[np.cos(half), 0, 0, np.sin(half)],
    )
    shell = (
        ([0.03, 0, 0.005], [0.08, 0.08, 0.005]),
        ([0.03, 0, 0.095], [0.08, 0.08, 0.005]),
        ([0.03, 0.078, 0.05], [0.08, 0.004, 0.045]),
        ([0.03, -0.078, 0.05], [0.08, 0.004, 0.045]),
        ([0.107, 0, 0.05], [0.004, 0.08, 0.045]),
    )
    for i, (pos, size) in enumerate(shell):
        cabinet.add_geom(
            name=f"cabinet_{i}", type=GEOM.mjGEOM_BOX, pos=pos, size=size, rgba=[0.45, 0.3, 0.2, 1]
        )
    drawer = cabinet.add_body(name="drawer", pos=[0.03, 0, 0.05])
    drawer.add_joint(name="drawer", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[-1, 0, 0], range=[0, 0.13],
                     damping=3, frictionloss=0.3, limited=True)  # fmt: skip
    box = (
        ([-0.082, 0, 0], [0.004, 0.07, 0.036]),
        ([0, 0, -0.034], [0.078, 0.07, 0.003]),
        ([0, 0.066, -0.01], [0.078, 0.004, 0.025]),
        ([0, -0.066, -0.01], [0.078, 0.004, 0.025]),
    )
    for i, (pos, size) in enumerate(box):
        drawer.add_geom(name=f"drawer_{i}", type=GEOM.mjGEOM_BOX, pos=pos, size=size, mass=0.1,
                        rgba=[0.6, 0.45, 0.3, 1])  # fmt: skip
    drawer.add_geom(name="handle", type=GEOM.mjGEOM_BOX, pos=[-0.115, 0, 0], size=[0.006, 0.035, 0.008],
                    rgba=[0.2, 0.2, 0.2, 1], mass=0.03)  # fmt: skip
    for i, y in enumerate((-0.03, 0.03)):
        drawer.add_geom(name=f"handle_{i}", type=GEOM.mjGEOM_BOX, pos=[-0.1, y, 0],
                        size=[0.014, 0.004, 0.006], rgba=[0.2, 0.2, 0.2, 1], mass=0.01)  # fmt: skip


def _add_button(spec: mujoco.MjSpec) -> None:
    base = spec.worldbody.add_body(name="button_base", pos=[*BUTTON, 0])
    base.add_geom(name="button_base", type=GEOM.mjGEOM_CYLINDER, size=[0.035, 0.012, 0], pos=[0, 0, 0.012],
                  rgba=[0.3, 0.3, 0.3, 1], contype=0, conaffinity=0)  # fmt: skip
    button = base.add_body(name="button", pos=[0, 0, 0.032])
    button.add_joint(name="button", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 0, -1], range=[0, 0.012],
                     stiffness=150, damping=4, limited=True)  # fmt: skip
    button.add_geom(name="button", type=GEOM.mjGEOM_CYLINDER, size=[0.022, 0.008, 0],
                    rgba=[0.9, 0.1, 0.1, 1], mass=0.03, friction=_GRIPPY)  # fmt: skip
