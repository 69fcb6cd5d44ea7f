"""The example messages of the wire format: written here as values, kept as files for other implementations.

`uv run python tests/wire/wire_vectors.py` writes tests/wire/vectors anew; a change there is a new version.
A .bin file holds the frames one after the other, each after its length as 4 bytes, little-endian.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from valueguide.transport.packing import pack
from valueguide.transport.wire import DTYPES, Message, encode

FOLDER = Path(__file__).parent / "vectors"


def picture(height: int, width: int) -> np.ndarray[Any, Any]:
    """A smooth RGB picture, uint8 (height, width, 3), which JPEG keeps to within a few levels."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def packed(body: Any) -> msgspec.Raw:
    """A message's body from plain values, whatever they are."""
    return msgspec.Raw(pack(body))


def plain(body: msgspec.Raw) -> Any:
    """The values in a message's body."""
    return msgspec.msgpack.decode(body)


def examples() -> dict[str, tuple[Message, str]]:
    """Name -> (message, how its pictures travel)."""
    observation = {
        "0/state": np.array([0.5, -1.25, 3.0], np.float32),
        "0/environment_state": np.array([1e-3, float("inf")], np.float32),
        "0/images/top": picture(8, 12),
    }
    decide = {
        "seed": 7,
        "k": 2,
        "beta": 0.0,
        "execute": 2,
        "aggregate": "min",
        "spread_limit": "calibrated",
        "shadow": False,
        "guided": True,
        "absolute": False,
        "window": [{"task": "put the carrot on the plate", "stamp_ns": 1_700_000_000_000_000_000}],
        "want_candidates": True,
    }
    request = Message(
        "decide", 2**62 + 1, 3, 0, 1000, 0, 500_001_000, -250, body=packed(decide), arrays=observation
    )
    candidates = np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 8
    answer = Message(
        "decision",
        2**62 + 1,
        5,
        3,
        2000,
        1500,
        body=packed(
            {
                "index": 1,
                "reason": "argmax",
                "preferred": 1,
                "seed": -1,
                "latency_s": 0.0625,
                "executed_length": 2,
                "policy_version": "p1",
                "critic_version": "c1",
                "policy_s": 0.03125,
                "critic_s": 0.015625,
                "queue_s": 0.0,
                "batch": 1,
            }
        ),
        arrays={
            "actions": candidates[1],
            "values": np.array([0.25, 0.5], np.float32),
            "q": np.array([[0.25, 0.5], [0.375, 0.75]], np.float32),
            "candidates": candidates,
        },
    )
    types = {
        "bytes": np.arange(5, dtype=np.uint8),
        "whole": np.array([[-1, 2**40]], np.int64),
        "single": np.float32(0.1).reshape(()),
        "double": np.array([0.1, -0.0], np.float64),
        "none": np.zeros((0, 4), np.float32),
    }
    ping = Message("ping", session=5, seq=2, sent_ns=1000)
    return {
        "ping": (ping, "raw"),
        "decide_raw": (request, "raw"),
        "decide_png": (request, "png"),
        "decide_jpeg": (request, "jpeg"),
        "decision": (answer, "raw"),
        "refused": (
            Message("refused", 5, 9, 2, body=packed({"code": "late", "text": "zu spät: ½ s"})),
            "raw",
        ),
        "array_types": (
            Message("test", body=packed({"null": None, "list": [1, -2, 0.5]}), arrays=types),
            "raw",
        ),
    }


def join(frames: list[Any]) -> bytes:
    """Frames as one file."""
    return b"".join(struct.pack("<I", len(frame)) + bytes(frame) for frame in frames)


def split(content: bytes) -> list[bytes]:
    """The frames of a file."""
    frames, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        frames.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def described(message: Message, pictures: str) -> dict[str, Any]:
    """What the .json file beside a .bin says: every field, arrays as hexadecimal little-endian bytes."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    scalars = ("kind", "session", "seq", "answers", "sent_ns", "received_ns", "deadline_ns", "offset_ns")
    return {
        "pictures": pictures,
        **{name: getattr(message, name) for name in scalars},
        "body": plain(message.body),
        "arrays": [
            {"name": n, "dtype": names[a.dtype], "shape": list(a.shape), "hex": a.tobytes().hex()}
            for n, a in message.arrays.items()
        ],
    }


def restored(facts: dict[str, Any]) -> Message:
    """The message that a .json file describes."""
    fields = {key: value for key, value in facts.items() if key not in ("pictures", "body", "arrays")}
    arrays = {
        a["name"]: np.frombuffer(bytes.fromhex(a["hex"]), DTYPES[a["dtype"]]).reshape(a["shape"])
        for a in facts["arrays"]
    }
    return Message(**fields, body=packed(facts["body"]), arrays=arrays)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (message, pictures) in examples().items():
        (FOLDER / f"{name}.bin").write_bytes(join(encode(message, pictures)))
        (FOLDER / f"{name}.json").write_text(json.dumps(described(message, pictures), indent=1) + "\n")


if __name__ == "__main__":
    main()
