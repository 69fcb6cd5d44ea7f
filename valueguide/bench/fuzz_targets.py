"""What is fuzzed: the readers of what comes over a network, each with valid messages to begin from."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import msgpack
import numpy as np

from valueguide.bench.fuzz_mutate import mutated_bytes, mutated_tree, packed_or
from valueguide.transport import messages, msgpack_arrays, packing, pictures, remote_mapping, wire
from valueguide.types import Candidates, Decision, Observation, Scores

Sample = tuple[bytes, ...]
_PRELUDE = 4


class Target(Protocol):
    """A reader under test. `read` returns normally, or raises DataError; anything else is a crash."""

    @property
    def modules(self) -> Sequence[ModuleType]:
        """Whose lines guide the search."""

    def valid(self) -> list[Sample]:
        """Messages that are read without an error."""

    def read(self, sample: Sample) -> None:
        """Everything that a receiver does with a message before it acts."""

    def mutate(self, sample: Sample, draw: random.Random) -> Sample:
        """Another message, more or less like this one."""


class WireTarget:
    """Our own wire format: frames, header, arrays, pictures, and the fields of each kind of message."""

    modules = (wire, messages, packing, pictures)
    _readers: dict[str, Callable[[wire.Message], Any]] = {
        messages.HELLO: messages.read_hello,
        messages.DECIDE: messages.read_decide,
        messages.DECISION: messages.read_decision,
        messages.WELCOME: messages.read_welcome,
        messages.REFUSED: messages.read_refusal,
    }

    def valid(self) -> list[Sample]:
        """One of each kind, pictures in each encoding."""
        image = (np.arange(8 * 6 * 3) % 251).astype(np.uint8).reshape(8, 6, 3)
        window = (Observation({"front": image}, np.array([0.1, 0.2], np.float32), "open the drawer", 5),)
        candidates = np.ones((3, 4, 2), np.float32)
        samples: list[list[Any]] = []
        for options in ({}, {"candidates": candidates, "want_candidates": False}, {"guided": False}):
            body, arrays = messages.decide_message(messages.DecideRequest(window, seed=3, k=3, **options))  # type: ignore[arg-type]
            message = wire.Message(messages.DECIDE, 1, 2, 0, 10, 0, 99, None, body, arrays)
            samples += [wire.encode(message, encoding) for encoding in ("raw", "png", "jpeg")]
        hello = messages.body_of(messages.Hello("robot"))
        samples.append(wire.encode(wire.Message(messages.HELLO, seq=1, body=hello)))
        for kind in (messages.PING, messages.BYE):
            samples.append(wire.encode(wire.Message(kind, seq=1)))
        for body, arrays, kind in _replies():
            samples.append(wire.encode(wire.Message(kind, 1, 2, 1, 10, 9, body=body, arrays=arrays)))
        return [tuple(bytes(frame) for frame in frames) for frames in samples]

    def read(self, sample: Sample) -> None:
        message = wire.decode(sample)
        if message.kind in self._readers:
            self._readers[message.kind](message)

    def mutate(self, sample: Sample, draw: random.Random) -> Sample:
        frames = list(sample)
        how = draw.random()
        if not frames or how < 0.02:
            return tuple(draw.randbytes(draw.randrange(80)) for _ in range(draw.randrange(4)))
        if how < 0.65:  # the header's structure
            tree = _tree(frames[0][_PRELUDE:])
            frames[0] = frames[0][:_PRELUDE] + packed_or(mutated_tree(tree, draw), frames[0][_PRELUDE:])
        elif how < 0.95:  # any frame's bytes
            place = draw.randrange(len(frames))
            frames[place] = mutated_bytes(frames[place], draw)
        else:
            place = draw.randrange(len(frames))
            frames[place : place + 1] = draw.choice(([], [frames[place]] * 2, [frames[-1], frames[place]]))
        return tuple(frames)


class _PolicyServerTarget:
    """A reply of somebody else's policy server, down to our actions."""

    modules: Sequence[ModuleType] = (msgpack_arrays,)

    def __init__(
        self, pack: Callable[[Any], bytes], unpack: Callable[[Any, str], Any], wrapped: bool
    ) -> None:
        self._pack, self._unpack, self._wrapped = pack, unpack, wrapped
        actions = [
            remote_mapping.Action("dx", "arm", 1, 0.5),
            remote_mapping.Action("grip", "hand", 0, -1.0, 1.0),
        ]
        self._config = remote_mapping.ServerConfig("openpi", 3, ["x"], actions)

    def valid(self) -> list[Sample]:
        """Replies of several array types and one with more than is needed."""
        samples: list[Sample] = []
        for dtype in ("<f4", "<f8", "<f2", "<i4", "u1"):
            for order in ("C", "F"):
                arm = np.asarray(np.arange(16).reshape(1, 8, 2) % 5, dtype, order=order)  # type: ignore[call-overload]
                reply = {
                    "arm": arm,
                    "hand": arm[:, :, :1],
                    "timing": {"ms": 1.5},
                    "state": [1, None],
                }
                samples.append((self._pack([reply, {}] if self._wrapped else reply),))
        return samples

    def read(self, sample: Sample) -> None:
        reply = self._unpack(sample[0], "reply")
        if self._wrapped:
            reply = reply[0] if isinstance(reply, list) and reply else reply
        with np.errstate(all="ignore"):
            remote_mapping.read_actions(self._config, reply, 1, "reply")

    def mutate(self, sample: Sample, draw: random.Random) -> Sample:
        (message,) = sample
        if draw.random() < 0.6:
            return (packed_or(mutated_tree(_tree(message), draw), message),)
        if draw.random() < 0.05:
            return (draw.randbytes(draw.randrange(100)),)
        return (mutated_bytes(message, draw),)


def _tree(packed: bytes) -> Any:
    """The plain msgpack in a message that may be damaged already."""
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, struct.error):
        return {"kind": packed[:20]}


def _replies() -> list[tuple[Any, dict[str, Any], str]]:
    """A decision, a welcome and a refusal, as (body, arrays, kind)."""
    q = np.array([[0.1, 0.2, 0.1], [0.2, 0.3, 0.0]], np.float32)
    reply = messages.DecideReply(
        actions=np.ones((4, 2), np.float32),
        decision=Decision(1, "argmax", 1, q.min(0), Scores(q), -1, 0.01),
        executed_length=4,
        candidates=Candidates(np.ones((3, 4, 2), np.float32)),
    )
    welcome = messages.Welcome(
        server="word",
        policy=messages.PolicyFacts("p", action_dim=2, horizon=4, cameras={"front": (8, 6)}),
        critic=messages.CriticFacts("c", executed_length=4, cameras={"front": (8, 6)}),
    )
    return [
        (*messages.decision_message(reply), messages.DECISION),
        (messages.body_of(welcome), {}, messages.WELCOME),
        (messages.body_of(messages.Refusal("late", "too late")), {}, messages.REFUSED),
    ]


#: Name -> what is fuzzed.
TARGETS: dict[str, Callable[[], Target]] = {
    "wire": WireTarget,
    "openpi": lambda: _PolicyServerTarget(msgpack_arrays.pack_openpi, msgpack_arrays.unpack_openpi, False),
    "groot": lambda: _PolicyServerTarget(msgpack_arrays.pack_groot, msgpack_arrays.unpack_groot, True),
}
