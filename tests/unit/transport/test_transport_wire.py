"""The wire format: the published examples byte for byte, round trips, and that nothing wrong gets through."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from valueguide.errors import DataError, ValueguideError
from valueguide.transport.messages import (
    read_decide,
    read_decision,
    read_hello,
    read_refusal,
    read_welcome,
)
from valueguide.transport.packing import pack
from valueguide.transport.wire import Limits, Message, decode, encode

sys.path.insert(0, str(Path(__file__).parents[2] / "wire"))
import wire_vectors as vectors

NAMES = sorted(vectors.examples())


def same(a: Message, b: Message) -> None:
    for name in ("kind", "session", "seq", "answers", "sent_ns", "received_ns", "deadline_ns", "offset_ns"):
        assert getattr(a, name) == getattr(b, name), name
    assert vectors.plain(a.body) == vectors.plain(b.body)
    assert list(a.arrays) == list(b.arrays)
    for name, array in a.arrays.items():
        other = b.arrays[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes(), name


# -- the published examples ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_files_decode_to_what_they_describe(name: str) -> None:
    facts = json.loads((vectors.FOLDER / f"{name}.json").read_text())
    message = decode(vectors.split((vectors.FOLDER / f"{name}.bin").read_bytes()))
    wanted = vectors.restored(facts)
    if facts["pictures"] == "jpeg":
        image, original = message.arrays["0/images/top"], wanted.arrays["0/images/top"]
        assert np.abs(image.astype(int) - original.astype(int)).max() <= 12
        wanted = msgspec.structs.replace(wanted, arrays={**wanted.arrays, "0/images/top": image})
    same(message, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("_")[-1] not in ("png", "jpeg")])
def test_the_described_message_encodes_to_the_file_byte_for_byte(name: str) -> None:
    """Compressed pictures are left out: their bytes depend on the version of zlib and libjpeg."""
    facts = json.loads((vectors.FOLDER / f"{name}.json").read_text())
    frames = encode(vectors.restored(facts), facts["pictures"])
    assert vectors.join(frames) == (vectors.FOLDER / f"{name}.bin").read_bytes()


def test_a_ping_worked_out_by_hand() -> None:
    fixstr = lambda text: bytes([0xA0 | len(text)]) + text.encode()  # noqa: E731
    header = bytes([0x8A]) + fixstr("kind") + fixstr("ping") + fixstr("session") + b"\x05"
    header += fixstr("seq") + b"\x02" + fixstr("answers") + b"\x00" + fixstr("sent_ns") + b"\xcd\x03\xe8"
    header += fixstr("received_ns") + b"\x00" + fixstr("deadline_ns") + b"\x00"
    header += fixstr("offset_ns") + b"\xc0" + fixstr("body") + b"\x80" + fixstr("arrays") + b"\x90"
    assert encode(Message("ping", session=5, seq=2, sent_ns=1000)) == [b"VGW\x01" + header]


# -- round trips -----------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**63 - 1)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ARRAYS = st.sampled_from(["u1", "<i8", "<f4", "<f8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
MESSAGES = st.builds(
    Message,
    kind=st.text(min_size=1, max_size=20),
    session=NUMBERS,
    seq=NUMBERS,
    answers=NUMBERS,
    sent_ns=NUMBERS,
    received_ns=NUMBERS,
    deadline_ns=NUMBERS,
    offset_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
    body=st.dictionaries(st.text(max_size=8), VALUES, max_size=5).map(vectors.packed),
    arrays=st.dictionaries(st.text(min_size=1, max_size=20), ARRAYS, max_size=4),
)


@given(MESSAGES, st.sampled_from(["raw", "png"]))
@settings(max_examples=60, deadline=None)
def test_every_message_comes_back(message: Message, pictures: str) -> None:
    same(decode([bytes(frame) for frame in encode(message, pictures)]), message)


def test_large_arrays_are_neither_copied_when_sent_nor_when_received() -> None:
    array = np.zeros((64, 64, 4), np.float32)
    frames = encode(Message("test", arrays={"a": array}))
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), array)
    content = bytes(frames[1])
    got = decode([frames[0], content]).arrays["a"]
    assert np.shares_memory(got, np.frombuffer(content, np.uint8)) and not got.flags.writeable


# -- what is refused -------------------------------------------------------------------------------


def with_header(**changes: Any) -> bytes:
    header = {"kind": "ping", "body": {}, "arrays": []} | changes
    return b"VGW\x01" + msgpack.packb(header)


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults() -> None:
    entry = {"name": "a", "dtype": "u1", "shape": [2], "new": 1}
    message = decode([with_header(new={"x": [1]}, arrays=[entry]), b"ab"])
    assert message.seq == 0 and message.offset_ns is None and bytes(message.arrays["a"]) == b"ab"


def test_another_version_is_refused_in_one_clear_line() -> None:
    with pytest.raises(DataError, match="wire version: expected 1, found 2. Install the same version"):
        decode([b"VGW\x02" + b"what a later version may look like"])


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "a header"),
        ([b""], "first bytes"),
        ([pickle.dumps({"kind": "ping"})], "first bytes"),
        ([b"VGW\x01" + pickle.dumps({"kind": "ping"})], "header: object missing"),
        ([with_header(), b""], "array frames: expected 0, found 1"),
        ([with_header(kind="")], "kind"),
        ([with_header(seq=-1)], "seq"),
        ([with_header(seq=True)], "seq"),
        ([with_header(seq=1.0)], "seq"),
        ([with_header(seq=1 << 63)], "seq: expected int <= 9223372036854775807, found 9223372036854775808"),
        ([with_header(body=[])], "body: expected a map"),
        ([with_header(body=5)], "body: expected a map"),
        ([with_header(session="1")], "session: expected int, found str"),
        ([with_header(offset_ns=0.5)], "offset_ns: expected int . null, found float"),
        ([b"VGW\x01" + msgpack.packb({"seq": 1})], "header: object missing required field kind"),
        ([b"VGW\x01" + msgpack.packb({"kind": "x", 1: 2})], "expected str, found int"),
        ([b"VGW\x01\x81\xa4kind\xa2\xff\xff"], "msgpack"),
        ([with_header() + b"\x00"], "msgpack"),
        ([with_header()[:-1]], "msgpack"),
        ([with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [0, 1 << 40]}]), b""], "elements"),
        ([with_header(arrays=[{"name": "a", "dtype": "O", "shape": [1]}]), b"12345678"], "dtype"),
        ([with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [2]}]), b"1234"], "bytes: expected 8"),
        ([with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [-1]}]), b"1234"], "shape"),
        ([with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [1] * 5}]), b"1234"], "shape"),
        ([with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [1 << 20] * 4}]), b""], "elements"),
        ([with_header(arrays=[{"name": "a", "dtype": "u1", "shape": [1]}] * 2), b"1", b"2"], "twice"),
        (
            [with_header(arrays=[{"name": "a", "dtype": "f4", "shape": [1, 1, 3], "encoding": "png"}]), b""],
            "png",
        ),
    ],
)
def test_what_is_no_message_is_refused(frames: list[bytes], says: str) -> None:
    with pytest.raises(DataError, match=says):
        decode(frames)


def test_too_much_is_refused() -> None:
    limits = Limits(header=300, frames=2, elements=100, total=600)
    small = {"a": np.zeros(10, np.uint8)}
    assert decode([bytes(f) for f in encode(Message("x", arrays=small), limits=limits)], limits).kind == "x"
    for message in (
        Message("x", body=vectors.packed({"text": "x" * 300})),
        Message("x", arrays={"a": np.zeros(101, np.uint8)}),
        Message("x", arrays={"a": np.zeros(100), "b": np.zeros(1)}),
        Message("x", arrays={name: np.zeros(1) for name in "abc"}),
    ):
        with pytest.raises(DataError):
            encode(message, limits=limits)
        with pytest.raises(DataError):
            decode([bytes(f) for f in encode(message)], limits)


@pytest.mark.parametrize(
    "message",
    [
        Message(""),
        Message("x" * 129),
        Message("x", seq=-1),
        Message("x", seq=1 << 63),
        Message("x", session=True),
        Message("x", sent_ns=0.5),  # type: ignore[arg-type]
        Message("x", offset_ns=-(1 << 63) - 1),
        Message("x", arrays={"": np.zeros(1)}),
        Message("x", arrays={"n" * 129: np.zeros(1)}),
        Message("x", arrays={"a": np.zeros((1, 1, 1, 1, 1))}),
        Message("x", arrays={str(number): np.zeros(1) for number in range(65)}),
    ],
)
def test_what_a_receiver_would_refuse_is_not_sent(message: Message) -> None:
    for _ in range(2):  # what is remembered of arrays changes nothing
        with pytest.raises(DataError):
            encode(message)


def test_what_is_packed_as_something_else_is_taken_as_that() -> None:
    body = {"a": (1, [2.5, None]), "b": np.float64(0.5), "c": {}}
    sent = decode(
        [
            bytes(f)
            for f in encode(Message("x", body=vectors.packed(body), arrays={"a": np.arange(3, dtype=">f4")}))
        ]
    )
    assert vectors.plain(sent.body) == {"a": [1, [2.5, None]], "b": 0.5, "c": {}}
    assert sent.arrays["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "wrong", [{"shape": [True, 3]}, {"shape": [1.0, 3]}, {"shape": [[1], 3]}, {"name": ["a"]}]
)
def test_an_entry_that_looks_like_one_that_is_remembered_is_refused(wrong: dict[str, Any]) -> None:
    entry = {"name": "a", "dtype": "f4", "shape": [1, 3], "encoding": "raw"}

    def frames(table: list[dict[str, Any]]) -> list[bytes]:
        return [b"VGW\x01" + msgpack.packb({"kind": "x", "arrays": table}), bytes(12)]

    assert decode(frames([entry])).arrays["a"].shape == (1, 3)
    with pytest.raises(DataError):
        decode(frames([entry | wrong]))
    small = Limits(elements=2)
    with pytest.raises(DataError):
        decode(frames([entry]), small)


def test_objects_and_strings_cannot_be_sent() -> None:
    for array in (
        np.array([None]),
        np.array(["a"]),
        np.zeros(1, np.complex64),
        np.zeros(1, ">f4")[:0].astype("M8"),
    ):
        with pytest.raises(DataError, match="dtype"):
            encode(Message("x", arrays={"a": array}))
    with pytest.raises(DataError, match="cannot be packed"):
        pack({"a": object()})


def picture_message(encoding: str, data: bytes, shape: tuple[int, ...]) -> list[bytes]:
    entry = {"name": "a", "dtype": "u1", "shape": list(shape), "encoding": encoding}
    return [with_header(arrays=[entry]), data]


def test_a_picture_that_is_larger_than_it_says_is_not_decoded() -> None:
    """A 30000 x 30000 PNG of one colour has 3 MB, and would take 2.7 GB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = zlib.compress(bytes(30_001 * 3), 9)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"picture: expected \(8, 8\), found \(30000, 30000\)"):
        decode(picture_message("png", bomb, (8, 8, 3)))
    with pytest.raises(DataError, match="elements"):
        decode(picture_message("png", bomb, (30_000, 30_000, 3)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_jpeg_and_png_that_a_camera_does_not_make_are_refused() -> None:
    image = vectors.picture(16, 16)
    progressive = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    grey = cv2.imencode(".png", image[..., 0])[1].tobytes()
    plain = [bytes(f) for f in encode(Message("x", arrays={"a": image}), "jpeg")][1]
    doubled = plain[:-2] + plain[2:]  # a second picture's header behind the first one's pixels
    for encoding, data in (("jpeg", progressive), ("png", grey), ("jpeg", doubled), ("png", plain)):
        with pytest.raises(DataError):
            decode(picture_message(encoding, data, (16, 16, 3)))
    with pytest.raises(DataError, match=r"expected \(16, 8\), found \(16, 16\)"):
        decode(picture_message("jpeg", plain, (16, 8, 3)))
    assert decode(picture_message("jpeg", plain, (16, 16, 3))).arrays["a"].shape == (16, 16, 3)


# -- mutations -------------------------------------------------------------------------------------

SEEDS = [[bytes(f) for f in encode(message, how)] for message, how in vectors.examples().values()]


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A valid message with some bytes changed, cut out, doubled or moved, or frames dropped or repeated."""
    frames = list(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        number = draw(st.integers(0, max(len(frames) - 1, 0)))
        if not frames:
            break
        data, how = frames[number], draw(st.sampled_from(["set", "cut", "insert", "drop", "repeat", "swap"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if how == "set" and data:
            frames[number] = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif how == "cut":
            frames[number] = data[:at] + data[at + draw(st.integers(1, 64)) :]
        elif how == "insert":
            frames[number] = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
        elif how == "drop":
            del frames[number]
        elif how == "repeat":
            frames.insert(number, data)
        else:
            other = draw(st.integers(0, len(frames) - 1))
            frames[number], frames[other] = frames[other], frames[number]
    return frames


def read_all(frames: list[bytes]) -> None:
    """As every receiver does; any ValueguideError is a fine answer, anything else fails the test."""
    try:
        message = decode(frames)
    except ValueguideError:
        return
    for read in (read_hello, read_decide, read_decision, read_welcome, read_refusal):
        with contextlib.suppress(ValueguideError):
            read(message)


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_any_change_of_bytes_gives_an_error_of_ours_or_a_valid_message(frames: list[bytes]) -> None:
    read_all(frames)


@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_so_do_random_bytes(frames: list[bytes], ours: bool) -> None:
    read_all([b"VGW\x01" + frames[0], *frames[1:]] if ours and frames else frames)


@given(
    st.dictionaries(
        st.sampled_from(sorted(vectors.plain(vectors.examples()["decide_raw"][0].body))), VALUES, max_size=4
    )
)
@settings(max_examples=100, deadline=None)
def test_so_do_wrong_values_in_a_request(changes: dict[str, Any]) -> None:
    message = vectors.examples()["decide_raw"][0]
    with contextlib.suppress(ValueguideError):
        read_decide(
            Message(
                "decide", body=vectors.packed(vectors.plain(message.body) | changes), arrays=message.arrays
            )
        )


@pytest.mark.parametrize(
    "head",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdc\x01\x00" * 9000],
    ids=["list", "map", "text", "lists in lists"],
)
@pytest.mark.parametrize("place", ["", "kind", "body", "arrays", "new"])
def test_a_header_that_announces_gigabytes_allocates_none(head: bytes, place: str) -> None:
    tracemalloc.start()
    with pytest.raises(DataError):
        decode([b"VGW\x01" + (b"\x81" + msgpack.packb(place) if place else b"") + head])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
