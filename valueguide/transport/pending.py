"""A question under way to a server, its answer, and the settings and counters of the link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from valueguide.errors import LinkError
from valueguide.transport.keys import ClientKeys
from valueguide.transport.messages import DecideReply, DecideRequest


@dataclass(frozen=True)
class LinkSettings:
    """endpoint: tcp://HOST:PORT. keys: needed beyond loopback. name: for the server's log.

    pictures: "raw", "jpeg" or "png". timeout_s: until when an answer must have come. ping_s: between looks
    whether the server lives; silent_s: without any sign of which the connection is begun anew.
    retry_s: until when a server must have answered an attempt to connect, before the next.
    """

    endpoint: str
    keys: ClientKeys | None = None
    name: str = ""
    pictures: str = "raw"
    timeout_s: float = 1.0
    ping_s: float = 1.0
    silent_s: float = 3.0
    retry_s: float = 1.0


@dataclass(frozen=True)
class Answer:
    """reply: what was decided. round_trip_s: from asking to the answer's arrival.

    sent_ns: when the server sent it, on this machine's monotonic clock, to within half of the fastest round
    trip; network_s: the part of round_trip_s that the server did not spend.
    """

    reply: DecideReply
    round_trip_s: float
    sent_ns: int
    network_s: float


class Pending:
    """A question under way. deadline: monotonic seconds. repeats: how often it was asked again, in a new
    session because the one it was asked in was lost."""

    def __init__(
        self,
        request: DecideRequest,
        asked: float,
        deadline: float,
        drive: Callable[[Pending], None] = lambda pending: None,
    ) -> None:
        """drive: lets the thread that waits for this do the link's work itself, if no other does."""
        self.request, self.asked, self.deadline = request, asked, deadline
        self.seq = self.sent_ns = self.repeats = 0
        self.done = False
        self._drive = drive
        # A lock, held until there is an answer: an Event is three objects more for every question.
        self._open = threading.Lock()
        self._open.acquire()
        self._answer: Answer | None = None
        self._error: Exception | None = None

    def result(self) -> Answer:
        """Waits for the answer, at the longest until the deadline.

        Raises LinkError when none came or the server refused, DataError when the answer is damaged.
        """
        if not self.done:
            self._drive(self)
        if not self.done:
            # Another thread does the link's work and ends this at the deadline; the slack is for one that
            # got no processor.
            if not self._open.acquire(timeout=max(0.0, self.deadline - time.monotonic()) + 1.0):
                raise LinkError("server: no answer, and the link's thread does not run")
            self._open.release()  # for others who wait for the same
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def finish(self, answer: Answer | None = None, error: Exception | None = None) -> None:
        """Once, by the link."""
        if not self.done:
            self._answer, self._error = answer, error
            self.done = True
            self._open.release()


@dataclass
class Counters:
    """Of one link so far. dropped: answers to questions that were given up. connections: sessions begun.

    repeated: questions asked again because their session was lost.
    """

    answers: int = 0
    missed: int = 0
    refused: int = 0
    dropped: int = 0
    repeated: int = 0
    connections: int = 0
