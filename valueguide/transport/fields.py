"""Typed reading of a message's body: each value is there, of its kind and within its bounds, or DataError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.transport.wire import DTYPES, Message

_MAX_TEXT = 4096
_NUMBER = (int, float)
_KINDS = {dtype.name: dtype for dtype in DTYPES.values()}


def whole(body: Mapping[str, Any], key: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number in [low, high]."""
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(mismatch("message", key, f"a whole number from {low} to {high}", repr(value)[:40]))
    return value


def real(body: Mapping[str, Any], key: str, default: float | None = None, low: float = -math.inf) -> float:
    """A number >= low, not NaN; it may be infinite."""
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, _NUMBER) or not value >= low:
        raise DataError(mismatch("message", key, f"a number of at least {low}", repr(value)[:40]))
    return float(value)


def flag(body: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise DataError(mismatch("message", key, "true or false", repr(value)[:40]))
    return value


def text(body: Mapping[str, Any], key: str, default: str | None = None, longest: int = _MAX_TEXT) -> str:
    value = body.get(key, default)
    if not isinstance(value, str) or len(value) > longest:
        raise DataError(mismatch("message", key, f"text of at most {longest} characters", repr(value)[:40]))
    return value


def items(body: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = body.get(key, [])
    if not isinstance(value, list) or len(value) > most:
        raise DataError(mismatch("message", key, f"a list of at most {most}", type(value).__name__))
    return value


def group(body: Any, key: str) -> dict[str, Any]:
    """A map inside the body."""
    value = body.get(key) if isinstance(body, Mapping) else None
    if not isinstance(value, dict):
        raise DataError(mismatch("message", key, "a map", type(value).__name__))
    return value


def array(
    message: Message, name: str, kind: str, dimensions: int, *, needed: bool = True
) -> NDArray[Any] | None:
    """An array by name. kind: of its numbers, a numpy dtype's name. None when it is absent and not needed."""
    found = message.arrays.get(name)
    if found is None:
        if needed:
            raise DataError(mismatch("message", f"array {name!r}", f"{kind} numbers", "none"))
        return None
    # Compared as dtypes: to name one takes numpy longer than all else here.
    if found.dtype != _KINDS[kind] or found.ndim != dimensions:
        have = f"{found.dtype.name} {found.shape}"
        raise DataError(mismatch("message", f"array {name!r}", f"{kind}, {dimensions} dimensions", have))
    return found
