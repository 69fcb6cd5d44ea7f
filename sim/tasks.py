"""The nine tasks: how an episode starts, when it has succeeded or failed, and its true progress.

Success and failure both terminate an episode; running out of time only truncates it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.scene import NOVEL_OBJECTS, OBJECTS, TABLE_HIGH, TABLE_LOW
from sim.world import World

Array = NDArray[np.float64]
MAX_STEPS = 80
#: What `task_state` returns; "near" values saturate a few centimetres away, so that millimetres show.
TASK_STATE_NAMES = tuple(
    f"{what}.{field}" for what in ("grasp", "goal") for field in ("x", "y", "z", "near_x", "near_y", "near_z")
) + ("grasp.sin_yaw", "grasp.cos_yaw")
_NEAR = 0.03
#: Normal stacking peaks near 20 N; a hand pressed into the table passes 60 N.
FORCE_LIMIT = 80.0
REACH = 0.52
#: Free space around each object (m), so that open fingers fit between neighbours.
FINGER_CLEARANCE = 0.03
NEAR_PLATE_OFFSET = np.array([0.0, 0.088, 0.0])
_STILL = 0.05
_LIFT = 0.08


@dataclass(frozen=True)
class Task:
    """name: stable identifier; moved: the object to move, or None for drawer and button;
    goal: where it goes ("plate", "basket", "yellow_cube", "towel", "near_plate", "lifted",
    "drawer_open", "drawer_closed", "button"); release: how high above the goal it is let go (m)."""

    name: str
    moved: str | None
    goal: str
    release: float = 0.0

    @property
    def objects(self) -> tuple[str, ...]:
        """The movable objects that the task itself needs, the receiving one first."""
        receiving = {"plate": "plate", "near_plate": "plate", "yellow_cube": "yellow_cube"}.get(self.goal)
        return tuple(o for o in (receiving, self.moved) if o)


TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("carrot_on_plate", "carrot", "plate", 0.035),
        Task("spoon_on_towel", "spoon", "towel", 0.025),
        Task("stack_cubes", "green_cube", "yellow_cube", 0.041),
        Task("eggplant_in_basket", "eggplant", "basket", 0.060),
        Task("pick_can", "can", "lifted"),
        Task("can_near_plate", "can", "near_plate", 0.037),
        Task("open_drawer", None, "drawer_open"),
        Task("close_drawer", None, "drawer_closed"),
        Task("press_button", None, "button"),
    )
}


def set_up(world: World, task: Task, rng: np.random.Generator, extra: tuple[str, ...] = ()) -> None:
    """Draw an initial state: the task's objects, two distractors, and any `extra` objects that still fit."""
    world.clear()
    others = [n for n in OBJECTS if n not in task.objects and n not in ("plate", "spoon")]
    distractors = tuple(str(n) for n in rng.permutation(others)[:2])
    placed: list[tuple[str, Array]] = []
    for name in (*task.objects, *distractors, *extra):
        spot = _draw_place(name, task, placed, rng)
        if spot is not None:
            placed.append((name, spot[0]))
            world.place(name, *spot)
    if task.goal == "drawer_closed":
        world.data.joint("drawer").qpos[0] = rng.uniform(0.08, 0.12)
    world.settle()


def _draw_place(
    name: str, task: Task, placed: list[tuple[str, Array]], rng: np.random.Generator
) -> tuple[Array, float] | None:
    """A free spot (xy, yaw), or None when the table is too full for this object."""
    if name == "plate":
        return np.array([0.31, 0.0]) + rng.uniform(-0.015, 0.015, 2), 0.0
    if name == "spoon":
        return np.array([0.24, 0.06]) + rng.uniform(-0.02, 0.02, 2), float(rng.uniform(-0.5, 0.5))
    radius = {**OBJECTS, **NOVEL_OBJECTS}
    for _ in range(400):
        xy = np.array([rng.uniform(0.18, 0.35), rng.uniform(-0.08, 0.14)])
        if np.linalg.norm(xy) > 0.37:
            continue
        gaps = [np.linalg.norm(xy - other) - radius[n].radius - radius[name].radius for n, other in placed]
        if task.goal == "near_plate":
            # The can must start away from its goal, and nothing else may stand on it.
            goal = placed[0][1] + NEAR_PLATE_OFFSET[:2]
            gaps.append(np.linalg.norm(xy - goal) - (0.08 if name == "can" else 0.06 + radius[name].radius))
        if all(gap > FINGER_CLEARANCE for gap in gaps):
            return xy, float(rng.uniform(-0.6, 0.6))
    return None


def success(world: World, task: Task) -> bool:
    """True when the goal holds now: placed, released and at rest, where that applies."""
    simple: dict[str, Callable[[], bool]] = {
        "drawer_open": lambda: world.drawer > 0.08,
        "drawer_closed": lambda: world.drawer < 0.01,
        "button": lambda: world.button > 0.009,
        "lifted": lambda: world.position("can")[2] > OBJECTS["can"].rest_height + _LIFT,
    }
    if task.goal in simple:
        return bool(simple[task.goal]())
    assert task.moved is not None
    let_go = (
        world.arm.grip_target > 0.6
        or np.linalg.norm(world.arm.position() - world.position(task.moved)) > 0.05
    )
    return bool(let_go and world.speed(task.moved) < _STILL and at_goal(world, task))


def goal_position(world: World, task: Task) -> Array:
    """(3,) where the moved object should come to rest, before the release height is added."""
    if task.goal == "towel":
        return world.geom_position("towel")
    if task.goal == "near_plate":
        return world.position("plate") + NEAR_PLATE_OFFSET
    return world.position(task.goal)


def task_state(world: World, task: Task) -> NDArray[np.float32]:
    """Privileged and relative to the task, float32 (14,), metres in the base frame: see TASK_STATE_NAMES.

    From the fingertips to what they should touch, from there to the goal, and the yaw still to turn.
    """
    hand, cabinet = world.arm.position(), world.data.body("cabinet").xmat.reshape(3, 3)
    if task.moved is not None:
        touched, symmetry = world.position(task.moved), OBJECTS[task.moved].symmetry
        lifted = OBJECTS[task.moved].rest_height + _LIFT
        to_goal = (
            np.array([0.0, 0.0, lifted - touched[2]])
            if task.goal == "lifted"
            else goal_position(world, task) + [0, 0, task.release] - touched
        )
        yaw = 0.0 if symmetry == 0 else world.yaw_of(task.moved)
    elif task.goal == "button":
        touched, symmetry, yaw = world.position("button"), 0.0, 0.0
        to_goal = np.array([0.0, 0.0, world.button - 0.009])
    else:
        touched, symmetry = world.geom_position("handle"), np.pi
        yaw = float(np.arctan2(cabinet[1, 0], cabinet[0, 0]))
        wanted = 0.08 if task.goal == "drawer_open" else 0.0
        to_goal = -cabinet[:, 0] * (wanted - world.drawer)
    turn = yaw - world.arm.yaw()
    if symmetry:
        turn = (turn + symmetry / 2) % symmetry - symmetry / 2
    to_grasp = touched - hand
    parts = [
        to_grasp,
        np.tanh(to_grasp / _NEAR),
        to_goal,
        np.tanh(to_goal / _NEAR),
        [np.sin(turn), np.cos(turn)],
    ]
    return np.concatenate(parts).astype(np.float32)


def over_goal(world: World, task: Task) -> bool:
    """Whether the moved object is where it should go as seen from above; for tasks that put it somewhere."""
    assert task.moved is not None
    moved = world.position(task.moved)
    offset = (moved - goal_position(world, task))[:2]
    if task.goal == "basket":
        return bool(abs(offset[0]) < 0.065 and abs(offset[1]) < 0.055)
    if task.goal == "towel":
        return bool(abs(offset[0]) < 0.07 and abs(offset[1]) < 0.055)
    if task.goal == "near_plate":
        return float(np.linalg.norm((moved - world.position("plate"))[:2])) < 0.10
    return float(np.linalg.norm(offset)) < {"plate": 0.06, "yellow_cube": 0.018}[task.goal]


def at_goal(world: World, task: Task) -> bool:
    """Whether the moved object is where it should go, held or not; for tasks that put it somewhere."""
    assert task.moved is not None
    if not over_goal(world, task):
        return False
    height = float(world.position(task.moved)[2])
    if task.goal == "plate":
        return height > 0.015
    if task.goal == "basket":
        return height < 0.05
    if task.goal == "yellow_cube":
        return 0.025 < height - goal_position(world, task)[2] < 0.047
    if task.goal == "towel":
        return height < 0.03
    return abs(height - OBJECTS["can"].rest_height) < 0.01


def failure(world: World, task: Task) -> str | None:
    """Why the episode cannot succeed any more ("dropped", "out_of_reach", "force"), or None."""
    if world.arm.peak_force > FORCE_LIMIT:
        return "force"
    for name in task.objects:
        position = world.position(name)
        off_table = (position[:2] < TABLE_LOW).any() or (position[:2] > TABLE_HIGH).any()
        if off_table or position[2] < -0.01:
            return "dropped"
        if np.linalg.norm(position[:2]) > REACH and world.speed(name) < _STILL:
            return "out_of_reach"
    return None


def progress(world: World, task: Task) -> float:
    """True progress in [0, 1]: a smooth potential of the current state, 1 only at success."""
    if success(world, task):
        return 1.0
    if task.goal == "button":
        reach = _closeness(np.linalg.norm(world.arm.position() - world.position("button")), 0.35)
        return min(0.6 * reach + 0.4 * world.button / 0.009, 0.99)
    if task.goal in ("drawer_open", "drawer_closed"):
        reach = _closeness(np.linalg.norm(world.arm.position() - world.geom_position("handle")), 0.35)
        done = world.drawer / 0.08 if task.goal == "drawer_open" else 1 - world.drawer / 0.12
        return float(np.clip(0.4 * reach + 0.6 * max(done, 0.0), 0, 0.99))
    assert task.moved is not None
    moved = world.position(task.moved)
    reach = _closeness(np.linalg.norm(world.arm.position() - moved), 0.30)
    lift = float(np.clip((moved[2] - OBJECTS[task.moved].rest_height) / _LIFT, 0, 1))
    if task.goal == "lifted":
        return min(0.4 * reach + 0.6 * lift, 0.99)
    carried = _closeness(np.linalg.norm((moved - goal_position(world, task))[:2]), 0.35)
    return float(
        np.clip(0.3 * reach + 0.2 * lift + 0.5 * carried * max(lift, float(at_goal(world, task))), 0, 0.99)
    )


def _closeness(distance: float | np.floating, scale: float) -> float:
    return float(np.clip(1 - distance / scale, 0, 1))
