"""Labelled pictures for training a vision encoder: random moments of flawed episodes, freshly painted.

Every picture pair (front, wrist) comes with what the simulator knows: which objects are there, where
they are in the base frame and seen from the hand, their heading, the drawer and the button, and the
pixel of each centre. Appearance is redrawn for every picture from the training range.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.env import IMAGE_SIZE, TabletopEnv
from sim.experts import Expert, draw_flaws
from sim.render import CAMERAS, project
from sim.scene import OBJECTS
from sim.tasks import TASKS
from sim.world import World

#: Everything with a centre to point at: the movable objects, the drawer's handle, the button.
POINTS = (*OBJECTS, "handle", "button")
LABEL_SIZES = {
    "present": len(POINTS),
    "position": 3 * len(POINTS),
    "from_hand": 3 * len(POINTS),
    "heading": 2 * len(OBJECTS),
    "joints": 2,
    "pixel": 2 * len(POINTS) * len(CAMERAS),
}
_STEPS_BETWEEN = 3


def labels(world: World, size: int) -> dict[str, NDArray[np.float32]]:
    """What a picture pair shows. Keys and lengths: LABEL_SIZES.

    present: 1 or 0. position: metres, base frame. from_hand: metres, in the frame of the hand turned
    about the vertical. heading: sin and cos of the yaw times the shape's symmetry. joints: drawer
    and button, metres. pixel: centre in each camera as a fraction of the picture, NaN when out of view.
    """
    present = np.array([n in world.present or n in ("handle", "button") for n in POINTS], np.float32)
    position = np.array([_centre(world, n) for n in POINTS])
    hand, yaw = world.arm.position(), world.arm.yaw()
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    heading = []
    for name, obj in OBJECTS.items():
        angle = world.yaw_of(name) * 2 * np.pi / obj.symmetry if obj.symmetry else 0.0
        heading.append([np.sin(angle), np.cos(angle)])
    pixels = []
    for camera in CAMERAS:
        pixel = project(world.model, world.data, camera, position, size, size) / size
        pixel[(pixel < 0).any(1) | (pixel >= 1).any(1) | (present == 0)] = np.nan
        pixels.append(pixel)
    values = {
        "present": present,
        "position": position * present[:, None],
        "from_hand": (position - hand) @ turn.T * present[:, None],
        "heading": np.array(heading) * present[: len(OBJECTS), None],
        "joints": np.array([world.drawer, world.button]),
        "pixel": np.array(pixels),
    }
    return {k: np.asarray(v, np.float32).ravel() for k, v in values.items()}


def _centre(world: World, name: str) -> NDArray[np.float64]:
    return world.geom_position("handle") if name == "handle" else world.position(name)


def generate(out: Path, count: int, seed: int, worker: int = 0) -> None:
    """Write `count` picture pairs to `out/images_<worker>.npy` and labels to `out/labels_<worker>.npz`.

    images: uint8 (count, 2, H, W, 3), cameras in the order of CAMERAS.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, worker])
    images = np.lib.format.open_memmap(
        out / f"images_{worker}.npy", "w+", np.uint8, (count, len(CAMERAS), IMAGE_SIZE, IMAGE_SIZE, 3)
    )
    collected: list[dict[str, NDArray[np.float32]]] = []
    environments = {task: TabletopEnv(task, "images") for task in TASKS}
    for env in environments.values():
        env.set_render(False)
    while len(collected) < count:
        env = environments[str(rng.choice(list(TASKS)))]
        env.reset(seed=int(rng.integers(2**40)))
        expert = Expert(
            env.world, env.task, draw_flaws(0.2, env.task, env.world, rng), int(rng.integers(2**40))
        )
        wobble = rng.choice([0.0, 0.004, 0.012])
        done, step = False, 0
        while not done and len(collected) < count and not expert.finished:
            action = expert.action()
            action[:3] += rng.normal(0, wobble, 3).astype(np.float32)
            _, _, terminated, truncated, _ = env.step(action)
            done, step = terminated or truncated, step + 1
            if step % _STEPS_BETWEEN == 0:
                env.repaint(rng)
                pictures = env.pictures()
                images[len(collected)] = np.stack([pictures[c] for c in CAMERAS])
                collected.append(labels(env.world, IMAGE_SIZE))
    images.flush()
    arrays = {key: np.stack([c[key] for c in collected]) for key in LABEL_SIZES}
    np.savez(out / f"labels_{worker}.npz", **arrays)  # type: ignore[arg-type]
    for env in environments.values():
        env.close()
