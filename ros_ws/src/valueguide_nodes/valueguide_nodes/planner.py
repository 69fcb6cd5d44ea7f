"""The thread in which models run, so that a node goes on hearing and beating while they think."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError
from valueguide.execution.sync import StaleError
from valueguide.ros.observe import ObservationBuilder
from valueguide.types import Observation

_SWITCH_S = 0.0002


class Planner:
    """Runs `work(job)` for the newest job, and feeds it synchronised observations.

    `failed(error)` is called in this thread for an exception that `work` lets through.
    """

    def __init__(
        self,
        robot: RobotConfig,
        builder: ObservationBuilder,
        work: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._robot, self._builder = robot, builder
        self._work, self._failed = work, failed
        self._news = threading.Condition()
        self._jobs: deque[Any] = deque()
        self._running = True
        self.stale = ""
        # A model gives the interpreter lock away thousands of times in a decision; at the default of 5 ms it
        # would wait that long for it whenever a message is being received.
        sys.setswitchinterval(_SWITCH_S)
        self._thread = threading.Thread(target=self._loop, daemon=True, name="planner")
        self._thread.start()

    def push(self, role: str, message: Any, received_ns: int) -> None:
        """A message of an observation's part."""
        with self._news:
            self._builder.push(role, message, received_ns)
            self._news.notify()

    def submit(self, job: Any) -> None:
        """A new job; older ones that did not start are forgotten."""
        with self._news:
            self._jobs.clear()
            self._jobs.append(job)
            self._news.notify()

    def again(self, job: Any, after_s: float) -> None:
        """From `work`: the job once more after a while, unless a newer one has come or comes meanwhile."""
        with self._news:
            if self._running and not self._jobs:
                self._news.wait_for(lambda: self._jobs or not self._running, after_s)
            if self._running and not self._jobs:
                self._jobs.append(job)

    def observation(self, task: str, not_before: int) -> Observation | None:
        """Waits for an observation no older than not_before; None once a newer job makes it useless.

        While a source is missing or old, `stale` says which.
        """
        started = time.monotonic()
        while True:
            with self._news:
                if self._jobs or not self._running:
                    return None
                try:
                    observation = self._builder.observe(task, not_before=not_before)
                except StaleError as error:
                    if time.monotonic() - started > self._robot.sync.stale_s:
                        self.stale = str(error)
                    self._news.wait(0.05)
                    continue
                except DataError as error:
                    self.stale = str(error)
                    self._news.wait(0.05)
                    continue
            self.stale = ""
            return observation

    def latest(self, task: str) -> Observation | None:
        """The newest observation there is, or None."""
        with self._news:
            try:
                return self._builder.observe(task)
            except DataError:
                return None

    def close(self) -> None:
        """Ends the thread; returns at once when it is in the middle of a job."""
        with self._news:
            self._running = False
            self._jobs.clear()
            self._news.notify()
        self._thread.join(timeout=2.0)

    def _loop(self) -> None:
        while True:
            with self._news:
                while self._running and not self._jobs:
                    self._news.wait()
                if not self._running:
                    return
                job = self._jobs.popleft()
            try:
                self._work(job)
            except Exception as error:  # whatever a model throws must reach the node, not die with the thread
                self._failed(error)
