"""The link and the server measured: round trips against other transports, robots at once, shared passes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np

from valueguide.bench.measure import medians, turns
from valueguide.bench.transport_baselines import (
    ACTIONS,
    ANYWHERE,
    CAMERAS,
    HORIZON,
    SIDE,
    STATE,
    Content,
    answer_message,
    ask_message,
    lerobot_grpc,
    messages_zmq,
    observation,
    process,
    raw_zmq,
    websocket_msgpack,
)
from valueguide.serving.engine import Engine, Models, blank_observation
from valueguide.serving.server import Server, ServerSettings
from valueguide.serving.sessions import Job
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings
from valueguide.transport.wire import encode
from valueguide.types import Candidates, Observation

_TIMEOUT_S = 60.0
#: A stand-in for a policy on a GPU: seconds of a pass with one robot, and of each further row of it.
PASS_S, ROW_S = 0.040, 0.004


class InstantPolicy:
    """Answers the same chunks at once: what is left is the link and the server."""

    version, horizon, action_dim, history, state_dim = "instant", HORIZON, ACTIONS, 1, STATE
    cameras = dict.fromkeys(CAMERAS, (SIDE, SIDE))
    needs_environment_state = False

    def __init__(self, k: int) -> None:
        self._candidates = Candidates(np.zeros((k, HORIZON, ACTIONS), np.float32))

    def reset(self) -> None: ...

    def observe(self, observation: Observation) -> None: ...

    def sample(self, k: int, seed: int) -> Candidates:
        return self._candidates


class PacedPolicy(InstantPolicy):
    """Sleeps as long as a GPU would work, so that the processors are free for the link, as they are there.

    A pass of B robots takes `PASS_S + (B - 1) * ROW_S` seconds: an assumption, not a measurement.
    """

    version = "paced"

    def sample(self, k: int, seed: int) -> Candidates:
        time.sleep(PASS_S)
        return self._candidates

    def propose(self, windows: Sequence[Any], k: int, seeds: Any) -> Any:
        time.sleep(PASS_S + (len(windows) - 1) * ROW_S)
        return np.stack([self._candidates.actions] * len(windows))


def _serve(kind: str, k: int, max_batch: int, told: Any) -> None:
    policy = {"instant": InstantPolicy, "paced": PacedPolicy}[kind](k)
    server = Server(Engine(Models(policy)), ServerSettings(ANYWHERE, max_batch=max_batch))
    told.send(server.endpoint)
    server.run()


def _request(seed: int, k: int) -> DecideRequest:
    return DecideRequest((observation(seed),), seed, k, guided=False, want_candidates=True)


def _content(request: DecideRequest) -> Content:
    """The request's observation, the answer's numbers, and both as frames of our wire format."""
    chunks = InstantPolicy(request.k).sample(request.k, 0).actions
    return Content(
        request.window[0], chunks, tuple(encode(ask_message(request))), tuple(encode(answer_message(chunks)))
    )


@contextmanager
def _ours(request: DecideRequest) -> Iterator[Callable[[], Any]]:
    with (
        process(_serve, "instant", request.k, 8) as endpoint,
        ServerLink(LinkSettings(endpoint, timeout_s=_TIMEOUT_S)) as link,
    ):
        link.connect(_TIMEOUT_S)
        yield lambda: link.ask(request).result()


_OTHERS = {
    "raw_zmq": raw_zmq,
    "messages_zmq": messages_zmq,
    "websocket_msgpack": websocket_msgpack,
    "lerobot_grpc": lerobot_grpc,
}


def round_trip(
    k: int = 8, repeats: int = 200, others: Sequence[str] = tuple(_OTHERS), warm_up: int = 10
) -> dict[str, Any]:
    """Seconds from asking to the decision for two 224-pixel cameras and K candidates back, over loopback.

    others: names of baselines with the same content. All take turns, trip by trip; `times_raw` and
    `ours_times` are quotients of neighbouring trips: of raw ZeroMQ's, and of ours to the other's
    (below 1: ours is faster). `missing`: baselines whose packages are not installed, and why.
    """
    request = _request(0, k)
    content = _content(request)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        ways = {"ours": stack.enter_context(_ours(request))}
        for name in others:
            try:
                ways[name] = stack.enter_context(_OTHERS[name](content))
            except ImportError as error:
                missing[name] = str(error)
        taken = turns(ways, repeats, warm_up)
    out: dict[str, Any] = {"k": k, "repeats": repeats, "missing": missing}
    out["request_bytes"] = sum(len(frame) for frame in content.request)
    out["reply_bytes"] = sum(len(frame) for frame in content.reply)
    out["seconds"] = {name: _quantiles(values) for name, values in taken.items()}
    if "raw_zmq" in taken:
        out["times_raw"] = {n: _quantiles(v / taken["raw_zmq"]) for n, v in taken.items() if n != "raw_zmq"}
    out["ours_times"] = {n: _quantiles(taken["ours"] / v) for n, v in taken.items() if n != "ours"}
    return out


def _quantiles(values: Any) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90, 99)}


def _robot(endpoint: str, number: int, k: int, told: Any) -> None:
    """One robot in a process of its own: asks again as soon as it has its answer, when told for how long."""
    request = _request(number, k)
    with ServerLink(LinkSettings(endpoint, timeout_s=_TIMEOUT_S)) as link:
        link.connect(_TIMEOUT_S)
        for _ in range(3):
            link.ask(request).result()
        told.send("ready")
        until = time.monotonic() + told.recv()
        taken: list[float] = []
        while time.monotonic() < until:
            begun = time.perf_counter()
            link.ask(request).result()
            taken.append(time.perf_counter() - begun)
        told.send(taken)


def throughput(
    robots: int, seconds: float = 5.0, k: int = 8, policy: str = "instant", max_batch: int = 16
) -> dict[str, float]:
    """Decisions a second that so many robots get from one server, and how long each waited.

    policy: "instant", or "paced" for the stand-in of a GPU. max_batch: robots in one pass.
    """
    context = multiprocessing.get_context("spawn")
    with process(_serve, policy, k, max_batch) as endpoint:
        pipes, children = [], []
        try:
            for number in range(robots):
                here, there = context.Pipe()
                child = context.Process(target=_robot, args=(endpoint, number, k, there), daemon=True)
                child.start()
                there.close()
                pipes.append(here)
                children.append(child)
            for pipe in pipes:
                pipe.recv()
            for pipe in pipes:
                pipe.send(seconds)
            taken = np.concatenate([pipe.recv() for pipe in pipes])
        finally:
            for child in children:
                child.kill()
                child.join()
    return {"decisions_per_s": len(taken) / seconds, **_quantiles(taken)}


def batching_gain(robots: int, seconds: float = 5.0, k: int = 8) -> dict[str, Any]:
    """Decisions a second of `PacedPolicy` behind the real server: robots sharing passes, and one a pass."""
    shared = throughput(robots, seconds, k, "paced", max_batch=16)
    alone = throughput(robots, seconds, k, "paced", max_batch=1)
    gain = shared["decisions_per_s"] / alone["decisions_per_s"]
    return {"pass_s": PASS_S, "row_s": ROW_S, "shared": shared, "one_by_one": alone, "gain": gain}


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
