"""An expert that can begin anywhere: it plans from the state that it finds, and again when the plan failed.

`sim.experts.Expert` plans a whole episode from its start. Whoever takes over in the middle finds the object
in the hand already, the drawer half open, the hand closed on nothing or on the wrong thing, or low between
objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.arm import YAW_LIMIT
from sim.experts import Expert, Flaws
from sim.scene import GRIPPER_OPEN, NOVEL_OBJECTS, OBJECTS
from sim.tasks import Task
from sim.world import World

Array = NDArray[np.float64]
_UP = np.array([0.0, 0.0, 1.0])
#: From above _LOW the hand passes over what stands on the table; below it rises to _SAFE first (m).
_LOW, _SAFE = 0.10, 0.13
#: An object is held securely when it hangs this far over where it rests (m).
_LIFTED = 0.04
_CARRY = 0.16
#: A hand told to open less than this is closing: it opens wider around the thinnest object.
_CLOSED = 0.3
_SLOW = 0.02
#: A hand that closes for this many steps and holds nothing has missed.
_MISSED = 6
#: A pull or push that has not done it after this many steps has slipped.
_PUSH_STEPS = 16
_RELEASE_STEPS = 2
#: A waypoint that the hand has not moved towards for this many steps (by so many metres) is blocked.
_BLOCKED_STEPS, _BLOCKED = 6, 0.004
#: How far beyond an object's side each finger opens, from wide to narrow (m): with no room, less will do.
_FITS = (0.03, 0.018, 0.011)
#: A finger takes this much room, across and to each side along (m).
_FINGER = (0.014, 0.010)
#: Turns at which something round is grasped where its neighbours leave no room (rad).
_TURNS = (0.0, -0.5, 0.5, -1.0, 1.0)
#: Open just wider than the handle: closed on it at full speed, the fingers hit its ends like a hammer.
_AROUND_HANDLE = 0.7


class Recovery(Expert):
    """Drives a task from any state, one `action()` a control step, for as long as it is asked.

    tremor: standard deviation of the action noise in metres per step. seed: of that noise.
    stage: "reach" (get hold of the object or handle, get over the button or in front of the drawer), then
    "finish" (carry and place, pull, push, press).
    """

    def __init__(self, world: World, task: Task, tremor: float = 0.0, seed: int = 0) -> None:
        self.stage = "reach"
        self._missed, self._turn = 0, 0.0
        self._path: deque[Array] = deque(maxlen=_BLOCKED_STEPS)
        # Trying again is planned anew here, from where things are then.
        super().__init__(world, task, Flaws(retry=False, noise=tremor), seed)

    @property
    def finished(self) -> bool:
        """Never: what did not work is tried again."""
        return False

    def action(self) -> NDArray[np.float32]:
        """The next action, float32 (5,); see `sim.arm`."""
        self._missed = self._missed + 1 if self._empty() else 0
        self._path.append(self.world.arm.position())
        over = self._phase >= len(self._phases) or self._pushed > _PUSH_STEPS
        if over or self._blocked() or self._missed > _MISSED:
            self._phase, self._count, self._pushed, self._missed = 0, 0, 0, 0
            self._phases = self._plan()
        elif self.ready():
            self.stage = "finish"
        return super().action()

    def ready(self) -> bool:
        """The hand has what it needs: it holds the object or handle, or is aligned with what it will push."""
        if self.task.goal == "drawer_closed":
            return self._before_handle()
        if self.task.goal == "button":
            offset = self.world.arm.position() - self.world.position("button")
            return bool(np.linalg.norm(offset[:2]) < 0.012 and 0.0 < offset[2] < 0.09)
        return self._closing() and self.world.gripped() == (self.task.moved or "drawer")

    def secure(self) -> bool:
        """`ready`, and an object hangs free of the table."""
        moved = self.task.moved
        free = moved is None or self.world.position(moved)[2] > OBJECTS[moved].rest_height + _LIFTED
        return self.ready() and bool(free)

    def _closing(self) -> bool:
        return self.world.arm.grip_target < _CLOSED

    def _empty(self) -> bool:
        """The hand should hold the object or the handle, and holds nothing."""
        holds = self.task.goal not in ("button", "drawer_closed")
        return holds and self._closing() and self.world.gripped() is None

    def _blocked(self) -> bool:
        if self._count < _BLOCKED_STEPS:
            return False
        return bool(np.ptp(np.array(self._path), axis=0).max() < _BLOCKED)

    def _before_handle(self) -> bool:
        """The hand stands in front of the handle, low enough to push it."""
        out = -self.world.data.body("cabinet").xmat.reshape(3, 3)[:, 0]
        offset = self.world.arm.position() - self.world.geom_position("handle")
        ahead = float(offset @ out)
        sideways = float(np.linalg.norm((offset - ahead * out)[:2]))
        return 0.0 < ahead < 0.08 and sideways < 0.02 and abs(offset[2]) < 0.02

    # -- plans -----------------------------------------------------------------------------------

    def _plan(self) -> list[Callable[[], Array]]:
        whole = super()._plan()
        if not self.ready():
            self.stage = "reach"
            self._choose_grasp()
            return [*self._clear(), *whole]
        self.stage = "finish"
        if self.task.moved is None or self.task.goal == "lifted":
            return whole[-1:]
        return [self._raise, *self._plan_place()]

    def _choose_grasp(self) -> None:
        """The turn and opening at which the fingers come down beside the object and on nothing else."""
        name = self.task.moved
        if name is None:
            return
        period, natural = OBJECTS[name].symmetry, super()._grasp_yaw(name)
        turns = _TURNS if period == 0 else (0.0, period if natural < 0 else -period)
        # Across the arm's reach of turns no grasp fits exactly: `_go` turns as far as it can.
        reachable = [turn for turn in turns if abs(natural + turn) <= YAW_LIMIT] or [0.0]
        half = self.world.half_size(name)[0]
        choices = [
            (self._in_the_way(name, natural + turn, half + fit), i, j, turn, (half + fit) / GRIPPER_OPEN)
            for i, turn in enumerate(reachable)
            for j, fit in enumerate(_FITS)
        ]
        *_, self._turn, opening = min(choices)
        self._opening = min(opening, 1.0)

    def _in_the_way(self, name: str, yaw: float, opening: float) -> int:
        """How much of the fingers' place, at `opening` metres to each side of the object, is taken."""
        along, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        opening = min(opening, GRIPPER_OPEN)
        spots = [
            side * (opening + share * _FINGER[0]) * across + shift * _FINGER[1] * along
            for side in (-1, 1)
            for share in (0.0, 0.5, 1.0)
            for shift in (-1, 0, 1)
        ]
        return self.world.obstacles(self.world.position(name)[:2] + np.array(spots), name)

    def _grasp_yaw(self, name: str) -> float:
        return super()._grasp_yaw(name) + self._turn

    def _plan_drawer(self) -> list[Callable[[], Array]]:
        whole = super()._plan_drawer()
        if self.task.goal != "drawer_open":
            return whole
        world, cabinet = self.world, self.world.data.body("cabinet").xmat.reshape(3, 3)
        yaw = float(np.arctan2(cabinet[1, 0], cabinet[0, 0]))
        return [
            *whole[:2],
            lambda: self._go(world.geom_position("handle"), yaw, tol=0.007, speed=_SLOW),
            lambda: self._wait(_AROUND_HANDLE, 2),
            *whole[3:],
        ]

    def _raise(self) -> Array:
        """With the object in the hand: up, before going anywhere."""
        position = self.world.arm.target
        return self._go(np.array([*position[:2], max(position[2], _CARRY)]), None, grip=0.0, tol=0.02)

    def _clear(self) -> list[Callable[[], Array]]:
        """Put down and let go of whatever is held, then up, so that nothing is swept aside on the way."""
        arm, held, known = self.world.arm, self.world.gripped(), {**OBJECTS, **NOVEL_OBJECTS}
        top = arm.position()
        phases: list[Callable[[], Array]] = []
        if held in known:
            down = top - (self.world.position(held)[2] - known[held].rest_height) * _UP
            phases.append(lambda: self._go(down, None, grip=0.0, tol=0.012))
        if held is not None:
            phases.append(lambda: self._wait(1.0, _RELEASE_STEPS))
        if held is not None or top[2] < _LOW:
            top[2] = max(float(top[2]), _SAFE)
            phases.append(lambda: self._go(top, None, tol=0.02))
        return phases
