"""What a person who watches sees coming: signs in the true state that an episode is about to fail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.arm import CONTROL_HZ
from sim.scene import GRIPPER_OPEN, OBJECTS, TABLE_HIGH, TABLE_LOW
from sim.tasks import FORCE_LIMIT, REACH, Task, at_goal, goal_position, over_goal, progress, success
from sim.world import World

Array = NDArray[np.float64]
#: A gain of true progress smaller than this is none.
_GAIN = 0.02
#: A hand that is closed for this many steps and holds nothing is not going to.
_EMPTY_STEPS = 6
#: An object that nobody holds was pushed when it has moved this far while the hand is beside it (m).
_PUSHED, _BESIDE = 0.03, 0.10
#: An object was picked up when it hangs this far over where it rests (m).
_PICKED = 0.03
#: How far ahead a person sees where things are going.
_LOOK_AHEAD_S = 0.5
_EDGE = 0.03
#: An open hand that presses this hard stands on something (N).
_HARD = 0.45 * FORCE_LIMIT
_FALLING = -0.05
#: Within this distance to each side of its middle an open hand hits what is under it (m).
_HAND_WIDTH = 0.06
#: A held object that sinks below the first of these heights over where it should be let go is being put down;
#: below the second also while the hand stands still (m).
_SINKS, _LOW = 0.09, 0.03
#: Steps that a person needs from a state where the hand holds nothing yet, and from one where it does.
_NEED = {"lifted": (24, 8), "drawer_open": (34, 10), "drawer_closed": (26, 10), "button": (24, 8)}
_NEED_TO_PLACE = (46, 24)


class Dangers:
    """Looks at the world once before every control step while the policy drives.

    max_steps: of the episode. patience: steps without a gain of true progress before the arm counts as stuck.
    """

    def __init__(self, world: World, task: Task, max_steps: int, patience: int = 14) -> None:
        self._world, self._task, self._max_steps, self._patience = world, task, max_steps, patience
        takes_hold = task.goal not in ("button", "drawer_closed")
        self._ours = (task.moved or "drawer") if takes_hold else None
        self.begin(0)

    def begin(self, step: int) -> None:
        """The policy drives from `step` on: what was before is forgiven."""
        self._best, self._best_step, self._empty, self._picked = 0.0, step, 0, False
        self._rest = {name: self._world.position(name) for name in self._task.objects}
        self._hand = self._world.arm.position()

    def spare(self, step: int) -> int:
        """Steps left beyond what a person would need to finish from here."""
        holds = self._ours is not None and self._world.gripped() == self._ours
        return self._max_steps - step - _NEED.get(self._task.goal, _NEED_TO_PLACE)[int(holds)]

    def look(self, step: int) -> str:
        """Why the episode is about to fail at `step`, or "" when nothing is to be feared.

        "force": an open hand presses hard. "edge": an object is leaving the table or the arm's reach.
        "wrong_object": held. "dropped": away from the goal. "misplaced": about to be put down away from it.
        "misaligned": the open hand comes down where a finger lands on the object or both miss it. "pushed":
        the object, by a hand that does not hold it. "empty": the hand closed on nothing. "stuck": no
        progress. "late": a person needs all the time that is left.
        """
        world, task, ours = self._world, self._task, self._ours
        hand, held, now = world.arm.position(), world.gripped(), progress(world, task)
        motion, self._hand = (hand - self._hand) * CONTROL_HZ, hand
        if success(world, task):
            return ""
        if now > self._best + _GAIN:
            self._best, self._best_step = now, step
        holds = held is not None and held == ours
        closing = world.arm.grip_target < 0.5
        self._empty = self._empty + 1 if ours and closing and held is None else 0
        if holds and task.moved and world.position(task.moved)[2] > OBJECTS[task.moved].rest_height + _PICKED:
            self._picked = True
        placed = task.goal != "lifted" and task.moved is not None and at_goal(world, task)
        signs = {
            "force": world.arm.peak_force > _HARD and held is None and not closing,
            "edge": any(self._leaving(name) for name in task.objects),
            "wrong_object": held not in (None, ours, "drawer" if task.goal == "drawer_closed" else None),
            "dropped": self._picked and not holds and not placed,
            "misplaced": self._picked and holds and self._misplaced(motion),
            "misaligned": held is None and not closing and self._misaligned(hand, motion),
            "pushed": not self._picked and not holds and self._pushed(hand),
            "empty": self._empty > _EMPTY_STEPS,
            "stuck": step - self._best_step >= self._patience,
            "late": self.spare(step) < 0,
        }
        return next((name for name, seen in signs.items() if seen), "")

    def _leaving(self, name: str) -> bool:
        position, velocity = self._world.position(name), self._world.velocity(name)
        ahead = (position + _LOOK_AHEAD_S * velocity)[:2]
        off = (ahead < TABLE_LOW + _EDGE).any() or (ahead > TABLE_HIGH - _EDGE).any()
        return bool(off or np.linalg.norm(ahead) > REACH)

    def _misplaced(self, motion: Array) -> bool:
        task = self._task
        if task.goal == "lifted" or task.moved is None or over_goal(self._world, task):
            return False
        height = self._world.position(task.moved)[2] - goal_position(self._world, task)[2] - task.release
        return bool(height < (_SINKS if motion[2] < _FALLING else _LOW))

    def _misaligned(self, hand: Array, motion: Array) -> bool:
        """Where will the fingers be when they are as low as the object's upper end?"""
        world, name = self._world, self._task.moved
        if name is None:
            return False
        target = world.position(name)
        above = float(hand[2] - target[2] - OBJECTS[name].rest_height)
        seconds = above / -motion[2] if above > 0 and motion[2] < _FALLING else 0.0
        if above > 0.01 and not 0.0 < seconds < _LOOK_AHEAD_S:
            return False
        yaw, offset = world.arm.yaw(), (hand + seconds * motion - target)[:2]
        across = abs(float(offset @ [-np.sin(yaw), np.cos(yaw)]))
        along = abs(float(offset @ [np.cos(yaw), np.sin(yaw)]))
        wide, long = world.half_size(name)
        if max(across, along - long) > _HAND_WIDTH:
            return False  # somewhere else altogether
        return across > GRIPPER_OPEN * world.arm.opening() - wide or along > long

    def _pushed(self, hand: Array) -> bool:
        """What rolls away by itself was not pushed."""
        return any(
            np.linalg.norm((self._world.position(name) - rest)[:2]) > _PUSHED
            and np.linalg.norm(self._world.position(name) - hand) < _BESIDE
            for name, rest in self._rest.items()
        )
