"""Matches the parts of one observation by their stamps. What is missing or old is named, never made up."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from valueguide.errors import DataError

#: A stamp this far behind its predecessor means that the clock was set back, not that a message was late.
_CLOCK_JUMP_NS = 1_000_000_000


class StaleError(DataError):
    """No consistent observation: says which source is missing or old."""


@dataclass
class _Source:
    depth: int
    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def push(self, stamp: int, value: Any) -> None:
        if self.stamps and stamp < self.stamps[-1] - _CLOCK_JUMP_NS:
            self.stamps.clear()
            self.values.clear()
        place = bisect.bisect_right(self.stamps, stamp)
        self.stamps.insert(place, stamp)
        self.values.insert(place, value)
        if len(self.stamps) > self.depth:
            del self.stamps[0], self.values[0]

    def nearest(self, stamp: int) -> int:
        """Index of the entry nearest to `stamp`; the source is not empty."""
        place = bisect.bisect_left(self.stamps, stamp)
        around = [i for i in (place - 1, place) if 0 <= i < len(self.stamps)]
        return min(around, key=lambda i: abs(self.stamps[i] - stamp))


@dataclass(frozen=True)
class Match:
    """Parts that belong together. stamp: of the oldest of them, nanoseconds."""

    values: dict[str, Any]
    stamp: int


class ObservationSync:
    """Keeps the last messages of every source. `sources[0]` sets the pace: put the slowest first.

    tolerance_ns: how far the stamps of one match may lie from the first source's.
    as_of: sources of which the last value at or before that stamp counts, however old; None if none.
    """

    def __init__(self, sources: Sequence[str], tolerance_ns: int, as_of: Sequence[str] = (), depth: int = 64):
        if not sources:
            raise DataError("observation: expected at least one source, found none")
        self._sources = {name: _Source(depth) for name in sources}
        self._as_of = {name: _Source(depth) for name in as_of}
        self._first = sources[0]
        self._tolerance = tolerance_ns

    def push(self, source: str, stamp: int, value: Any) -> None:
        """A message of one source, in any order within a second; a larger step back empties the source."""
        (self._sources.get(source) or self._as_of[source]).push(stamp, value)

    def clear(self) -> None:
        """Forget everything."""
        for source in (*self._sources.values(), *self._as_of.values()):
            source.stamps.clear()
            source.values.clear()

    def newest(self, source: str) -> int | None:
        """Stamp of the newest message of a source, or None."""
        stamps = self._sources[source].stamps
        return stamps[-1] if stamps else None

    def match(self, not_before: int | None = None, not_after: int | None = None) -> Match:
        """The newest parts that belong together, none older than not_before, the first not after not_after.

        Raises StaleError naming the source that is missing, too old, or too far from the others.
        """
        silent = [name for name, source in self._sources.items() if not source.stamps]
        if silent:
            raise StaleError(f"observation: nothing received from {', '.join(silent)}")
        # The newest candidate's own trouble tells more than that of an older one.
        reason = ""
        pace = self._sources[self._first]
        for number in reversed(range(len(pace.stamps))):
            stamp = pace.stamps[number]
            if not_after is not None and stamp > not_after:
                continue
            chosen = {name: source.nearest(stamp) for name, source in self._sources.items()}
            chosen[self._first] = number
            stamps = {name: self._sources[name].stamps[i] for name, i in chosen.items()}
            far = max(stamps, key=lambda name: abs(stamps[name] - stamp))
            oldest = min(stamps, key=lambda name: stamps[name])
            if not_before is not None and stamps[oldest] < not_before:
                late = (not_before - stamps[oldest]) / 1e9
                raise StaleError(reason or f"observation: {oldest} is {late:.3f} s older than asked for")
            if abs(stamps[far] - stamp) > self._tolerance:
                gap = abs(stamps[far] - stamp) / 1e9
                reason = reason or f"observation: {far} is {gap:.3f} s away from {self._first}"
                continue
            values = {name: self._sources[name].values[i] for name, i in chosen.items()}
            for name, source in self._as_of.items():
                place = bisect.bisect_right(source.stamps, stamp)
                values[name] = source.values[place - 1] if place else None
            return Match(values, min(stamps.values()))
        raise StaleError(reason or f"observation: no {self._first} before the asked time")
