"""`FakePilot`: a `robots.remote.RemotePilot` without a server, whose silent periods are written down."""

from __future__ import annotations

from collections.abc import Callable, Container
from types import SimpleNamespace

import numpy as np

from valueguide.execution.executor import Motion
from valueguide.robots.remote import Planned
from valueguide.types import ActionChunk, Candidates, Decision, Observation


class FakePilot:
    """Moves by 0.1 towards the goal of `FakeReachEnv`, in chunks of `execute` steps.

    holds: periods without an answer yet. troubles: periods without one because the server is silent.
    start: the steps of each chunk that had passed when it came.
    """

    def __init__(
        self, holds: Container[int] = (), troubles: Container[int] = (), execute: int = 2, start: int = 0
    ) -> None:
        self.steerer = SimpleNamespace(policy=SimpleNamespace(version="p"), critic=None)
        self.on_planned: Callable[[Planned], None] = lambda planned: None
        self.trouble, self.seed, self.stopped = "", -1, False
        self.observed: list[Observation] = []
        self._holds, self._troubles, self._execute, self._start = holds, troubles, execute, start
        self._moved = 0

    def start(self, seed: int = 0) -> None:
        self.seed, self.stopped = seed, False

    def stop(self) -> None:
        self.stopped = True

    def step(self, observation: Observation) -> Motion | None:
        period = len(self.observed)
        self.observed.append(observation)
        self.trouble = "no answer in time" if period in self._troubles else ""
        if self.trouble or period in self._holds:
            return None
        position, goal = observation.state[:2]
        number, step = divmod(self._moved, self._execute)
        actions = np.full((self._start + self._execute, 1), np.clip(goal - position, -0.1, 0.1), np.float32)
        if step == 0:
            chunk = ActionChunk(actions, number, len(actions), observation.stamp_ns)
            candidates = Candidates(actions[None])
            self.on_planned(Planned(chunk, candidates, Decision(0, "argmax"), self._start, 0.05))
        self._moved += 1
        return Motion(actions[0], "policy", number, self._start + step)
