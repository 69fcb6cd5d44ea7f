"""Numpy arrays to Arrow columns and back, in the exact types that LeRobot and HF datasets expect."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from valueguide.data.schema import Feature
from valueguide.errors import DataError

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hf_metadata(features: dict[str, Feature]) -> dict[str, str]:
    """Schema metadata by which HF `datasets`, its Hub viewer and LeRobot's streaming know the types.

    `LeRobotDataset` passes the types itself; whoever opens the parquet files alone has only this.
    """
    return {"huggingface": json.dumps({"info": {"features": {n: _hf_type(f) for n, f in features.items()}}})}


def _hf_type(feature: Feature) -> dict[str, Any]:
    shape, dtype = tuple(feature["shape"]), feature["dtype"]
    if dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": dtype, "_type": "Value"}
    if shape == (1,):
        return value
    if len(shape) == 1:
        return {"feature": value, "length": shape[0], "_type": "List"}
    return {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}


def image_column(encoded: list[bytes], names: list[str]) -> pa.Array:
    """Encoded pictures as HF `Image` structs {bytes, path}; `names` are informative file names."""
    return pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array(names, pa.string())], fields=list(IMAGE_TYPE)
    )


def array_column(values: NDArray[Any], feature: Feature) -> pa.Array:
    """values (N, *shape), or (N,) where shape is (1,), as a column.

    LeRobot reads shape (1,) as a scalar, one dimension as a fixed-size list and more as nested lists.
    """
    shape = tuple(feature["shape"])
    count = len(values)
    kind = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    flat = pa.array(np.ascontiguousarray(values, dtype=feature["dtype"]).reshape(-1), kind)
    if shape == (1,):
        return flat
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, shape[0])
    column: pa.Array = flat
    for depth in range(len(shape) - 1, -1, -1):
        lists = count * int(np.prod(shape[:depth], dtype=np.int64))
        offsets = np.arange(lists + 1, dtype=np.int32) * shape[depth]
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def to_numpy(column: pa.ChunkedArray | pa.Array, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """The column as an array (N, *shape). Raises DataError naming `where` on nulls or ragged rows."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    count = len(array)
    if array.null_count:
        raise DataError(f"{where}: {array.null_count} of {count} values are missing")
    while isinstance(array, pa.ExtensionArray) or pa.types.is_nested(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    if values.size != count * int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{where}: rows do not all have the shape {shape} that meta/info.json states")
    return values.reshape(count, *shape)
