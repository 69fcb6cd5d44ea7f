"""Typed msgpack: values out of bytes that somebody else sent, or DataError that says which field is wrong.

msgspec reads and checks in one pass, so a type's annotations are all there is to a field's bounds. What it
allocates grows with the bytes that are there and not with what they announce; unknown fields are skipped.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import numpy as np

from valueguide.errors import DataError

#: Whole numbers of 63 bits, and signed ones of 64: msgpack knows larger ones, other languages do not.
Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Signed = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
#: Seconds and other amounts: not negative, not NaN, perhaps infinite.
Amount = Annotated[float, msgspec.Meta(ge=0.0)]


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of msgpack")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def pack(value: Any) -> bytes:
    """Raises DataError for what msgpack cannot hold."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"message: cannot be packed: {error}") from None


def unpack[T](decoder: msgspec.msgpack.Decoder[T], packed: bytes | memoryview | msgspec.Raw, where: str) -> T:
    """Raises DataError, which names the field, what was expected of it and what was found.

    where: what the outermost value is called.
    """
    try:
        return decoder.decode(packed)
    except msgspec.ValidationError as error:
        raise DataError(f"message: {_said(str(error), packed, where)}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"message: {where}: expected msgpack, found {reason}") from None


def _said(text: str, packed: bytes | memoryview | msgspec.Raw, where: str) -> str:
    """msgspec's "Expected `int` >= 1 - at `$.k`" as "k: expected int >= 1, found 0"."""
    text, _, path = text.replace("`", "").partition(" - at ")
    name = path.removeprefix("$").removeprefix(".") or where
    text = text[:1].lower() + text[1:].replace(", got ", ", found ")
    if ", found " not in text and not text.startswith("object missing"):
        text += f", found {_value(packed, path)}"
    return f"{name}: {text}"


def _value(packed: bytes | memoryview | msgspec.Raw, path: str) -> str:
    try:
        value = msgspec.msgpack.decode(packed)
        for key, index in re.findall(r"\.(\w+)|\[([0-9.]+)\]", path):
            value = value[key] if key else value[int(index)]
        return repr(value)[:40]  # nested too deeply to be shown, perhaps
    except (ValueError, LookupError, TypeError, RecursionError):
        return "another value"
