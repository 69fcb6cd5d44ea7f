"""What the link is measured against: raw ZeroMQ, our messages over it without a link, LeRobot's asynchronous
gRPC server, WebSocket with msgpack.

Each server runs in a process of its own on loopback and gets the same content: two pictures, a state and an
instruction there, K chunks back. LeRobot's protocol unpickles what it receives; only here, and only between
processes that this benchmark started itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from valueguide.errors import EnvironmentSetupError
from valueguide.transport.messages import (
    DECIDE,
    DECISION,
    DecideReply,
    DecideRequest,
    decide_message,
    decision_message,
    read_decide,
    read_decision,
)
from valueguide.transport.msgpack_arrays import pack_openpi, unpack_openpi
from valueguide.transport.sockets import poll, receive, send
from valueguide.transport.wire import Message, decode, encode
from valueguide.types import Candidates, Decision, Float32, Observation

ANYWHERE = "tcp://127.0.0.1:*"
HORIZON, ACTIONS, STATE, SIDE = 16, 7, 14, 224
CAMERAS = ("front", "wrist")
_START_S = 180.0
_THREADS = 4  # of LeRobot's own server


@dataclass(frozen=True)
class Content:
    """observation: what goes there. chunks: float32 (K, 16, 7), what comes back.

    request, reply: the frames of our own messages with that content, for raw ZeroMQ to send as they are.
    """

    observation: Observation
    chunks: Float32
    request: tuple[Any, ...] = ()
    reply: tuple[Any, ...] = ()


def observation(seed: int = 0) -> Observation:
    """Two 224-pixel pictures of noise, a state of 14 numbers, an instruction."""
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for name in CAMERAS}
    return Observation(images, rng.random(STATE, np.float32), "put the carrot on the plate")


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[str]:
    """The address that a server in a process of its own tells through its last argument.

    Raises EnvironmentSetupError when it ends, or says nothing for three minutes.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=target, args=(*arguments, there), daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(_START_S):
            raise EnvironmentSetupError(f"bench: {target.__name__} did not start in {_START_S:g} s")
        try:
            address = here.recv()
        except EOFError:
            raise EnvironmentSetupError(f"bench: {target.__name__} ended before it served") from None
        yield address
    finally:
        child.kill()
        child.join()
        here.close()


# -- raw ZeroMQ ----------------------------------------------------------------------------------


def serve_raw(reply: tuple[bytes, ...], told: Any) -> None:
    """The same frames back to whatever comes, and nothing else."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(ANYWHERE)
    told.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    while True:
        identity, *_ = socket.recv_multipart(copy=False)
        socket.send_multipart([identity, *reply], copy=False)


@contextmanager
def raw_zmq(content: Content) -> Iterator[Callable[[], Any]]:
    """One call: our request's frames there, our answer's frames back, unread."""
    with (
        process(serve_raw, tuple(bytes(frame) for frame in content.reply)) as endpoint,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        socket.linger = 0
        socket.connect(endpoint)

        def trip() -> Any:
            socket.send_multipart(content.request, copy=False)
            return socket.recv_multipart(copy=False)

        yield trip


# -- our messages, and nothing else ---------------------------------------------------------------


def ask_message(request: DecideRequest) -> Message:
    return Message(DECIDE, 1, 1, 0, 1, 0, 1, 0, *decide_message(request))


def answer_message(chunks: Float32) -> Message:
    reply = DecideReply(chunks[0], Decision(0, "policy"), 4, "instant", candidates=Candidates(chunks))
    return Message(DECISION, 1, 1, 1, 1, 1, 0, None, *decision_message(reply))


def serve_messages(chunks: Float32, told: Any) -> None:
    """Questions unpacked and checked, answers packed, in one thread: no sessions, deadlines or models."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(ANYWHERE)
    told.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    while True:
        poll((socket,), -1)
        identity, *frames = receive(socket)
        read_decide(decode([frame.buffer for frame in frames]))
        send(socket, (identity, *encode(answer_message(chunks))))


@contextmanager
def messages_zmq(content: Content) -> Iterator[Callable[[], Any]]:
    """One call: our request packed, our answer unpacked and checked. What the codec takes of a whole link."""
    with (
        process(serve_messages, content.chunks) as endpoint,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        socket.linger = 0
        socket.connect(endpoint)
        request = DecideRequest((content.observation,), 0, len(content.chunks), guided=False)

        def trip() -> Any:
            send(socket, encode(ask_message(request)))
            poll((socket,), -1)
            return read_decision(decode([frame.buffer for frame in receive(socket)]))

        yield trip


# -- WebSocket and msgpack -----------------------------------------------------------------------


def serve_websocket(chunks: Float32, told: Any) -> None:
    """openpi's way: one binary message an observation, one back, arrays packed as openpi packs them."""
    from websockets.sync.server import serve

    def handle(connection: Any) -> None:
        for message in connection:
            unpack_openpi(message, "request")
            connection.send(pack_openpi({"actions": chunks}))

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        told.send(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        server.serve_forever()


@contextmanager
def websocket_msgpack(content: Content) -> Iterator[Callable[[], Any]]:
    """One call: float32 (K, 16, 7) for the observation."""
    from websockets.sync.client import connect

    seen = content.observation
    asked: dict[str, Any] = {f"observation/images/{name}": image for name, image in seen.images.items()}
    asked |= {"observation/state": seen.state, "prompt": seen.task}
    options: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "ping_interval": None}
    with process(serve_websocket, content.chunks) as address, connect(address, **options) as connection:

        def trip() -> Any:
            connection.send(pack_openpi(asked))
            return unpack_openpi(connection.recv(), "reply")["actions"]

        yield trip


# -- LeRobot's asynchronous inference ------------------------------------------------------------


def serve_lerobot(chunks: Float32, told: Any) -> None:
    """LeRobot's `PolicyServer` as `serve` runs it, but for the model, which answers at once.

    A chunk's step carries the actions of all K: 16 `TimedAction`s of (K, 7), cut by LeRobot's own code.
    """
    logging.disable(logging.INFO)  # it logs several lines a request; without them it is faster
    os.chdir(tempfile.mkdtemp(prefix="valueguide-bench-"))  # it makes a folder logs/ where it is imported
    from concurrent import futures

    import grpc
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2_grpc

    torch.set_num_threads(1)
    answer = torch.from_numpy(np.ascontiguousarray(chunks.swapaxes(0, 1)))

    class Instant(PolicyServer):
        def _predict_action_chunk(self, observation_t: Any) -> Any:
            self.last_processed_obs = observation_t
            begun, step = observation_t.get_timestamp(), observation_t.get_timestep()
            return self._time_action_chunk(begun, list(answer), step)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=_THREADS))
    policy_server = Instant(PolicyServerConfig(inference_latency=0.0))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(policy_server, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    told.send(f"127.0.0.1:{port}")
    server.wait_for_termination()


@contextmanager
def lerobot_grpc(content: Content) -> Iterator[Callable[[], Any]]:
    """One call as LeRobot's `RobotClient` makes it: the pickled observation in pieces, then `GetActions`."""
    import pickle  # LeRobot's protocol, see the module's first lines

    import grpc
    from lerobot.async_inference.helpers import TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

    seen, step = content.observation, 0
    raw: dict[str, Any] = {f"joint_{i}.pos": float(value) for i, value in enumerate(seen.state)}
    raw |= {**seen.images, "task": seen.task}
    with (
        process(serve_lerobot, content.chunks) as address,
        grpc.insecure_channel(address, grpc_channel_options()) as channel,
    ):
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty(), timeout=_START_S)

        def trip() -> Any:
            nonlocal step
            step += 1
            asked = TimedObservation(time.time(), step, raw, must_go=True)
            pieces = send_bytes_in_chunks(pickle.dumps(asked), services_pb2.Observation)
            stub.SendObservations(pieces)
            timed = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
            return np.stack([action.get_action().numpy() for action in timed], 1)

        yield trip
