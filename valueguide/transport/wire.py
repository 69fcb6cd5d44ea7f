"""The wire format: a message as ZeroMQ frames, a versioned msgpack header and then raw arrays.

docs/wire.md is its public description, tests/wire/vectors its examples. Nothing is allocated before its
size was checked against `Limits`; whatever arrives, `decode` returns a message or raises DataError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.transport.pictures import PICTURES, decode_picture, encode_picture

MAGIC = b"VGW"
VERSION = 1
#: Array types on the wire, all little-endian.
DTYPES: dict[str, np.dtype[Any]] = {
    "u1": np.dtype("u1"),
    "i8": np.dtype("<i8"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PREFIX = MAGIC + bytes([VERSION])
_WHERE = "message"
_MAX_DIMENSIONS = 4
_MAX_NAME, _MAX_DEPTH, _MAX_ITEMS = 128, 8, 256
#: Frames below this are copied: small ones lie unaligned inside ZeroMQ's own message.
_COPY_BELOW = 4096

Frame = bytes | memoryview
#: A tuple, made once: to make a union of types for every value takes longer than all other checks together.
_PLAIN = (str, int, float, bool, type(None))
_PLAIN_TYPES, _TEXT, _WHOLE = frozenset(_PLAIN), frozenset({str}), frozenset({int})
_NESTED = (dict, list, tuple)
_TOO_LARGE = 1 << 63
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Limits:
    """What one message may hold. header, total: bytes. frames: arrays. elements: numbers of one array."""

    header: int = 1 << 16
    frames: int = 64
    elements: int = 1 << 25
    total: int = 1 << 27


LIMITS = Limits()


class Message(NamedTuple):
    """One message, either way. A tuple, because a frozen dataclass takes three times as long to make.

    kind: what it is, and so what `body` and `arrays` hold. session: given by the server, 0 before.
    seq: counts up, in each direction of a session. answers: the `seq` that this replies to, or 0.
    sent_ns: the sender's monotonic clock when it was sent. received_ns: of a reply, the same clock when the
    request came. deadline_ns: the sender's clock beyond which nobody waits for an answer; 0: none.
    offset_ns: the receiver's clock minus the sender's as the sender estimates it, or None.
    body: JSON-like values. arrays: name -> uint8, int64, float32 or float64, up to 4 dimensions.
    """

    kind: str
    session: int = 0
    seq: int = 0
    answers: int = 0
    sent_ns: int = 0
    received_ns: int = 0
    deadline_ns: int = 0
    offset_ns: int | None = None
    body: Mapping[str, Any] = _EMPTY
    arrays: Mapping[str, NDArray[Any]] = _EMPTY


_NUMBERS = ("session", "seq", "answers", "sent_ns", "received_ns", "deadline_ns")


def encode(message: Message, pictures: str = "raw", limits: Limits = LIMITS) -> list[Frame]:
    """Frames to send. Arrays sent raw are not copied: leave them unchanged until they are sent.

    pictures: "raw", "jpeg" or "png", for arrays that are uint8 (height, width, 3).
    Raises DataError for what `decode` would refuse.
    """
    if pictures not in PICTURES:
        raise DataError(mismatch(_WHERE, "picture encoding", f"one of {', '.join(PICTURES)}", repr(pictures)))
    if len(message.arrays) > limits.frames:
        raise DataError(mismatch(_WHERE, "arrays", f"at most {limits.frames}", len(message.arrays)))
    table, frames = [], [b""]
    for name, array in message.arrays.items():
        if type(array) is not np.ndarray:
            array = np.asarray(array)
        entry, frame = _pack_array(name, array, pictures, limits)
        table.append(entry)
        frames.append(frame)
    header = {
        "kind": message.kind,
        "session": message.session,
        "seq": message.seq,
        "answers": message.answers,
        "sent_ns": message.sent_ns,
        "received_ns": message.received_ns,
        "deadline_ns": message.deadline_ns,
        "offset_ns": message.offset_ns,
        "body": dict(message.body),
        "arrays": table,
    }
    try:
        frames[0] = _PREFIX + msgpack.packb(header)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{_WHERE}: body: cannot be packed: {error}") from None
    # What was to be packed, and not what was: to unpack it again took half of the time of all this.
    _check_fields(header)
    _check_sizes(frames, limits)
    return frames


def decode(frames: Sequence[Frame], limits: Limits = LIMITS) -> Message:
    """The message in these frames. Large raw arrays share memory with them and are read-only.

    Unknown fields are ignored. Raises DataError for anything that is no message of this version.
    """
    if not frames:
        raise DataError(mismatch(_WHERE, "frames", "a header", "none"))
    _check_sizes(frames, limits)
    header, table = _checked_header(bytes(frames[0]), limits)
    if len(table) != len(frames) - 1:
        raise DataError(mismatch(_WHERE, "array frames", len(table), len(frames) - 1))
    arrays: dict[str, NDArray[Any]] = {}
    for (name, dtype, shape, encoding), frame in zip(table, frames[1:], strict=True):
        if name in arrays:
            raise DataError(mismatch(_WHERE, "array names", "each once", f"{name!r} twice"))
        arrays[name] = _unpack_array(name, dtype, shape, encoding, frame)
    return Message(
        header["kind"],
        header["session"],
        header["seq"],
        header["answers"],
        header["sent_ns"],
        header["received_ns"],
        header["deadline_ns"],
        header["offset_ns"],
        header["body"],
        arrays,
    )


def _check_sizes(frames: Sequence[Frame], limits: Limits) -> None:
    if len(frames) - 1 > limits.frames:
        raise DataError(mismatch(_WHERE, "array frames", f"at most {limits.frames}", len(frames) - 1))
    if len(frames[0]) > limits.header:
        raise DataError(mismatch(_WHERE, "header", f"at most {limits.header} bytes", len(frames[0])))
    total = sum(map(len, frames))
    if total > limits.total:
        raise DataError(mismatch(_WHERE, "size", f"at most {limits.total} bytes", total))


_Entry = tuple[str, np.dtype[Any], tuple[int, ...], str]


def _checked_header(packed: bytes, limits: Limits) -> tuple[dict[str, Any], list[_Entry]]:
    """The header with every known field of the right type, and its table of arrays."""
    if len(packed) < len(_PREFIX) or packed[:3] != MAGIC:
        raise DataError(mismatch(_WHERE, "first bytes", MAGIC, bytes(packed[:3])))
    if packed[3] != VERSION:
        hint = "Install the same version of valueguide on both sides"
        raise DataError(mismatch(_WHERE, "wire version", VERSION, packed[3], hint))
    header = _unpack_header(packed[len(_PREFIX) :])
    _check_fields(header)
    table = header.get("arrays", [])
    if not isinstance(table, list) or len(table) > limits.frames:
        raise DataError(
            mismatch(_WHERE, "arrays", f"a list of at most {limits.frames}", type(table).__name__)
        )
    return header, [_checked_entry(entry, limits) for entry in table]


def _check_fields(header: dict[str, Any]) -> None:
    """All but the table of arrays; what is missing gets its default."""
    kind = header.get("kind")
    if not isinstance(kind, str) or not 0 < len(kind) <= _MAX_NAME:
        raise DataError(mismatch(_WHERE, "kind", "a short word", type(kind).__name__))
    numbers = [header.setdefault(key, 0) for key in _NUMBERS]
    # Types first: they also tell a bool from an int. All at once, because a loop of ours takes longer.
    if set(map(type, numbers)) != _WHOLE or min(numbers) < 0 or max(numbers) >= _TOO_LARGE:
        for key, value in zip(_NUMBERS, numbers, strict=True):
            if type(value) is not int or not 0 <= value < _TOO_LARGE:
                _refuse_number(key, value, 0)
    offset = header.setdefault("offset_ns", None)
    if offset is not None and (type(offset) is not int or not -_TOO_LARGE <= offset < _TOO_LARGE):
        _refuse_number("offset_ns", offset, -_TOO_LARGE)
    body = header.setdefault("body", {})
    if not isinstance(body, dict):
        raise DataError(mismatch(_WHERE, "body", "a map", type(body).__name__))
    _check_body(body, 1)


def _refuse_number(key: str, value: Any, low: int) -> None:
    raise DataError(mismatch(_WHERE, key, f"a whole number from {low} below 2^63", repr(value)[:40]))


def _unpack_header(packed: bytes) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_str_len=len(packed),
            max_bin_len=0,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"{_WHERE}: header: expected msgpack, found {reason}") from None
    if not isinstance(header, dict):
        raise DataError(mismatch(_WHERE, "header", "a map", type(header).__name__))
    return header


def _check_body(value: Any, depth: int) -> None:
    """Only JSON-like values with text as keys, not deeply nested: what every receiver can walk."""
    if depth > _MAX_DEPTH:
        raise DataError(mismatch(_WHERE, "body", f"at most {_MAX_DEPTH} levels", "more"))
    if isinstance(value, _NESTED):
        if len(value) > _MAX_ITEMS:
            raise DataError(mismatch(_WHERE, "body", f"at most {_MAX_ITEMS} items", len(value)))
        if isinstance(value, dict):
            if not _TEXT.issuperset(map(type, value)):
                raise DataError(mismatch(_WHERE, "body", "text as keys", "other keys"))
            value = value.values()
        if depth == _MAX_DEPTH and value:
            _check_body(value, depth + 1)
        if not _PLAIN_TYPES.issuperset(map(type, value)):
            for item in value:
                if type(item) not in _PLAIN_TYPES:
                    _check_body(item, depth + 1)
    elif not isinstance(value, _PLAIN):
        raise DataError(mismatch(_WHERE, "body", "JSON-like values", type(value).__name__))


def _checked_entry(entry: Any, limits: Limits) -> _Entry:
    """An entry of the table. Those of one robot are the same each time, so the last good ones are kept."""
    if not isinstance(entry, dict):
        raise DataError(mismatch(_WHERE, "arrays", "maps", type(entry).__name__))
    name, dtype, shape = entry.get("name"), entry.get("dtype"), entry.get("shape")
    encoding = entry.get("encoding", "raw")
    if type(shape) is list and len(shape) <= _MAX_DIMENSIONS:
        try:
            return _known_entry(limits.elements, name, dtype, encoding, *shape)
        except TypeError:  # a list or a map where none belongs: as below
            pass
    return _check_entry(limits.elements, name, dtype, encoding, shape)


@lru_cache(maxsize=256, typed=True)
def _known_entry(elements: int, name: Any, dtype: Any, encoding: Any, *shape: Any) -> _Entry:
    return _check_entry(elements, name, dtype, encoding, list(shape))


def _check_entry(elements: int, name: Any, dtype: Any, encoding: Any, shape: Any) -> _Entry:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise DataError(mismatch(_WHERE, "array name", f"1 to {_MAX_NAME} characters", repr(name)[:40]))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _unfit(name, "dtype", f"one of {', '.join(DTYPES)}", dtype)
    if not isinstance(encoding, str) or encoding not in PICTURES:
        raise _unfit(name, "encoding", f"one of {', '.join(PICTURES)}", encoding)
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise _unfit(name, "shape", f"at most {_MAX_DIMENSIONS} sizes", shape)
    for size in shape:
        if type(size) is not int or not 0 <= size <= elements:
            raise _unfit(name, "shape", f"sizes up to {elements}", size)
    if math.prod(shape) > elements:
        raise _unfit(name, "elements", f"at most {elements}", shape)
    if encoding != "raw" and (dtype != "u1" or len(shape) != 3 or shape[2] != 3):
        raise _unfit(name, f"{encoding} of", "u1 (height, width, 3)", f"{dtype} {shape}")
    return name, DTYPES[dtype], tuple(shape), encoding


def _unfit(name: str, what: str, expected: str, found: Any) -> DataError:
    return DataError(mismatch(f"{_WHERE}: array {name!r}", what, expected, repr(found)[:40]))


def _pack_array(
    name: str, array: NDArray[Any], pictures: str, limits: Limits
) -> tuple[dict[str, Any], Frame]:
    entry = _entry_for(limits.elements, name, array.dtype, pictures, array.shape)
    if entry["encoding"] != "raw":
        return entry, encode_picture(array, entry["encoding"])
    plain = np.ascontiguousarray(array, DTYPES[entry["dtype"]])
    return entry, plain.data.cast("B") if plain.size else b""


@lru_cache(maxsize=256)
def _entry_for(
    elements: int, name: str, kind: np.dtype[Any], pictures: str, shape: tuple[int, ...]
) -> dict[str, Any]:
    """What the table says of such an array, also the next time; not to be changed."""
    # A machine's own byte order is found at once, another one without it.
    dtype = _NAMES.get(kind) or _NAMES.get(kind.newbyteorder("<"))
    if dtype is None:
        raise DataError(mismatch(f"array {name!r}", "dtype", f"one of {', '.join(DTYPES)}", kind))
    is_picture = dtype == "u1" and len(shape) == 3 and shape[2] == 3 and all(shape)
    entry = {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "encoding": pictures if is_picture else "raw",
    }
    _check_entry(elements, name, dtype, entry["encoding"], entry["shape"])
    return entry


def _unpack_array(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], encoding: str, frame: Frame
) -> NDArray[Any]:
    if encoding != "raw":
        return decode_picture(bytes(frame), encoding, (shape[0], shape[1]), f"{_WHERE}: array {name!r}")
    wanted = math.prod(shape) * dtype.itemsize
    if len(frame) != wanted:
        raise DataError(mismatch(f"{_WHERE}: array {name!r}", "bytes", wanted, len(frame)))
    content = bytes(frame) if len(frame) < _COPY_BELOW else frame
    return np.ndarray(shape, dtype, content)
