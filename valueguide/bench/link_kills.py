"""Kills a server in the middle of an episode, and notes when the arm held and when it went on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from valueguide.execution.executor import Motion
from valueguide.testing.serve_process import Serve

#: Steps of an episode, half open, before one of which the server is killed.
_KILL_STEPS = (3, 16)


class Killer:
    """SIGKILL to `server` at a random moment of a random step; `watch` is told of every control period.

    planned_s: how long what was planned before the kill may still run; what moves later has a new answer.
    restart: starts another at the same port, called at once after the kill. `server` is then that one.
    A context: at its end nothing of it runs any more.
    """

    def __init__(
        self,
        server: Serve,
        rng: np.random.Generator,
        period_s: float,
        planned_s: float,
        restart: Callable[[str], Serve] | None,
    ) -> None:
        self.server = server
        self.step = int(rng.integers(*_KILL_STEPS))
        self._wait_s = float(rng.uniform(0, period_s))
        self._planned_s, self._restart = planned_s, restart
        self._thread = threading.Thread(target=self._kill, daemon=True, name="killer")
        self.killed_at = self.held_at = self.moved_at = self.served_at = math.nan

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def watch(self, number: int, motion: Motion | None) -> None:
        """For `linked`."""
        now = time.monotonic()
        if number == self.step:
            self._thread.start()
        if not now > self.killed_at:
            return
        if motion is None:
            self.held_at = now if math.isnan(self.held_at) else self.held_at
        elif now <= self.killed_at + self._planned_s:
            self.held_at = math.nan
        elif math.isnan(self.moved_at):
            self.moved_at = now

    def _kill(self) -> None:
        time.sleep(self._wait_s)
        self.server.process.kill()
        self.killed_at = time.monotonic()
        self.server.process.communicate()
        if self._restart is not None:
            self.server = self._restart(self.server.endpoint.rpartition(":")[2])
            self.served_at = time.monotonic()

    def facts(self, deadline_s: float, stretch: float) -> dict[str, Any]:
        """Seconds from the kill, None where it did not happen. deadline_s: the arm must hold within it.

        stretch: of the clock; `hold_s` and `deadline_s` are the robot's seconds, the others the computer's.
        """
        since = {
            name: _since(self.killed_at, at)
            for name, at in (
                ("hold_s", self.held_at),
                ("served_s", self.served_at),
                ("resume_s", self.moved_at),
            )
        }
        held = since["hold_s"] = None if since["hold_s"] is None else since["hold_s"] / stretch
        return {
            "kill_step": self.step,
            "killed": bool(self.killed_at > 0),
            **since,
            "held_in_time": held is not None and held <= deadline_s,
        }


def _since(start: float, at: float) -> float | None:
    return at - start if at >= start else None
