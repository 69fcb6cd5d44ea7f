"""The link and the server measured: a round trip against raw ZeroMQ, and what sharing a pass gains."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import zmq

from valueguide.bench.measure import medians
from valueguide.serving.engine import Engine, Models, blank_observation
from valueguide.serving.server import Server, ServerSettings
from valueguide.serving.sessions import Job
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings
from valueguide.types import Candidates, Observation

_ANYWHERE = "tcp://127.0.0.1:*"
_HORIZON, _ACTIONS, _STATE = 16, 7, 14
_SIDE = 224


class InstantPolicy:
    """Answers the same chunks at once: what is left is the link and the server."""

    version, horizon, action_dim, history, state_dim = "instant", _HORIZON, _ACTIONS, 1, _STATE
    cameras = {"front": (_SIDE, _SIDE), "wrist": (_SIDE, _SIDE)}
    needs_environment_state = False

    def __init__(self, k: int) -> None:
        self._candidates = Candidates(np.zeros((k, _HORIZON, _ACTIONS), np.float32))

    def reset(self) -> None: ...

    def observe(self, observation: Observation) -> None: ...

    def sample(self, k: int, seed: int) -> Candidates:
        return self._candidates


def _serve(k: int, told: Any) -> None:
    server = Server(Engine(Models(InstantPolicy(k))), ServerSettings(_ANYWHERE))
    told.send(server.endpoint)
    server.run()


def _echo(reply_bytes: int, told: Any) -> None:
    """The same numbers of bytes each way, and nothing else."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(_ANYWHERE)
    told.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    reply = bytes(reply_bytes)
    while True:
        identity, *_ = socket.recv_multipart(copy=False)
        socket.send_multipart([identity, reply], copy=False)


@contextmanager
def _process(target: Callable[..., None], argument: int) -> Iterator[str]:
    """The endpoint of a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(argument, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def round_trip(k: int = 16, repeats: int = 200) -> dict[str, Any]:
    """Seconds from asking to the decision for two 224-pixel cameras and K candidates back, over loopback.

    Against raw ZeroMQ send and receive of the same bytes between two processes; medians of runs that take
    turns.
    """
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8) for name in InstantPolicy.cameras}
    observation = Observation(images, np.zeros(_STATE, np.float32), "task")
    request = DecideRequest((observation,), 0, k, guided=False, want_candidates=True)
    reply_bytes = 4 * (k + 1) * _HORIZON * _ACTIONS
    with (
        _process(_serve, k) as ours,
        _process(_echo, reply_bytes) as raw,
        ServerLink(LinkSettings(ours, timeout_s=60.0)) as link,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        link.connect(60.0)
        socket.connect(raw)
        frames = [images[name].reshape(-1).data for name in images]

        def raw_trip() -> None:
            socket.send_multipart(frames, copy=False)
            socket.recv_multipart(copy=False)

        taken = medians({"ours": lambda: link.ask(request).result(), "raw_zmq": raw_trip}, repeats, 10)
    return {"seconds": taken, "ratio": taken["ours"] / taken["raw_zmq"], "repeats": repeats}


def batching(policy: Any, critic: Any, k: int, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Decisions a second: the requests of B robots in one pass, against one after another.

    sizes: values of B. Medians of runs that take turns; gain > 1 means that sharing a pass is faster.
    """
    models = Models(policy, critic)
    engine, observation = Engine(models), blank_observation(models)
    execute = critic.executed_length

    def job(seed: int) -> Job:
        asked = DecideRequest((observation,), seed, k, execute=execute)
        return Job(b"", 0, 0, asked, time.perf_counter(), 0)

    def answer(jobs: list[Job]) -> None:
        for outcome in engine.answer(jobs):
            if isinstance(outcome, Exception):
                raise outcome

    def one_by_one(size: int) -> None:
        for seed in range(size):
            answer([job(seed)])

    def together(size: int) -> None:
        answer([job(seed) for seed in range(size)])

    out: dict[str, Any] = {}
    for size in sizes:
        ways = {"together": partial(together, size), "one_by_one": partial(one_by_one, size)}
        taken = medians(ways, repeats)
        out[f"robots={size}"] = {
            "decisions_per_s": {name: size / seconds for name, seconds in taken.items()},
            "gain": taken["one_by_one"] / taken["together"],
        }
    return out
