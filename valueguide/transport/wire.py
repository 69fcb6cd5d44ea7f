"""The wire format: a message as ZeroMQ frames, a versioned msgpack header and then raw arrays.

docs/wire.md is its public description, tests/wire/vectors its examples. Nothing is allocated before its
size was checked against `Limits`; whatever arrives, `decode` returns a message or raises DataError. The body
is left packed: `messages` knows what each kind of message holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Raw, Struct
from msgspec.msgpack import Decoder
from msgspec.structs import astuple
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.transport.packing import Signed, Whole, pack, unpack
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
#: Frames below this are copied: small ones lie unaligned inside ZeroMQ's own message.
_COPY_BELOW = 4096

Frame = bytes | memoryview
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_Name = Annotated[str, Meta(min_length=1, max_length=128)]


@dataclass(frozen=True)
class Limits:
    """What one message may hold. header, total: bytes. frames: arrays. elements: numbers of one array."""

    header: int = 1 << 16
    frames: int = 64
    elements: int = 1 << 25
    total: int = 1 << 27


LIMITS = Limits()
#: An empty map.
NOTHING = Raw(b"\x80")


class _Fields(Struct, frozen=True):
    """What a message and its header share, in the order of the wire."""

    kind: _Name
    session: Whole = 0
    seq: Whole = 0
    answers: Whole = 0
    sent_ns: Whole = 0
    received_ns: Whole = 0
    deadline_ns: Whole = 0
    offset_ns: Signed | None = None
    body: Raw = NOTHING


class Message(_Fields, frozen=True):
    """One message, either way.

    kind: what it is, and so what `body` and `arrays` hold. session: given by the server, 0 before.
    seq: counts up, in each direction of a session. answers: the `seq` that this replies to, or 0.
    sent_ns: the sender's monotonic clock when it was sent. received_ns: of a reply, the same clock when the
    request came. deadline_ns: the sender's clock beyond which nobody waits for an answer; 0: none.
    offset_ns: the receiver's clock minus the sender's as the sender estimates it, or None.
    body: a msgpack map. arrays: name -> uint8, int64, float32 or float64, up to 4 dimensions.
    """

    arrays: Mapping[str, NDArray[Any]] = _EMPTY


class _Entry(Struct, frozen=True):
    """What the header says of one array."""

    name: _Name
    dtype: _Name
    shape: Annotated[tuple[Whole, ...], Meta(max_length=4)]
    encoding: _Name = "raw"


class _Header(_Fields, frozen=True):
    """What is packed: a table in place of the arrays."""

    arrays: list[_Entry] = []


_header, _entry = Decoder(_Header), Decoder(_Entry)


def encode(message: Message, pictures: str = "raw", limits: Limits = LIMITS) -> list[Frame]:
    """Frames to send. Arrays sent raw are not copied: leave them unchanged until they are sent.

    pictures: "raw", "jpeg" or "png", for arrays that are uint8 (height, width, 3).
    Raises DataError for what `decode` would refuse.
    """
    if pictures not in PICTURES:
        raise DataError(mismatch(_WHERE, "picture encoding", f"one of {', '.join(PICTURES)}", repr(pictures)))
    table: list[_Entry] = []
    frames: list[Frame] = [b""]
    for name, array in message.arrays.items():
        if type(array) is not np.ndarray:
            array = np.asarray(array)
        entry = _entry_for(limits.elements, name, array.dtype, pictures, array.shape)
        table.append(entry)
        frames.append(_packed_array(array, entry))
    packed = pack(_Header(*astuple(message)[:-1], table))  # type: ignore[call-arg]
    unpack(_header, packed, "header")
    frames[0] = _PREFIX + packed
    _check_sizes(frames, limits)
    return frames


def decode(frames: Sequence[Frame], limits: Limits = LIMITS) -> Message:
    """The message in these frames. Large raw arrays share memory with them and are read-only.

    Unknown fields are ignored. Raises DataError for anything that is no message of this version.
    """
    if not frames:
        raise DataError(mismatch(_WHERE, "frames", "a header", "none"))
    _check_sizes(frames, limits)
    header = unpack(_header, _versioned(frames[0]), "header")
    if not _is_map(header.body):
        raise DataError(mismatch(_WHERE, "body", "a map", "another value"))
    if len(header.arrays) != len(frames) - 1:
        raise DataError(mismatch(_WHERE, "array frames", len(header.arrays), len(frames) - 1))
    arrays: dict[str, NDArray[Any]] = {}
    for entry, frame in zip(header.arrays, frames[1:], strict=True):
        if entry.name in arrays:
            raise DataError(mismatch(_WHERE, "array names", "each once", f"{entry.name!r} twice"))
        arrays[entry.name] = _unpacked_array(entry, frame, limits.elements)
    return Message(*astuple(header)[:-1], arrays)  # type: ignore[call-arg]


def _is_map(packed: Raw) -> bool:
    first = memoryview(packed)[0]
    return first & 0xF0 == 0x80 or first in (0xDE, 0xDF)


def _check_sizes(frames: Sequence[Frame], limits: Limits) -> None:
    if len(frames) - 1 > limits.frames:
        raise DataError(mismatch(_WHERE, "array frames", f"at most {limits.frames}", len(frames) - 1))
    if len(frames[0]) > limits.header:
        raise DataError(mismatch(_WHERE, "header", f"at most {limits.header} bytes", len(frames[0])))
    total = sum(map(len, frames))
    if total > limits.total:
        raise DataError(mismatch(_WHERE, "size", f"at most {limits.total} bytes", total))


def _versioned(frame: Frame) -> bytes:
    """The msgpack of a header frame of this version."""
    packed = bytes(frame)
    if len(packed) < len(_PREFIX) or packed[:3] != MAGIC:
        raise DataError(mismatch(_WHERE, "first bytes", MAGIC, packed[:3]))
    if packed[3] != VERSION:
        hint = "Install the same version of valueguide on both sides"
        raise DataError(mismatch(_WHERE, "wire version", VERSION, packed[3], hint))
    return packed[len(_PREFIX) :]


def _check_entry(entry: _Entry, elements: int) -> None:
    """What the types of its fields do not say."""
    if entry.dtype not in DTYPES:
        raise _unfit(entry, "dtype", f"one of {', '.join(DTYPES)}", entry.dtype)
    if entry.encoding not in PICTURES:
        raise _unfit(entry, "encoding", f"one of {', '.join(PICTURES)}", entry.encoding)
    # Each size too: one 0 among them would hide the others, which numpy multiplies.
    if math.prod(entry.shape) > elements or max(entry.shape, default=0) > elements:
        raise _unfit(entry, "elements", f"at most {elements}", entry.shape)
    if entry.encoding != "raw" and (entry.dtype != "u1" or len(entry.shape) != 3 or entry.shape[2] != 3):
        raise _unfit(entry, f"{entry.encoding} of", "u1 (height, width, 3)", (entry.dtype, entry.shape))


def _unfit(entry: _Entry, what: str, expected: str, found: Any) -> DataError:
    return DataError(mismatch(f"{_WHERE}: array {entry.name!r}", what, expected, repr(found)[:40]))


@lru_cache(maxsize=256)
def _entry_for(
    elements: int, name: str, kind: np.dtype[Any], pictures: str, shape: tuple[int, ...]
) -> _Entry:
    """What the table says of such an array, also the next time."""
    # A machine's own byte order is found at once, another one without it.
    dtype = _NAMES.get(kind) or _NAMES.get(kind.newbyteorder("<"))
    if dtype is None:
        raise DataError(mismatch(f"array {name!r}", "dtype", f"one of {', '.join(DTYPES)}", kind))
    is_picture = dtype == "u1" and len(shape) == 3 and shape[2] == 3 and all(shape)
    entry = _Entry(name, dtype, shape, pictures if is_picture else "raw")
    entry = unpack(_entry, pack(entry), "array")
    _check_entry(entry, elements)
    return entry


def _packed_array(array: NDArray[Any], entry: _Entry) -> Frame:
    if entry.encoding != "raw":
        return encode_picture(array, entry.encoding)
    plain = np.ascontiguousarray(array, DTYPES[entry.dtype])
    return plain.data.cast("B") if plain.size else b""


def _unpacked_array(entry: _Entry, frame: Frame, elements: int) -> NDArray[Any]:
    _check_entry(entry, elements)
    shape, dtype = entry.shape, DTYPES[entry.dtype]
    if entry.encoding != "raw":
        where = f"{_WHERE}: array {entry.name!r}"
        return decode_picture(bytes(frame), entry.encoding, (shape[0], shape[1]), where)
    wanted = math.prod(shape) * dtype.itemsize
    if len(frame) != wanted:
        raise DataError(mismatch(f"{_WHERE}: array {entry.name!r}", "bytes", wanted, len(frame)))
    content = bytes(frame) if len(frame) < _COPY_BELOW else frame
    return np.ndarray(shape, dtype, content)
