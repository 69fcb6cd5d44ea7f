"""A question under way to a server, its answer, and the settings and counters of the link."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

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


@dataclass
class Pending:
    """A question under way. deadline: monotonic seconds. repeats: how often it was asked again, in a new
    session because the one it was asked in was lost."""

    request: DecideRequest
    asked: float
    deadline: float
    seq: int = 0
    sent_ns: int = 0
    repeats: int = 0
    _news: threading.Event = field(default_factory=threading.Event)
    _answer: Answer | None = None
    _error: Exception | None = None

    @property
    def done(self) -> bool:
        return self._news.is_set()

    def result(self) -> Answer:
        """Waits for the answer, at the longest until the deadline.

        Raises LinkError when none came or the server refused, DataError when the answer is damaged.
        """
        # The link's thread ends it at the deadline; the slack is for a thread that got no processor.
        if not self._news.wait(max(0.0, self.deadline - time.monotonic()) + 1.0):
            raise LinkError("server: no answer, and the link's thread does not run")
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def finish(self, answer: Answer | None = None, error: Exception | None = None) -> None:
        """Once, by the link."""
        self._answer, self._error = answer, error
        self._news.set()


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
