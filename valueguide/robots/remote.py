"""`RemotePilot`: control steps for a robot without ROS, from chunks that a server is asked for ahead of time.

Call `step` once a control period; it never waits. While a chunk runs the next one is fetched, with the
actions that will have run by then in front of every candidate. Without an answer in time it says hold, and
asks anew with what the robot sees then.
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
        self._seed, self._decisions = 0, 0
        self.planned: Planned | None = None
        self.trouble = ""

    def start(self, seed: int = 0) -> None:
        """A new episode."""
        self.steerer.reset()
        self._asked, self._seed, self._decisions = None, seed, 0
        self.executor.start()

    def stop(self) -> None:
        """End of the episode: an answer under way is dropped."""
        self._asked = None
        self.executor.finish()

    def step(self, observation: Observation) -> Motion | None:
        """What to send in this control period; None: hold the measured pose."""
        self.steerer.observe(observation)
        self._collect()
        motion, request = self.executor.tick(self._clock())
        if request is not None:
            noise = int(np.random.default_rng([self._seed, self._decisions]).integers(2**31))
            self._decisions += 1
            pending = self.steerer.ask(
                noise,
                committed=request.committed,
                absolute=self._absolute,
                increments=self._increments,
            )
            self._asked = _Asked(pending, request)
        return motion

    def _collect(self) -> None:
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
        used = self.executor.on_chunk(chunk, asked.request.request_id, start, self._clock())
        took = self.steerer.timing.total_s
        self.planned = Planned(chunk, candidates, decision, start, took, used)
        self.on_planned(self.planned)
