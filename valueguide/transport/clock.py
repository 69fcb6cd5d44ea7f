"""How far another machine's clock is ahead of ours, from the stamps of requests and replies.

Each exchange gives four stamps as in NTP (RFC 5905, section 8): t0 request sent (ours), t1 it came (theirs),
t2 reply sent (theirs), t3 it came (ours). The exchange with the smallest round trip of the recent ones is
believed: queues only ever add delay, and add it to one direction.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """offset_ns: their clock minus ours. round_trip_ns: without the time that they thought."""

    offset_ns: int
    round_trip_ns: int
    at_ns: int


class ClockOffset:
    """offset_ns: their clock minus ours, None before the first exchange.

    The truth lies within half of `round_trip_ns` of it, plus drift, whatever the two directions' delays are.
    window, age_s: so many exchanges, and none older, compete; clocks drift by up to 0.1 ms a second.
    """

    def __init__(self, window: int = 64, age_s: float = 30.0) -> None:
        self._recent: deque[Exchange] = deque(maxlen=window)
        self._age_ns = int(age_s * 1e9)
        self._best: Exchange | None = None

    def add(self, t0: int, t1: int, t2: int, t3: int) -> None:
        """One exchange, nanoseconds. Stamps that cannot be (t3 < t0, t2 < t1, thinking longer than it took)
        are ignored."""
        round_trip = (t3 - t0) - (t2 - t1)
        if t3 < t0 or t2 < t1 or round_trip < 0:
            return
        new, recent = Exchange(((t1 - t0) + (t2 - t3)) // 2, round_trip, t3), self._recent
        gone = [recent.popleft()] if len(recent) == recent.maxlen else []
        recent.append(new)
        while t3 - recent[0].at_ns > self._age_ns:
            gone.append(recent.popleft())
        if self._best is None or round_trip < self._best.round_trip_ns:
            self._best = new
        elif any(exchange is self._best for exchange in gone):
            self._best = min(recent, key=lambda exchange: exchange.round_trip_ns)

    @property
    def offset_ns(self) -> int | None:
        return self._best.offset_ns if self._best else None

    @property
    def round_trip_ns(self) -> int | None:
        """Of the exchange that is believed."""
        return self._best.round_trip_ns if self._best else None

    def to_ours(self, theirs_ns: int) -> int | None:
        """Their stamp on our clock, None before the first exchange."""
        return theirs_ns - self._best.offset_ns if self._best else None

    def clear(self) -> None:
        """Another machine, or the same one started anew: its clock may have jumped."""
        self._recent.clear()
        self._best = None
