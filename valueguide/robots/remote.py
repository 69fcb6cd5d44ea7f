"""`RemotePilot`: control steps for a robot without ROS, from chunks that a server is asked for ahead of time.

Call `step` once a control period; it never waits. While a chunk runs the next one is fetched, with the
actions that will have run by then in front of every candidate. Without an answer in time it says hold, and
asks anew with what the robot sees then. So it does when what was planned is older than an answer may be, by
the link's `timeout_s`, and a chunk takes to run: a process that stood still does not finish its old chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from valueguide.errors import DataError, LinkError
from valueguide.execution.executor import ChunkExecutor, ExecutorSettings, Motion, Request
from valueguide.transport.pending import Pending
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import ActionChunk, Candidates, Decision, Float32, Observation


@dataclass(frozen=True)
class Planned:
    """What was decided for one chunk: for a log.

    start: the first step of the chunk that may run; those before it were committed when it was asked for.
    round_trip_s: from the question to the answer's arrival. used: False when it came to nothing, such as
    because all its steps had passed.
    """

    chunk: ActionChunk
    candidates: Candidates
    decision: Decision
    start: int = 0
    round_trip_s: float = 0.0
    used: bool = True

    @property
    def chunk_id(self) -> int:
        return self.chunk.chunk_id


@dataclass(frozen=True)
class _Asked:
    pending: Pending
    request: Request
    at: float


class RemotePilot:
    """See the module. absolute: actions are positions. seed: of all decisions of an episode.

    increments: float32 (2, A), limits of the actions that add up, from `execution.splice.increments`. Needed
    with `prefetch` for all but positions: without it what a chunk's passed steps were to correct stays wrong.

    `planned` is the last decision that came, `trouble` why the last question had no answer, "" if it had.
    `executor` counts steps, holds and late chunks. on_planned: called in `step` with each decision that came.
    """

    def __init__(
        self,
        steerer: RemoteSteerer,
        settings: ExecutorSettings,
        *,
        absolute: bool = False,
        increments: Float32 | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_planned: Callable[[Planned], None] = lambda planned: None,
    ) -> None:
        self.steerer, self.executor = steerer, ChunkExecutor(settings)
        self._absolute, self._increments, self._clock = absolute, increments, clock
        self.on_planned = on_planned
        self._asked: _Asked | None = None
        self._asked_at: dict[int, float] = {}
        self._seed, self._decisions = 0, 0
        self.planned: Planned | None = None
        self.trouble = ""

    def start(self, seed: int = 0) -> None:
        """A new episode."""
        self.steerer.reset()
        self._asked, self._seed, self._decisions = None, seed, 0
        self._asked_at = {}
        self.executor.start()

    def stop(self) -> None:
        """End of the episode: an answer under way is dropped."""
        self._asked = None
        self.executor.finish()

    def step(self, observation: Observation) -> Motion | None:
        """What to send in this control period; None: hold the measured pose."""
        self.steerer.observe(observation)
        now = self._clock()
        self._collect(now)
        self._drop_what_is_too_old(now)
        motion, request = self.executor.tick(now)
        if request is not None:
            noise = int(np.random.default_rng([self._seed, self._decisions]).integers(2**31))
            self._decisions += 1
            pending = self.steerer.ask(
                noise,
                committed=request.committed,
                absolute=self._absolute,
                increments=self._increments,
            )
            self._asked = _Asked(pending, request, now)
        return motion

    def _drop_what_is_too_old(self, now: float) -> None:
        """Where this process stood still, or was slow, the plan is for an arm and a scene of before.

        As old as an action may be: answered just before the deadline, and the last of its chunk.
        """
        settings, chunk = self.executor.settings, self.executor.next_chunk
        oldest = self.steerer.link.settings.timeout_s + settings.execute * settings.period_s
        if chunk is not None and now - self._asked_at[chunk] > oldest:
            self._asked = None
            self.executor.refused()

    def _collect(self, now: float) -> None:
        if self._asked is None or not self._asked.pending.done:
            return
        asked, self._asked = self._asked, None
        try:
            chunk, candidates, decision = self.steerer.take(asked.pending)
        except (LinkError, DataError) as error:
            self.trouble = str(error)
            self.executor.retry()
            return
        self.trouble = ""
        start = len(asked.request.committed)
        used = self.executor.on_chunk(chunk, asked.request.request_id, start, now)
        if used:
            self._asked_at[chunk.chunk_id] = asked.at
            first = self.executor.next_chunk
            self._asked_at = {n: at for n, at in self._asked_at.items() if first is not None and n >= first}
        took = self.steerer.timing.total_s
        self.planned = Planned(chunk, candidates, decision, start, took, used)
        self.on_planned(self.planned)
