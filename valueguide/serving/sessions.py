"""Who is connected, what each asked for, and whose turn it is. Pure: no sockets, time is passed in.

Each session has room for one request; a newer one takes the place of one that was not begun. A batch takes
the requests of the sessions that were served longest ago, so no robot, however often it asks, is served
twice while another waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from valueguide.transport.messages import DecideRequest


@dataclass
class Job:
    """A request that waits or runs. arrived, deadline: seconds of the server's clock; inf: no deadline."""

    identity: bytes
    session: int
    seq: int
    request: DecideRequest
    arrived: float
    received_ns: int
    deadline: float = float("inf")
    encoding: str = "raw"


@dataclass
class Session:
    """One connection. user: the client's public key, "" without keys. seq: the last one it sent."""

    number: int
    identity: bytes
    name: str
    user: str
    seq: int
    last_heard: float
    last_served: float = float("-inf")
    waiting: Job | None = None
    sent: int = 0
    decisions: int = 0

    def next_seq(self) -> int:
        self.sent += 1
        return self.sent


@dataclass
class Sessions:
    """All of them. most: more are refused. idle_s: one that says nothing for so long is forgotten.

    draw: a new random session number.
    """

    draw: Callable[[], int]
    most: int = 64
    idle_s: float = 30.0
    by_identity: dict[bytes, Session] = field(default_factory=dict)

    def open(self, identity: bytes, name: str, user: str, seq: int, now: float) -> Session | None:
        """A session for this connection, in place of one it had; None when there are too many."""
        self.expire(now)
        if identity not in self.by_identity and len(self.by_identity) >= self.most:
            return None
        session = Session(self.draw(), identity, name, user, seq, now)
        self.by_identity[identity] = session
        return session

    def find(self, identity: bytes, number: int, now: float) -> Session | None:
        """The session of this connection if it has that number. It is thereby heard of."""
        session = self.by_identity.get(identity)
        if session is None or session.number != number:
            return None
        session.last_heard = now
        return session

    def close(self, identity: bytes) -> None:
        self.by_identity.pop(identity, None)

    def expire(self, now: float) -> None:
        """Forget those that have been silent for too long and wait for nothing."""
        for session in [*self.by_identity.values()]:
            if session.waiting is None and now - session.last_heard > self.idle_s:
                del self.by_identity[session.identity]

    def close_users(self, allowed: frozenset[str]) -> list[Session]:
        """Forget, and return, the sessions of clients that are not allowed (any more)."""
        gone = [session for session in self.by_identity.values() if session.user not in allowed]
        for session in gone:
            del self.by_identity[session.identity]
        return gone

    @property
    def waiting(self) -> int:
        return sum(session.waiting is not None for session in self.by_identity.values())

    def take(self, most: int, now: float) -> tuple[list[Job], list[Job]]:
        """(up to `most` jobs to run, jobs whose deadline has passed): both wait no longer."""
        batch: list[Job] = []
        late: list[Job] = []
        asking = [session for session in self.by_identity.values() if session.waiting is not None]
        for session in sorted(asking, key=lambda s: (s.last_served, s.waiting.arrived if s.waiting else 0.0)):
            job = session.waiting
            assert job is not None
            if job.deadline <= now:
                late.append(job)
            elif len(batch) < most:
                batch.append(job)
                session.last_served = now
            else:
                continue
            session.waiting = None
        return batch, late


def describe(session: Session) -> dict[str, Any]:
    """For the health page."""
    return {"name": session.name, "decisions": session.decisions, "waiting": session.waiting is not None}
