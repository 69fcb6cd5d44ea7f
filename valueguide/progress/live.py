"""Progress of the episode that runs, estimated in the background from a few frames of all of it so far.

Whatever answers may be slow, stuck or not there: nothing here waits for it but a thread of its own, and an
answer about an episode that is over is dropped. GVL looks at all frames of a prefix together, so the value of
the newest one is what an offline estimate of the same prefix says, no more and no less.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from valueguide.errors import ConfigError, DataError, ValueguideError, mismatch
from valueguide.progress.estimate import Estimator
from valueguide.progress.frames import sample_positions, shrink
from valueguide.progress.request import Clip, Estimate, Int64
from valueguide.types import UInt8

log = logging.getLogger("valueguide.progress")


class Prefix:
    """The frames of an episode so far, in bounded memory: the first, the newest, and evenly spread ones.

    keep: at most so many frames are held (and the newest). When there are more, every second one goes.
    """

    def __init__(self, keep: int) -> None:
        self._keep, self._stride, self._count = keep, 1, 0
        self._held: list[tuple[int, UInt8]] = []
        self._newest: tuple[int, UInt8] | None = None
        self.stamp_ns = 0

    def push(self, image: UInt8, stamp_ns: int) -> None:
        """Raises DataError for a picture of another size than the first."""
        if self._held and image.shape != self._held[0][1].shape:
            raise DataError(mismatch("live progress", "picture", self._held[0][1].shape, image.shape))
        self._newest, self.stamp_ns = (self._count, image), stamp_ns
        if self._count % self._stride == 0:
            self._held.append(self._newest)
        self._count += 1
        if len(self._held) > self._keep:
            self._stride *= 2
            self._held = [entry for entry in self._held if entry[0] % self._stride == 0]

    def __len__(self) -> int:
        """How many frames were pushed."""
        return self._count

    def clip(self, task: str, frames: int) -> Clip:
        """At most `frames` of them, evenly spread, the first and the newest always among them; needs two.

        Until more than `keep` were pushed, these are the frames that `sample_positions` takes of an episode
        that ends here. Positions count the pushed frames.
        """
        held = list(self._held)
        if self._newest is not None and self._newest[0] != held[-1][0]:
            held.append(self._newest)
        chosen = [held[i] for i in sample_positions(len(held), frames)]
        return Clip(
            np.stack([image for _, image in chosen]), task, np.array([at for at, _ in chosen], np.int64)
        )


@dataclass(frozen=True)
class LiveEstimate:
    """What is known about an episode at the newest frame that was looked at.

    value: in [0, 1]; NaN when there is none. confidence: in [0, 1], one less the spread over the shuffles at
    that frame, times the share of the shuffles that were answered; NaN with fewer than two answers.
    stamp_ns: of that frame. positions: int64 (n,), the frames that were shown, counted from the episode's
    start. status: "ok", "partial", "malformed" or "failed", see Estimate. detail: why, when it is not "ok".
    """

    episode: int
    value: float
    confidence: float
    stamp_ns: int
    status: str
    detail: str
    positions: Int64


class LiveProgress:
    """Use from one thread; every method returns at once.

    make: makes the estimator, in the background; what it raises is `trouble`, and it is tried again with the
        next question. frames: of a clip. keep: see Prefix. longest_edge: see frames.shrink.
    """

    def __init__(
        self, make: Callable[[], Estimator], frames: int = 10, keep: int = 64, longest_edge: int = 0
    ) -> None:
        if frames < 3 or keep < frames:
            raise ConfigError(
                mismatch("live progress", "frames, keep", "3 <= frames <= keep", (frames, keep))
            )
        self._make, self._frames, self._keep, self._edge = make, frames, keep, longest_edge
        self._estimator: Estimator | None = None
        self._lock = threading.Lock()
        self._episode, self._task, self._prefix = -1, "", Prefix(keep)
        self._asked_at, self._asked_since = 0, 0.0  # frames at the last question; 0.0: no question is open
        self._latest: LiveEstimate | None = None
        self._trouble = ""

    def begin(self, episode: int, task: str) -> None:
        """A new episode: the frames and the estimate of the last one are forgotten."""
        with self._lock:
            self._episode, self._task, self._prefix = episode, task, Prefix(self._keep)
            self._asked_at, self._latest = 0, None

    def push(self, image: UInt8, stamp_ns: int) -> None:
        """A frame of the running episode, uint8 (H, W, 3) RGB. Raises DataError: see Prefix."""
        small = shrink(image, self._edge)
        with self._lock:
            self._prefix.push(small, stamp_ns)

    def ask(self) -> bool:
        """Ask about the prefix so far, unless a question is open or nothing is new; whether it was asked."""
        with self._lock:
            if self._asked_since or len(self._prefix) < 2 or len(self._prefix) == self._asked_at:
                return False
            clip = self._prefix.clip(self._task, self._frames)
            self._asked_at, self._asked_since = len(self._prefix), time.monotonic()
            facts = (self._episode, self._prefix.stamp_ns)
        # A daemon: a node that shuts down does not wait for an answer that may never come.
        threading.Thread(target=self._answer, args=(clip, *facts), daemon=True).start()
        return True

    @property
    def latest(self) -> LiveEstimate | None:
        """The newest estimate of the running episode."""
        with self._lock:
            return self._latest

    @property
    def trouble(self) -> str:
        """Why there is no estimator, "" where there is one or nobody has asked yet."""
        with self._lock:
            return self._trouble

    @property
    def waiting_s(self) -> float:
        """For how long the open question has been; 0 without one."""
        with self._lock:
            return time.monotonic() - self._asked_since if self._asked_since else 0.0

    def _answer(self, clip: Clip, episode: int, stamp_ns: int) -> None:
        """In the background: never raises."""
        found, trouble = None, ""
        try:
            if self._estimator is None:
                self._estimator = self._make()
            found = _live(self._estimator.estimate(clip), episode, stamp_ns)
        except ValueguideError as error:
            trouble = str(error)
        except Exception as error:  # a thread that dies would leave the question open for ever
            log.exception("progress estimate")
            trouble = f"{type(error).__name__}: {error}"
        with self._lock:
            self._asked_since, self._trouble = 0.0, trouble
            if found is not None and episode == self._episode:
                self._latest = found


def _live(estimate: Estimate, episode: int, stamp_ns: int) -> LiveEstimate:
    answered = [s for s in estimate.shuffles if s.status == "ok"]
    reasons = [reason for shuffle in estimate.shuffles for reason in shuffle.reasons]
    spread = float(estimate.spread[-1])
    return LiveEstimate(
        episode=episode,
        value=float(estimate.values[-1]),
        confidence=(1.0 - spread) * len(answered) / len(estimate.shuffles),
        stamp_ns=stamp_ns,
        status=estimate.status,
        detail="" if estimate.status == "ok" or not reasons else reasons[-1],
        positions=estimate.positions,
    )
