"""Makes numbered items (batches) in a background thread, and measures how long the learner waits for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator


class Prefetcher[Item]:
    """make: training step -> batch; called from one background thread, in order."""

    def __init__(self, make: Callable[[int], Item]) -> None:
        self._make = make
        self._waited_s = 0.0
        self._elapsed_s = 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time since `iterate` began that the learner spent waiting for a batch."""
        return self._waited_s / self._elapsed_s if self._elapsed_s > 0 else 0.0

    def iterate(self, start_step: int = 0, ahead: int = 2) -> Generator[Item]:
        """Endless batches from `start_step` on, up to `ahead` of them made before they are asked for.

        Close the generator (or let it go) to stop the thread. An error while making a batch is raised here.
        """
        ready: queue.Queue[Item | BaseException] = queue.Queue(maxsize=max(ahead, 1))
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(start_step, ready, stop), daemon=True)
        self._waited_s = self._elapsed_s = 0.0
        thread.start()
        began = time.monotonic()
        try:
            while True:
                asked = time.monotonic()
                item = ready.get()
                now = time.monotonic()
                self._waited_s += now - asked
                self._elapsed_s = now - began
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _produce(self, step: int, ready: queue.Queue[Item | BaseException], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                item: Item | BaseException = self._make(step)
            except BaseException as error:  # Handed to the learner, which raises it.
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.05)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            step += 1
