"""Waiting for what another thread or process does, no longer than a test may."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], what: str = "", wait_s: float = 20.0, look_s: float = 0.02) -> Any:
    """What `condition` gives once that is true, asked every `look_s` seconds.

    Raises AssertionError, which names `what`, when it is not within `wait_s` seconds.
    """
    limit = time.monotonic() + wait_s
    while not (found := condition()):
        assert time.monotonic() < limit, f"no {what or 'change'} within {wait_s:g} s"
        time.sleep(look_s)
    return found
