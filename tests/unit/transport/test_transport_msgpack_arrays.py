"""Codecs of other people's policy servers: what they write is read, what they could be tricked by is not."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from valueguide.errors import DataError
from valueguide.testing import fake_groot_server as groot
from valueguide.testing import fake_openpi_server as openpi
from valueguide.transport.msgpack_arrays import pack_groot, pack_openpi, unpack_groot, unpack_openpi

_TYPES = ("b1", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
_ARRAYS = hnp.arrays(
    st.sampled_from(_TYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | _ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_MODEST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_CODECS = {
    "openpi": (pack_openpi, unpack_openpi, openpi.packed, openpi.unpacked),
    "groot": (pack_groot, unpack_groot, groot.packed, groot.unpacked),
}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(
            first, second, equal_nan=first.dtype.kind == "f"
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second or (first != first and second != second)


@pytest.mark.parametrize("name", _CODECS)
@_MODEST
@given(value=_VALUES)
def test_both_ways_against_the_servers_own_format(name: str, value: Any) -> None:
    pack, unpack, theirs_pack, theirs_unpack = _CODECS[name]
    assert _same(value, unpack(theirs_pack(value), "reply"))
    assert _same(value, theirs_unpack(pack(value)))


def test_an_openpi_array_byte_by_byte() -> None:
    """By hand from the msgpack specification: binary keys, bin8 data, fixstr type, fixarray shape."""
    expected = (
        b"\x81\xa1a\x84"  # {"a": a map of four
        b"\xc4\x0b__ndarray__\xc3"
        b"\xc4\x04data\xc4\x04\x00\x00\x80\x3f"  # 1.0 as float32, little-endian
        b"\xc4\x05dtype\xa3<f4"
        b"\xc4\x05shape\x91\x01"
    )
    assert pack_openpi({"a": np.array([1], "<f4")}) == expected
    assert unpack_openpi(expected, "reply")["a"].tolist() == [1.0]


def test_scalars_and_columns_first_are_read() -> None:
    assert unpack_openpi(openpi.packed({"n": np.float32(0.5)}), "reply") == {"n": np.float32(0.5)}
    by_column = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert unpack_groot(groot.packed(by_column), "reply").tolist() == by_column.tolist()
    config = {"__ModalityConfig_class__": True, "as_json": {"modality_keys": ["front"]}}
    assert unpack_groot(msgpack.packb({"video": config}), "reply") == {"video": {"modality_keys": ["front"]}}


def _openpi_claim(**changed: Any) -> bytes:
    good = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]}
    return msgpack.packb({key.encode(): value for key, value in (good | changed).items()})


def _groot_claim(content: Any) -> bytes:
    return msgpack.packb({"__ndarray_class__": True, "as_npy": content})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (_openpi_claim(dtype="|O"), "array type: expected one of"),
        (_openpi_claim(dtype=">f4"), "array type"),
        (_openpi_claim(dtype="<U2"), "array type"),
        (_openpi_claim(dtype="<c8", shape=[1]), "array type"),
        (_openpi_claim(dtype="f4,f4", shape=[1]), "array type"),
        (_openpi_claim(dtype=["<f4"]), "array type"),
        (_openpi_claim(shape=[1 << 40, 1 << 20]), "array shape"),
        (_openpi_claim(shape=[1 << 30, 1 << 30]), f"expected {4 << 60}, found 8"),
        (_openpi_claim(shape=[-2]), "array shape"),
        (_openpi_claim(shape=[True, 2]), "array shape"),
        (_openpi_claim(shape=[1] * 9), "array shape"),
        (_openpi_claim(shape="2"), "array shape"),
        (_openpi_claim(shape=[3]), "expected 12, found 8"),
        (_openpi_claim(data="text"), "array: expected bytes"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), "scalar"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1 << 40, b"dtype": "<i4"}), "cannot be read"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "cannot be read"),
        (msgpack.packb({1: 2}), "cannot be read"),
        (b"\x91" * 5000, "cannot be read"),
        (b"\xdd\xff\xff\xff\xff", "cannot be read"),
        (b"\xc6\xff\xff\xff\xff", "cannot be read"),
        (b"", "cannot be read"),
        (b"\x01\x01", "cannot be read"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(message: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        unpack_openpi(message, "reply")
    assert str(caught.value).startswith("reply: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (groot.npy(np.array([{}], dtype=object), pickled=True), "array type"),
        (groot.claimed_npy("|O", (1,), b"\x80\x04N."), "array type"),
        (groot.claimed_npy("<f4", (1 << 40, 1 << 20), b""), "array shape"),
        (groot.claimed_npy("<f4", (1 << 30, 2), b"1234"), f"expected {8 << 30}, found 4"),
        (groot.claimed_npy("<f4", (1,), b"12345"), "expected 4, found 5"),
        (groot.npy(np.zeros(1, [("a", "<f4")])), r"expected a \.npy file"),
        (groot.npy(np.array("text")), "array type"),
        (b"", r"expected a \.npy file"),
        (b"PK\x03\x04", r"expected a \.npy file"),
        (b"\x93NUMPY\x03\x00\x01\x00{", r"expected a \.npy file"),
        (b"\x93NUMPY\x01\x00\x01\x00{", r"expected a \.npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, r"expected a \.npy file"),
        (groot.npy(np.zeros(2))[:40], r"expected a \.npy file"),
        ("text", r"expected a \.npy file"),
        (None, r"expected a \.npy file"),
    ],
)
def test_a_npy_file_is_numbers_or_refused(content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        unpack_groot(_groot_claim(content), "reply")


@pytest.mark.parametrize("value", [np.array([{}], dtype=object), np.array(["a"]), {1}, object(), 1 << 70])
def test_what_cannot_be_sent_is_said(value: Any) -> None:
    for pack in (pack_openpi, pack_groot):
        with pytest.raises(DataError, match="request: "):
            pack({"a": value})


@pytest.mark.parametrize("name", _CODECS)
@_MODEST
@given(data=st.data())
def test_any_bytes_are_a_value_or_one_clear_error(name: str, data: st.DataObject) -> None:
    _, unpack, theirs_pack, _ = _CODECS[name]
    message = bytearray(theirs_pack(data.draw(_VALUES)))
    for _ in range(data.draw(st.integers(1, 4))):
        if message:
            message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message = message[: data.draw(st.integers(0, len(message)))]
    tracemalloc.start()
    try:
        unpack(bytes(message), "reply")
    except DataError as error:
        assert str(error).startswith("reply: ") and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000 + 200 * len(message)
