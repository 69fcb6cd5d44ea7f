"""One segment in one safetensors file: written whole, read through a memory map.

The layout is safetensors' own (https://github.com/huggingface/safetensors#format), so that any tool opens
it. Written and read here because a replay is filled on robot computers, which have no torch, and because
the map must serve single frames without copying the rest.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from valueguide.data.layout import write_atomic
from valueguide.errors import DataError, mismatch
from valueguide.online.segments import Segment

FORMAT = "valueguide.segment/1"
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_IMAGE = "images."
_LARGEST_HEADER = 100_000_000  # as in safetensors
_BLOCK = 1 << 20
_ARRAYS = ("state", "action", "chunk_id", "chunk_step", "planned", "planned_start")
_OPTIONAL = ("environment_state", "features", "potential")
_FACTS = tuple(f.name for f in fields(Segment) if f.name not in (*_ARRAYS, *_OPTIONAL, "images"))


def write_segment(path: Path, segment: Segment) -> None:
    """Durable when this returns; before, there is no file of that name. Raises OSError."""
    facts = json.dumps({name: getattr(segment, name) for name in _FACTS})
    write_tensors(path, _tensors(segment), {"format": FORMAT, "segment": facts})


def read_segment(path: Path, verify: bool = True) -> Segment:
    """The segment with its arrays in a read-only memory map, which stays valid when the file is deleted.

    verify: read the file once and compare its checksum. Raises DataError for a damaged file, and
    FileNotFoundError when there is none.
    """
    tensors, metadata = map_tensors(path, verify)
    if metadata.get("format") != FORMAT:
        raise DataError(mismatch(str(path), "format", FORMAT, repr(metadata.get("format"))))
    try:
        facts = {name: value for name, value in json.loads(metadata["segment"]).items() if name in _FACTS}
        images = {n.removeprefix(_IMAGE): v for n, v in tensors.items() if n.startswith(_IMAGE)}
        values: dict[str, Any] = {name: tensors[name] for name in _ARRAYS}
        values.update({name: tensors[name] for name in _OPTIONAL if name in tensors})
        return Segment(**values, images=images, **facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged segment: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _tensors(segment: Segment) -> dict[str, NDArray[Any]]:
    found = {name: getattr(segment, name) for name in (*_ARRAYS, *_OPTIONAL)}
    found.update({_IMAGE + camera: pictures for camera, pictures in segment.images.items()})
    return {name: values for name, values in found.items() if values is not None}


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """One safetensors file of float32, int64 and uint8 arrays, durable on return. Raises OSError.

    Adds to the metadata "crc32", over all other metadata and the data.
    """
    # Widest numbers first, as safetensors does, so that every array is aligned in the map.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    arrays = {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for name, values in ordered}
    check = zlib.crc32(_text(metadata))
    header: dict[str, Any] = {}
    offset = 0
    for name, values in arrays.items():
        check = zlib.crc32(_bytes(values), check)
        span = [offset, offset + values.nbytes]
        header[name] = {"dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": span}
        offset += values.nbytes
    encoded = json.dumps({"__metadata__": {**metadata, "crc32": f"{check:08x}"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for values in arrays.values():
            file.write(_bytes(values))

    write_atomic(path, write)


def map_tensors(path: Path, verify: bool = True) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read-only arrays in a memory map of the file, and its metadata.

    The map holds no file descriptor. Raises DataError (damaged) and FileNotFoundError.
    """
    try:
        # Arrow's map outlives its file, where Python's keeps a descriptor for each; thousands are mapped.
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        header, metadata, start = _header(content, path)
        tensors: dict[str, NDArray[Any]] = {}
        end = start
        for name, entry in header.items():
            dtype, shape = _TYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
            first, stop = (start + int(offset) for offset in entry["data_offsets"])
            count = int(np.prod(shape, dtype=np.int64))
            if first != end or stop - first != count * dtype.itemsize:
                raise ValueError(f"{name}: shape and offsets disagree")
            tensors[name] = np.frombuffer(content, dtype, count, first).reshape(shape)
            end = stop
        if end != content.size:
            raise ValueError(f"expected {end} bytes, found {content.size}")
        if verify and _checksum(path, metadata, start) != metadata.get("crc32"):
            raise ValueError("the checksum does not match the content")
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged or truncated safetensors file: {error}") from error
    return tensors, metadata


def _header(content: pa.Buffer, path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """Entries in the order of their data, the metadata, and where the data begins."""
    if content.size < 8:
        raise ValueError(f"only {content.size} bytes")
    (length,) = struct.unpack("<Q", content[:8].to_pybytes())
    if length > min(content.size - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {content.size}")
    header = json.loads(content[8 : 8 + length].to_pybytes())
    metadata = header.pop("__metadata__", {})
    ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    return ordered, metadata, 8 + length


def _checksum(path: Path, metadata: Mapping[str, str], start: int) -> str:
    """By ordinary reads: through the map, every page would count as this process's memory."""
    check = zlib.crc32(_text({name: text for name, text in metadata.items() if name != "crc32"}))
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            check = zlib.crc32(block, check)
    return f"{check:08x}"


def _text(metadata: Mapping[str, str]) -> bytes:
    return json.dumps(metadata, sort_keys=True).encode()


def _bytes(values: NDArray[Any]) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))
