"""What messages hold: requests and answers come back, and what is none of them is refused field by field."""

from __future__ import annotations

import dataclasses
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from msgspec import Raw

from valueguide.errors import DataError
from valueguide.transport.messages import (
    DecideReply,
    DecideRequest,
    decide_message,
    decision_message,
    read_decide,
    read_decision,
    read_refusal,
    read_welcome,
)
from valueguide.transport.wire import Message, decode, encode
from valueguide.types import Candidates, Decision, Observation, Scores

sys.path.insert(0, str(Path(__file__).parents[2] / "wire"))
import wire_vectors as vectors


def request(cameras: int = 2) -> DecideRequest:
    images = {f"camera{i}": vectors.picture(64, 48) for i in range(cameras)}
    observation = Observation(images, np.float32([1, 2]), "do it", 5, np.float32([3]))
    return DecideRequest(
        (observation, observation),
        seed=2**62,
        k=8,
        beta=0.5,
        deadline_s=0.25,
        spread_limit=None,
        committed=np.ones((1, 3), np.float32),
        increments=np.float32([[-1, -2, 0], [1, 2, 0]]),
        candidates=np.ones((2, 4, 3), np.float32),
    )


def test_requests_and_answers_come_back() -> None:
    sent = request()
    body, arrays = decide_message(sent)
    got = read_decide(decode([bytes(f) for f in encode(Message("decide", body=body, arrays=arrays))]))
    for name in (
        "seed",
        "k",
        "beta",
        "execute",
        "aggregate",
        "deadline_s",
        "spread_limit",
        "shadow",
        "guided",
    ):
        assert getattr(got, name) == getattr(sent, name), name
    assert np.array_equal(got.committed, sent.committed)
    assert np.array_equal(got.increments, sent.increments)
    assert np.array_equal(got.candidates, sent.candidates)
    for ours, theirs in zip(sent.window, got.window, strict=True):
        assert (ours.task, ours.stamp_ns) == (theirs.task, theirs.stamp_ns)
        assert np.array_equal(ours.state, theirs.state)
        assert np.array_equal(ours.environment_state, theirs.environment_state)
        assert all(np.array_equal(ours.images[name], theirs.images[name]) for name in ours.images)
    decision = Decision(1, "argmax", 1, np.float32([1, 2]), Scores(np.float32([[1, 2]])), -1, 0.5)
    reply = DecideReply(np.ones((4, 3), np.float32), decision, 4, "p", "c", Candidates(sent.candidates))
    body, arrays = decision_message(reply)
    back = read_decision(decode([bytes(f) for f in encode(Message("decision", body=body, arrays=arrays))]))
    assert (back.decision.index, back.decision.reason, back.decision.latency_s) == (1, "argmax", 0.5)
    assert np.array_equal(back.decision.scores.q, decision.scores.q)
    assert np.array_equal(back.candidates.actions, sent.candidates)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], "body: expected object, found array"),
        ({"seed": 1}, "body: object missing required field window"),
        ({"seed": 1, "window": []}, r"window: expected array of length >= 1, found \[\]"),
        ({"seed": 1, "window": [{"task": 3}]}, r"window\[0\].task: expected str, found int"),
        ({"k": 0}, "k: expected int >= 1, found 0"),
        ({"k": True}, "k: expected int, found bool"),
        ({"k": 2.0}, "k: expected int, found float"),
        ({"k": None}, "k: expected int, found None"),
        ({"seed": 1 << 63}, "seed: expected int <= 9223372036854775807, found 9223372036854775808"),
        ({"beta": float("nan")}, "beta: expected float >= 0.0, found nan"),
        ({"beta": "1"}, "beta: expected float, found str"),
        ({"beta": True}, "beta: expected float, found bool"),
        ({"beta": -1}, "beta: expected float >= 0.0, found -1"),
        ({"deadline_s": float("nan")}, "deadline_s: expected float > 0.0, found nan"),
        ({"deadline_s": 0.0}, "deadline_s: expected float > 0.0, found 0.0"),
        ({"spread_limit": "some"}, "spread_limit: expected a number of at least 0, 'calibrated' or nil"),
        ({"spread_limit": -1.0}, "spread_limit: expected float >= 0.0, found -1.0"),
        ({"aggregate": b"min"}, "aggregate: expected str, found bytes"),
        ({"guided": 1}, "guided: expected bool, found int"),
    ],
)
def test_what_is_no_request_is_refused(body: Any, says: str) -> None:
    message = vectors.examples()["decide_raw"][0]
    if isinstance(body, dict) and not body.keys() & {"window"} and body != {"seed": 1}:
        body = vectors.plain(message.body) | body
    with pytest.raises(DataError, match=says):
        read_decide(msgspec.structs.replace(message, body=vectors.packed(body)))


@pytest.mark.parametrize("size", [[0, 5], [5], [1 << 17, 5], ["5", 5], 5])
def test_a_welcome_with_a_camera_that_cannot_be_is_refused(size: Any) -> None:
    policy = {"version": "p", "action_dim": 2, "horizon": 3, "cameras": {"front": size}}
    with pytest.raises(DataError, match="policy.cameras"):
        read_welcome(Message("welcome", body=vectors.packed({"server": "s", "policy": policy})))


@pytest.mark.parametrize("read", [read_decide, read_decision, read_refusal])
def test_what_is_nested_as_deeply_as_can_be_is_refused_like_anything_else(read: Any) -> None:
    """A value that can be unpacked, only just, and not be shown; behind a wrong one of the same name."""
    wrong = {"window": [[]] * 9, "index": -1, "text": 5}
    for depth in range(900, 1600):
        body = b"\xdf" + struct.pack(">I", 2 * len(wrong))
        body += b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in wrong.items())
        body += b"".join(msgpack.packb(name) + b"\x91" * depth + b"\x90" for name in wrong)
        with pytest.raises(DataError):
            read(Message("x", body=Raw(body)))


def test_unknown_fields_of_a_body_are_skipped_whatever_they_are() -> None:
    message = vectors.examples()["decide_raw"][0]
    new = {"new": b"bytes", "time": msgpack.Timestamp(1), "list": [[[[[[[[[{"a": 1}]]]]]]]]]}
    body = Raw(msgpack.packb(vectors.plain(message.body) | new))
    assert read_decide(msgspec.structs.replace(message, body=body)).seed == 7


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"seed": -1}, {"beta": -1.0}, {"spread_limit": "some"}, {"window": ()}]
)
def test_a_request_that_would_be_refused_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        decide_message(dataclasses.replace(request(), **wrong))
