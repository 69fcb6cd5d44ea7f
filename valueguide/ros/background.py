"""`BackgroundWriter`: slow writing on a thread of its own, behind a queue with a bound."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class BackgroundWriter[T]:
    """Calls `work(item)` in order for everything put, on one thread.

    limit: the most weight (bytes, say) that may wait; an item that comes on top of nothing always fits.
    idle: called about every `idle_s` seconds on the same thread, for flushing. The first exception of
    either ends the work: it is in `error`, and what waits is thrown away.
    """

    def __init__(
        self,
        work: Callable[[T], None],
        limit: int,
        idle: Callable[[], None] | None = None,
        idle_s: float = 0.1,
    ) -> None:
        self.error: Exception | None = None
        self._work, self._limit, self._idle, self._idle_s = work, limit, idle, idle_s
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Weight of what is not written yet, that at hand included."""
        return self._weight

    def put(self, item: T, weight: int = 1) -> bool:
        """Never waits. False: the queue is full, or writing has failed, and the item is not written."""
        with self._changed:
            full = self._weight > 0 and self._weight + weight > self._limit
            if full or self.error is not None or self._closing:
                return False
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify()
        return True

    def close(self, timeout: float = 30.0) -> bool:
        """Write what waits, then end. False when that did not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                for item, weight in entry:
                    self._work(item)
                    with self._changed:
                        self._weight -= weight
                if self._idle is not None:
                    self._idle()
        except Exception as error:  # handed to the owner, who looks at `error`
            with self._changed:
                self.error = error
                self._items.clear()
                self._weight = 0

    def _next(self) -> list[tuple[T, int]] | None:
        """The next item, or nothing when it is time for `idle`; None at the end."""
        with self._changed:
            if not self._items and not self._closing:
                self._changed.wait(self._idle_s)
            if self._items:
                return [self._items.popleft()]
            return None if self._closing else []
