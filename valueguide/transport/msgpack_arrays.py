"""Strict msgpack codecs for numpy arrays as openpi and as GR00T write them: known types, bounded sizes.

openpi (packages/openpi-client, msgpack_numpy): an array is a map of binary keys, `__ndarray__`, `data` (raw
bytes), `dtype` (such as "<f4"), `shape`; a scalar is `__npgeneric__`, `data`, `dtype`.
GR00T (gr00t/policy/server_client.py): an array is a map `__ndarray_class__`, `as_npy` (a .npy file).
Both servers' own readers take any type and any shape that a message claims; these take numbers only, and
nothing is allocated beyond the message itself. No pickle is ever read.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch

#: Types that are read, little-endian: what policies exchange. Half floats too.
_DTYPES = {
    dtype.str: dtype
    for dtype in map(
        np.dtype, ("b1", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
    )
}
_MAX_DIMENSIONS, _MAX_LENGTH, _MAX_NPY_HEADER = 8, 1 << 31, 1024
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,20},? ?){0,16})\), \} *\n"
)


def pack_openpi(value: Any) -> bytes:
    """value: maps, lists, strings, numbers and arrays of numbers. Raises DataError for anything else."""
    return _pack(value, _openpi_map)


def unpack_openpi(data: bytes | memoryview, where: str) -> Any:
    """The value in an openpi message. Arrays are read-only views. Raises DataError naming `where`."""
    return _unpack(data, where, _openpi_array)


def pack_groot(value: Any) -> bytes:
    """value: as for `pack_openpi`."""
    return _pack(value, _groot_map)


def unpack_groot(data: bytes | memoryview, where: str) -> Any:
    """The value in a GR00T message; a ModalityConfig becomes a map. Raises DataError naming `where`."""
    return _unpack(data, where, _groot_array)


def _pack(value: Any, to_map: Callable[[NDArray[Any]], dict[Any, Any]]) -> bytes:
    def default(item: Any) -> Any:
        if isinstance(item, np.ndarray) and item.dtype.str in _DTYPES:
            return to_map(item)
        kind = item.dtype if isinstance(item, np.ndarray) else type(item).__name__
        raise DataError(mismatch("request", "value", "text, numbers and arrays of numbers", kind))

    try:
        return msgpack.packb(value, default=default)
    except (ValueError, OverflowError) as error:  # a circular value, a number beyond 64 bits
        raise DataError(f"request: cannot be written as msgpack: {error}") from error


def _unpack(data: bytes | memoryview, where: str, read_map: Callable[[dict[Any, Any], str], Any]) -> Any:
    try:
        # Lengths that a message claims are held to its size by msgpack itself; extension types are refused.
        return msgpack.unpackb(data, object_hook=lambda found: read_map(found, where), max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: expected msgpack, found what cannot be read: {reason}") from error


def _openpi_map(array: NDArray[Any]) -> dict[Any, Any]:
    return {
        b"__ndarray__": True,
        b"data": array.tobytes(),
        b"dtype": array.dtype.str,
        b"shape": list(array.shape),
    }


def _openpi_array(found: dict[Any, Any], where: str) -> Any:
    if b"__ndarray__" in found:
        return _view(found.get(b"data"), _dtype(found.get(b"dtype"), where), found.get(b"shape"), where)
    if b"__npgeneric__" in found:
        value, dtype = found.get(b"data"), _dtype(found.get(b"dtype"), where)
        if not isinstance(value, bool | int | float):
            raise DataError(mismatch(where, "scalar", "a number", type(value).__name__))
        return dtype.type(value)
    return found


def _groot_map(array: NDArray[Any]) -> dict[Any, Any]:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _groot_array(found: dict[Any, Any], where: str) -> Any:
    if "__ndarray_class__" in found:
        return _npy(found.get("as_npy"), where)
    if "__ModalityConfig_class__" in found:
        return found.get("as_json")
    return found


def _npy(content: Any, where: str) -> NDArray[Any]:
    """A .npy file in memory, viewed where it lies. Only headers as `numpy.save` writes them are read."""
    if not isinstance(content, bytes):
        raise DataError(mismatch(where, "array", "a .npy file", type(content).__name__))
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(content[:8], 0)
    start = 8 + width
    end = start + int.from_bytes(content[8:start], "little")
    header = _NPY_HEADER.fullmatch(content, start, end) if width and end - start <= _MAX_NPY_HEADER else None
    if header is None or end > len(content):
        raise DataError(mismatch(where, "array", "a .npy file of numpy.save", repr(content[:80])))
    name, by_column, lengths = (group.decode() for group in header.groups())
    shape = [int(length) for length in lengths.split(",") if length.strip()]
    shape = shape[::-1] if by_column == "True" else shape
    view = _view(memoryview(content)[end:], _dtype(name, where), shape, where)
    return view.T if by_column == "True" else view


def _dtype(name: Any, where: str) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in _DTYPES:
        raise DataError(mismatch(where, "array type", f"one of {' '.join(_DTYPES)}", repr(name)[:40]))
    return _DTYPES[name]


def _view(data: Any, dtype: np.dtype[Any], shape: Any, where: str) -> NDArray[Any]:
    """The numbers of `data` without a copy; its length must be what type and shape say."""
    if not isinstance(data, bytes | memoryview):
        raise DataError(mismatch(where, "array", "bytes", type(data).__name__))
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(length) is int and 0 <= length < _MAX_LENGTH for length in shape)
    ):
        wanted = f"up to {_MAX_DIMENSIONS} lengths of 0 or more"
        raise DataError(mismatch(where, "array shape", wanted, repr(shape)[:80]))
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise DataError(mismatch(where, f"bytes of an array {dtype} {tuple(shape)}", expected, len(data)))
    return np.frombuffer(data, dtype).reshape(shape)
