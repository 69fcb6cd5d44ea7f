"""Scripted experts, and the flaws that make them fail the way people do.

An expert is a list of phases (waypoints and waits) run against the true state. A `Flaws` value,
drawn once per episode by the skill dial, bends the phases: misaligned grasps and places, early
release, the wrong object, detours, pauses, a shy pull or press.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.arm import ACTION_HIGH, YAW_LIMIT
from sim.scene import OBJECTS
from sim.tasks import Task, goal_position
from sim.world import World

Array = NDArray[np.float64]
_FAST, _SLOW = float(ACTION_HIGH[0]), 0.02
_MAX_YAW_STEP = float(ACTION_HIGH[3])
_HOVER, _CARRY_HEIGHT = 0.10, 0.17
#: A phase that cannot reach its waypoint gives up after this many steps.
_PATIENCE = 25
#: How long a demonstrator waits for the result before ending an episode that did not succeed.
_IDLE_STEPS, _PUSH_LIMIT = 4, 18
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Flaws:
    """One episode's imperfections; the default is a flawless expert.

    grasp_offset, place_offset: (2,) metres, added to the waypoint in the table plane.
    grasp_height: metres too high. yaw_offset: radians.
    release_at: fraction of the way to the goal at which the hand opens, 1.0 for never early.
    wrong_object: name of the object taken instead, or None.
    detour: (2,) metres, a needless waypoint before the grasp, or None.
    pause: (phase, steps) of standing still, or None.
    short: fraction of a drawer pull or push, or of a button press, that is done.
    retry: look again and try once more when the hand comes up empty.
    noise: standard deviation of the action noise in metres per step.
    """

    grasp_offset: tuple[float, float] = (0.0, 0.0)
    place_offset: tuple[float, float] = (0.0, 0.0)
    grasp_height: float = 0.0
    yaw_offset: float = 0.0
    release_at: float = 1.0
    wrong_object: str | None = None
    detour: tuple[float, float] | None = None
    pause: tuple[int, int] | None = None
    short: float = 1.0
    retry: bool = True
    noise: float = 0.0
    kinds: tuple[str, ...] = field(default=())


#: Every kind of flaw, and whether a task can have it.
KINDS: dict[str, Callable[[Task], bool]] = {
    "grasp": lambda task: True,
    "place": lambda task: task.moved is not None and task.goal != "lifted",
    "height": lambda task: task.goal != "button",
    "yaw": lambda task: task.goal != "button",
    "release": lambda task: task.moved is not None and task.goal != "lifted",
    "object": lambda task: task.moved is not None,
    "detour": lambda task: True,
    "pause": lambda task: True,
    "short": lambda task: task.moved is None,
}


def draw_flaws(skill: float, task: Task, world: World, rng: np.random.Generator, only: str = "") -> Flaws:
    """Draw an episode's flaws. skill 1.0: none; 0.0: nearly every episode has one or two serious ones.

    only: the one of KINDS that every episode has instead, with no second try.
    """
    if skill >= 1.0 and not only:
        return Flaws()
    lack = 1.0 - skill
    kinds: list[str] = []

    def happens(kind: str, probability: float) -> bool:
        drawn = bool(rng.random() < probability * lack)
        hit = kind == only if only else drawn
        kinds.extend([kind] * hit)
        return hit

    def offset(low: float, high: float) -> tuple[float, float]:
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
        return float(radius * np.cos(angle)), float(radius * np.sin(angle))

    # A handle and a button forgive less than an object between two fingers does.
    scale = 1.0 if task.moved else 0.5
    others = [n for n in world.present if n not in task.objects and n in OBJECTS]
    return Flaws(
        grasp_offset=offset(0.018 * scale, 0.05 * scale) if happens("grasp", 0.45) else (0.0, 0.0),
        place_offset=offset(0.03, 0.09) if happens("place", 0.35) else (0.0, 0.0),
        grasp_height=float(scale * rng.uniform(0.02, 0.05)) if happens("height", 0.2) else 0.0,
        yaw_offset=float(scale * rng.uniform(0.5, 1.1) * rng.choice([-1, 1])) if happens("yaw", 0.2) else 0.0,
        release_at=float(rng.uniform(0.2, 0.8)) if happens("release", 0.25) else 1.0,
        wrong_object=str(rng.choice(others)) if others and task.moved and happens("object", 0.15) else None,
        detour=offset(0.06, 0.14) if happens("detour", 0.3) else None,
        pause=(int(rng.integers(0, 6)), int(rng.integers(4, 12))) if happens("pause", 0.3) else None,
        short=float(rng.uniform(0.2, 0.7)) if happens("short", 0.45) else 1.0,
        retry=bool(rng.random() < 0.3 + 0.7 * skill) and not only,
        noise=0.003 * lack,
        kinds=tuple(kinds),
    )


class Expert:
    """Calls `action()` once per control step, for one episode of one task."""

    #: How far the hand opens to reach around an object (1: all the way).
    _opening = 1.0

    def __init__(self, world: World, task: Task, flaws: Flaws | None = None, seed: int = 0) -> None:
        self.world, self.task, self.flaws = world, task, flaws or Flaws()
        self._rng = np.random.default_rng(seed)
        self._phase, self._count, self._paused, self._tries, self._pushed = 0, 0, 0, 0, 0
        self._lift_start: Array = world.arm.position()
        self._carry_start: Array | None = None
        self._target_object = self.flaws.wrong_object or task.moved
        self._phases = self._plan()

    def action(self) -> NDArray[np.float32]:
        """The next action, float32 (5,); see `sim.arm`."""
        if self.flaws.pause and self._phase == self.flaws.pause[0] and self._paused < self.flaws.pause[1]:
            self._paused += 1
            return np.array([0, 0, 0, 0, self.world.arm.grip_target], np.float32)
        action = self._phases[min(self._phase, len(self._phases) - 1)]()
        action[:3] += self._rng.normal(0, self.flaws.noise, 3)
        return action.astype(np.float32)

    @property
    def finished(self) -> bool:
        """The plan is over (and a few steps have passed): the demonstrator lets go of the controls."""
        return self._phase >= len(self._phases) + _IDLE_STEPS or self._pushed > _PUSH_LIMIT

    # -- building blocks -----------------------------------------------------------------------

    def _go(
        self,
        target: Array,
        yaw: float | None = None,
        grip: float = 1.0,
        tol: float = 0.008,
        speed: float = _FAST,
    ) -> Array:
        arm = self.world.arm
        offset = np.asarray(target) - arm.target
        turn = 0.0 if yaw is None else yaw - arm.yaw_target
        arrived = np.linalg.norm(target - arm.position()) < tol and abs(turn) < 0.05
        self._count += 1
        if arrived or self._count > _PATIENCE:
            self._next()
        offset *= min(1.0, speed / max(float(np.linalg.norm(offset)), 1e-9))
        return np.array([*offset, np.clip(turn, -_MAX_YAW_STEP, _MAX_YAW_STEP), grip])

    def _wait(self, grip: float, steps: int) -> Array:
        self._count += 1
        if self._count >= steps:
            self._next()
        return np.array([0, 0, 0, 0, grip], float)

    def _push(self, direction: Array, grip: float, steps: float) -> Array:
        self._pushed += 1
        if self._pushed > steps:
            return np.array([0, 0, 0, 0, grip], float)
        return np.array([*direction, 0, grip])

    def _next(self) -> None:
        self._phase, self._count = self._phase + 1, 0

    # -- plans -----------------------------------------------------------------------------------

    def _plan(self) -> list[Callable[[], Array]]:
        if self.task.goal == "button":
            return self._plan_button()
        if self.task.moved is None:
            return self._plan_drawer()
        return self._plan_pick() + ([] if self.task.goal == "lifted" else self._plan_place())

    def _plan_button(self) -> list[Callable[[], Array]]:
        shift = np.array([*self.flaws.grasp_offset, 0.0])
        depth = 0.06 - 0.08 * self.flaws.short

        def above() -> Array:
            return self._go(self.world.position("button") + shift + [0, 0, 0.06], 0.0, grip=0.0)

        def press() -> Array:
            return self._go(
                self.world.position("button") + shift + [0, 0, depth], 0.0, 0.0, tol=0.0, speed=_SLOW
            )

        return [*self._detour(), above, press]

    def _plan_drawer(self) -> list[Callable[[], Array]]:
        world = self.world
        cabinet = world.data.body("cabinet").xmat.reshape(3, 3)
        out = -cabinet[:, 0]
        yaw = float(np.arctan2(cabinet[1, 0], cabinet[0, 0])) + self.flaws.yaw_offset
        shift = np.array([*self.flaws.grasp_offset, self.flaws.grasp_height])

        def handle() -> Array:
            return world.geom_position("handle") + shift

        if self.task.goal == "drawer_open":
            return [
                *self._detour(),
                lambda: self._go(handle() + 0.05 * out + 0.10 * _UP, yaw, tol=0.02),
                lambda: self._go(handle() + 0.10 * _UP, yaw, tol=0.015),
                lambda: self._go(handle() + 0.004 * _UP, yaw, tol=0.012, speed=_SLOW),
                lambda: self._wait(0.0, 4),
                lambda: self._push(_SLOW * out, 0.0, 99 if self.flaws.short == 1.0 else 6 * self.flaws.short),
            ]
        return [
            *self._detour(),
            lambda: self._go(handle() + 0.06 * out + 0.10 * _UP, yaw, grip=0.0, tol=0.02),
            lambda: self._go(handle() + 0.05 * out + 0.005 * _UP, yaw, grip=0.0, tol=0.015),
            lambda: self._push(-_SLOW * out, 0.0, 99 if self.flaws.short == 1.0 else 8 * self.flaws.short),
        ]

    def _plan_pick(self) -> list[Callable[[], Array]]:
        world, flaws = self.world, self.flaws
        name = self._target_object
        assert name is not None

        def grasp_yaw() -> float:
            yaw = self._grasp_yaw(name) + (flaws.yaw_offset if self._tries == 0 else 0.0)
            return float(np.clip(yaw, -YAW_LIMIT, YAW_LIMIT))

        def grasp_point() -> Array:
            bent = self._tries == 0
            shift = np.array([*flaws.grasp_offset, flaws.grasp_height]) * bent
            point = world.position(name) + shift
            return np.array([point[0], point[1], max(point[2], 0.013)])

        def lift() -> Array:
            position = world.arm.target
            if self._count > 4 and flaws.retry and self._tries < 2 and not self._holding(name):
                self._phase, self._count, self._tries = 0, 0, self._tries + 1
                return np.array([0, 0, 0.02, 0, 1.0])
            return self._go(np.array([position[0], position[1], _CARRY_HEIGHT]), None, grip=0.0, tol=0.015)

        return [
            *self._detour(),
            lambda: self._go(grasp_point() + _HOVER * _UP, grasp_yaw(), self._opening, tol=0.015),
            lambda: self._go(grasp_point(), grasp_yaw(), self._opening, tol=0.007),
            lambda: self._wait(0.0, 4),
            lift,
        ]

    def _plan_place(self) -> list[Callable[[], Array]]:
        world, flaws, name = self.world, self.flaws, self._target_object
        assert name is not None

        def goal() -> Array:
            return goal_position(world, self.task) + [*flaws.place_offset, self.task.release]

        def carry() -> Array:
            if self._carry_start is None:
                self._carry_start = world.arm.position()
            hand, start = world.arm.position(), self._carry_start
            whole = max(float(np.linalg.norm((goal() - start)[:2])), 1e-6)
            if flaws.release_at < 1.0 and np.linalg.norm((hand - start)[:2]) / whole > flaws.release_at:
                self._phase += 2  # skip the descent: the hand opens here, in mid air
                self._count = 0
                return np.array([0, 0, 0, 0, 1.0])
            return self._go(goal() + _HOVER * _UP, None, grip=0.0, tol=0.012)

        def descend() -> Array:
            hanging = (world.arm.position() - world.position(name)) * _UP
            return self._go(goal() + np.clip(hanging, -0.03, 0.06), None, grip=0.0, tol=0.008, speed=_SLOW)

        def retreat() -> Array:
            position = world.arm.target
            return self._go(np.array([position[0], position[1], 0.20]), None, tol=0.02)

        return [carry, descend, lambda: self._wait(1.0, 4), retreat]

    def _grasp_yaw(self, name: str) -> float:
        """The turn nearest to zero at which the fingers fit around an object."""
        period = OBJECTS[name].symmetry
        return 0.0 if period == 0 else (self.world.yaw_of(name) + period / 2) % period - period / 2

    def _detour(self) -> list[Callable[[], Array]]:
        if self.flaws.detour is None:
            return []
        waypoint = np.array([0.25, 0.0, 0.18]) + [*self.flaws.detour, 0.0]
        return [lambda: self._go(waypoint, None, tol=0.02)]

    def _holding(self, name: str) -> bool:
        return bool(np.linalg.norm(self.world.arm.position() - self.world.position(name)) < 0.05)
