"""A server in a thread with stand-in models, raw connections to it, and links."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import zmq

from valueguide.serving.engine import Engine, Models
from valueguide.serving.server import Server, ServerSettings
from valueguide.testing.fakes import FakeBatchCritic, FakePolicy
from valueguide.transport.keys import ClientKeys, use_client_keys
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest, decide_message
from valueguide.transport.pending import LinkSettings
from valueguide.transport.wire import NOTHING, Message, decode, encode
from valueguide.types import Candidates, Observation

ANYWHERE = "tcp://127.0.0.1:*"


class FakeGatedPolicy(FakePolicy):
    """Waits in `sample` until the gate is open; `began` is set when it starts to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()

    def sample(self, k: int, seed: int) -> Candidates:
        self.began.set()
        assert self.gate.wait(20)
        return super().sample(k, seed)


@contextlib.contextmanager
def running(
    policy: Any = None, critic: Any = None, settings: ServerSettings | None = None, **options: Any
) -> Iterator[Server]:
    """A server that serves until the block ends."""
    models = Models(policy or FakePolicy(), critic)
    server = Server(Engine(models), settings or ServerSettings(ANYWHERE, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def observation(position: float = 0.0, goal: float = 1.0, stamp_ns: int = 5) -> Observation:
    return Observation({}, np.float32([position, goal]), "reach", stamp_ns)


def request(seed: int = 0, position: float = 0.0, **options: Any) -> DecideRequest:
    return DecideRequest((observation(position),), seed, k=4, **options)


def link(server: Server, **options: Any) -> ServerLink:
    return ServerLink(LinkSettings(server.endpoint, **{"timeout_s": 5.0, **options}))


def said(message: Message) -> dict[str, Any]:
    """What its body holds."""
    return msgspec.msgpack.decode(message.body)


class Raw:
    """A connection that sends whatever it is told to."""

    def __init__(self, endpoint: str, keys: ClientKeys | None = None, identity: bytes = b"") -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        if identity:
            self.socket.routing_id = identity
        if keys is not None:
            use_client_keys(self.socket, keys)
        self.socket.connect(endpoint)
        self.session, self.seq = 0, 0

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def send(self, frames: Sequence[Any]) -> None:
        self.socket.send_multipart(frames)

    def receive(self, wait_s: float = 10.0) -> Message:
        assert self.socket.poll(int(1e3 * wait_s)), "no answer"
        return decode(self.socket.recv_multipart())

    def silent(self, wait_s: float = 0.5) -> bool:
        return not self.socket.poll(int(1e3 * wait_s))

    def message(self, kind: str, asked: DecideRequest | None = None, **fields: Any) -> list[Any]:
        """Frames with the next number."""
        self.seq += 1
        body, arrays = decide_message(asked) if asked else (NOTHING, {})
        fields = {"session": self.session, "seq": self.seq, **fields}
        return encode(Message(kind, body=body, arrays=arrays, **fields))

    def ask(self, kind: str, asked: DecideRequest | None = None, **fields: Any) -> Message:
        self.send(self.message(kind, asked, **fields))
        return self.receive()

    def greet(self) -> Raw:
        self.session = self.ask("hello").session
        return self


def batch_critic() -> FakeBatchCritic:
    return FakeBatchCritic()
