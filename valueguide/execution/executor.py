"""`ChunkExecutor`: one action per control period from the chunk at hand, the next one asked for in time.

    idle ──start──► waiting ──chunk──► running ──(actions used up, none arrived)──► waiting
    any ──takeover──► human ──hand-back──► waiting         any ──stop──► stopped ──start──► waiting
    stopped ──reset of the gate──► idle

A takeover lasts until it is handed back, over the end of an episode and a stop too: the next
episode then starts with the human.

Pure: no threads, no clock, no ROS. While waiting it sends nothing; the safety gate's watchdog holds the
measured pose when that lasts. Answers to outdated requests are dropped, so nothing planned before a
takeover, a refusal or a stop can run after it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.execution.delay import DelayEstimate
from valueguide.types import ActionChunk, Float32, Source

#: Human steps that may wait: teleop beats at the executor's rate, but not in step with it.
_HUMAN_STEPS = 2


class State(StrEnum):
    IDLE = "idle"
    WAITING = "waiting"
    RUNNING = "running"
    HUMAN = "human"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ExecutorSettings:
    """period_s: of the control rate. execute: E, the steps of a chunk that the critic scores and that run.

    prefetch: ask for the next chunk while this one runs. low, high: (A,) what an action may be; beyond
    is clipped, as in training. human_s: age beyond which a human's command is not run.
    """

    period_s: float
    execute: int
    low: Float32
    high: Float32
    prefetch: bool = True
    human_s: float = 0.3

    def __post_init__(self) -> None:
        if not self.period_s > 0:
            raise ConfigError(mismatch("executor", "period_s", "more than 0", self.period_s))
        if self.execute < 1:
            raise ConfigError(mismatch("executor", "execute", "1 or more steps", self.execute))


@dataclass(frozen=True)
class Request:
    """Asks for a chunk. committed: float32 (D, A), what will have run when the new chunk starts."""

    request_id: int
    committed: Float32
    reset: bool


@dataclass(frozen=True)
class Motion:
    """One control step to send. chunk_id -1 and chunk_step 0 for a human's."""

    values: Float32
    source: Source
    chunk_id: int
    chunk_step: int


@dataclass
class Counters:
    """Of the current episode; see valueguide_msgs/ExecutorState."""

    steps: int = 0
    holds: int = 0
    late: int = 0
    dropped: int = 0


@dataclass
class ChunkExecutor:
    """See the module. `now` is in seconds of one monotonic clock."""

    settings: ExecutorSettings
    delay: DelayEstimate = field(default_factory=lambda: DelayEstimate(first_s=0.1))
    state: State = State.IDLE
    counters: Counters = field(default_factory=Counters)
    commander: str = "hold"
    _queue: deque[Motion] = field(default_factory=deque)
    _request_id: int = 0
    _asked_at: float | None = None
    _reset: bool = False
    _ran_out: bool = False
    _human: deque[tuple[Float32, float]] = field(default_factory=lambda: deque(maxlen=_HUMAN_STEPS))
    _in_episode: bool = False
    _taken: bool = False

    def start(self) -> None:
        """A new episode: forget the last one, ask for a first chunk."""
        self._drop_plan()
        self.counters, self._reset, self._in_episode = Counters(), True, True
        self._human.clear()
        self.state = State.HUMAN if self._taken else State.WAITING

    def finish(self) -> None:
        """End of the episode: nothing more is sent."""
        self._drop_plan()
        self._in_episode, self.state = False, State.IDLE

    def stop(self) -> None:
        """The gate stopped: as finish, until the next start."""
        self.finish()
        self.state = State.STOPPED

    def unlatch(self) -> None:
        """The gate was reset by hand: a fresh takeover may command; by itself the reset moves nothing."""
        if self.state is State.STOPPED:
            self.state = State.IDLE

    def take_over(self) -> None:
        """A human commands from now on. The rest of the plan and any answer under way are dropped."""
        self._taken = True
        if self.state in (State.HUMAN, State.STOPPED):
            return
        self._drop_plan()
        self.state = State.HUMAN
        self._human.clear()

    def hand_back(self) -> None:
        """The policy goes on from where the arm now is."""
        self._taken = False
        if self.state is State.HUMAN:
            self._human.clear()
            self.state = State.WAITING if self._in_episode else State.IDLE

    def refused(self) -> None:
        """The gate refused a step, so the arm is not where the plan assumes: plan anew."""
        if self.state in (State.RUNNING, State.WAITING):
            self._drop_plan()
            self.state = State.WAITING

    def on_human(self, values: Float32, now: float) -> None:
        """A human's control step; it runs once, at the next tick: run twice, it would move twice as far."""
        self._human.append((np.asarray(values, np.float32), now))

    def on_human_hold(self) -> None:
        """The human, or the silence of their device, asks for a hold: steps that wait are dropped."""
        self._human.clear()

    def on_chunk(self, chunk: ActionChunk, request_id: int, start: int, now: float) -> bool:
        """A chunk for `request_id`, to run from step `start` to its executed_length. False when dropped.

        Dropped: an answer to any but the open request, or with a NaN, or with nothing left to run.
        """
        actions = np.asarray(chunk.actions, np.float32)
        shape_ok = actions.ndim == 2 and actions.shape[1] == len(self.settings.low)
        wanted = self._asked_at is not None and request_id == self._request_id
        if not wanted:
            self.counters.dropped += 1
            return False
        assert self._asked_at is not None
        self.delay.add(now - self._asked_at)
        self._asked_at = None
        end = min(chunk.executed_length, len(actions) if shape_ok else 0)
        if not shape_ok or not np.isfinite(actions[:end]).all() or start >= end:
            self.counters.dropped += 1
            return False
        clipped = np.clip(actions, self.settings.low, self.settings.high)
        for step in range(start, end):
            self._queue.append(Motion(clipped[step], "policy", chunk.chunk_id, step))
        if self.state is State.WAITING:
            self.counters.late += self._ran_out
            self.state = State.RUNNING
        return True

    @property
    def next_chunk(self) -> int | None:
        """The chunk from which the next tick runs a step; None where it will not."""
        return self._queue[0].chunk_id if self.state is State.RUNNING and self._queue else None

    def tick(self, now: float) -> tuple[Motion | None, Request | None]:
        """One control period begins: what to send, if anything, and what to ask for, if anything."""
        motion = self._next_motion(now)
        if motion is not None:
            self.counters.steps += 1
            self.commander = motion.source
        elif self._in_episode and self.state is not State.STOPPED:
            self.counters.holds += 1
            self.commander = "hold"
        return motion, self._next_request(motion, now)

    def _next_motion(self, now: float) -> Motion | None:
        if self.state is State.HUMAN:
            while self._human:
                values, issued = self._human.popleft()
                if now - issued <= self.settings.human_s:
                    return Motion(np.clip(values, self.settings.low, self.settings.high), "human", -1, 0)
            return None
        if self.state is not State.RUNNING:
            return None
        if self._queue:
            return self._queue.popleft()
        self.state = State.WAITING
        self._ran_out = self._asked_at is not None
        return None

    def _next_request(self, motion: Motion | None, now: float) -> Request | None:
        if self._asked_at is not None or self.state not in (State.WAITING, State.RUNNING):
            return None
        if self.state is State.WAITING:
            return self._ask([], now)
        if not self.settings.prefetch or motion is None:
            return None
        committed = [motion, *self._queue]
        most = self.settings.execute - 1
        if most < 1 or len(committed) > self.delay.steps(self.settings.period_s, most):
            return None
        return self._ask([m.values for m in committed], now)

    def _ask(self, committed: list[Float32], now: float) -> Request:
        self._request_id += 1
        self._asked_at = now
        reset, self._reset = self._reset, False
        empty = np.zeros((0, len(self.settings.low)), np.float32)
        return Request(self._request_id, np.stack(committed) if committed else empty, reset)

    def retry(self) -> None:
        """The open request will not be answered (the policy restarted): ask again at the next tick."""
        self._asked_at = None

    def _drop_plan(self) -> None:
        self._queue.clear()
        self._asked_at, self._ran_out = None, False
