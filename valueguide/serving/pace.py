"""Whether the models answer so fast that the thread that does the networking may run them itself."""

from __future__ import annotations

from collections import deque
from typing import Any

#: Seconds of a pass up to which nobody minds that a ping waits for its end.
FAST_S = 0.002
_PASSES = 5


class Pace:
    """Fast are models whose last passes all were. Others are not known yet."""

    def __init__(self) -> None:
        self._models: Any = None
        self._took: deque[float] = deque(maxlen=_PASSES)

    def took(self, models: Any, seconds: float) -> None:
        """A pass of these models has ended."""
        if models is not self._models:
            self._models = models
            self._took.clear()
        self._took.append(seconds)

    def fast(self, models: Any) -> bool:
        return models is self._models and len(self._took) == _PASSES and max(self._took) <= FAST_S
