"""A small policy server that speaks openpi's public WebSocket protocol, and fails on demand.

Written to what src/openpi/serving/websocket_policy_server.py and openpi_client/msgpack_numpy.py do on the
wire, with none of their code. As a process, serving a real policy:

    python -m valueguide.testing.fake_openpi_server sim/assets/checkpoints/wxai-state/policy --port 8000
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from valueguide.interfaces import Policy
from valueguide.testing.serve_policy import serve_policy
from valueguide.types import Observation

#: What the server can do instead of answering well.
FAULTS = (
    "hang", "drip", "close", "garbage", "text", "object-array", "huge-shape", "short-data", "nan",
    "misshapen", "oversize", "list", "no-actions", "complex", "twice",
)  # fmt: skip

#: Their key -> value, to their key -> value.
Infer = Callable[[dict[str, Any]], dict[str, Any]]


class FakeOpenPiServer:
    """Answers observations with what `infer` makes of them. Use as a context manager.

    faults: what to do with each request in turn, a name of FAULTS or "" for a good answer; afterwards all
        answers are good. hang_s: length of a hang. connections, requests: what came. headers: of each.
    metadata: bytes or text sent instead of the server's description.
    """

    def __init__(
        self,
        infer: Infer,
        faults: list[str] | None = None,
        hang_s: float = 3.0,
        port: int = 0,
        metadata: bytes | str | None = None,
    ) -> None:
        unknown = set(faults or ()) - {"", *FAULTS}
        assert not unknown, f"unknown faults {unknown}"
        self.infer, self.faults, self.hang_s = infer, list(faults or ()), hang_s
        self.metadata = packed({"server": "fake"}) if metadata is None else metadata
        self.connections, self.requests = 0, []  # type: int, list[dict[str, Any]]
        self.headers: list[Any] = []
        self._server = serve(self._handle, "127.0.0.1", port, compression=None, max_size=None)
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FakeOpenPiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def _handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        assert connection.request is not None
        self.headers.append(connection.request.headers)
        with contextlib.suppress(ConnectionClosed, OSError):
            connection.send(self.metadata)
            while True:
                request = unpacked(connection.recv())
                self.requests.append(request)
                fault = self.faults.pop(0) if self.faults else ""
                try:
                    self._answer(connection, fault, request)
                except (ConnectionClosed, OSError):
                    raise
                except Exception:
                    connection.send(traceback.format_exc())
                    connection.close(1011, "Internal server error. Traceback included in previous frame.")
                    return

    def _answer(self, connection: ServerConnection, fault: str, request: dict[str, Any]) -> None:
        if fault == "close":
            return connection.close()
        if fault == "text":
            raise RuntimeError("the observation has no wings")
        if fault == "hang":
            time.sleep(self.hang_s)
        good = {**self.infer(request), "server_timing": {"infer_ms": 1.0}}
        if fault == "drip":
            return self._drip(connection, packed(good))
        answer = packed(_faulty(fault, good)) if fault != "garbage" else b"\xc1\x00\xff{{{"
        connection.send(answer)
        if fault == "twice":
            connection.send(answer)

    def _drip(self, connection: ServerConnection, answer: bytes) -> None:
        """A fragment now and then, so that no single read ever times out."""

        def pieces() -> Any:
            for i in range(len(answer)):
                time.sleep(self.hang_s / len(answer))
                yield answer[i : i + 1]

        connection.send(pieces())


def packed(value: Any) -> bytes:
    """msgpack with arrays as openpi_client.msgpack_numpy writes them."""

    def default(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": item.tobytes(),
                b"dtype": item.dtype.str,
                b"shape": item.shape,
            }
        return {b"__npgeneric__": True, b"data": item.item(), b"dtype": item.dtype.str}

    return msgpack.packb(value, default=default)


def unpacked(message: bytes | str) -> Any:
    """The other way, as trusting as the original."""

    def hook(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in found:
            return np.ndarray(found[b"shape"], np.dtype(found[b"dtype"]), found[b"data"])
        return found

    return msgpack.unpackb(message, object_hook=hook)


def _faulty(fault: str, good: dict[str, Any]) -> Any:
    actions = np.array(good["actions"], np.float64)
    raw = {b"__ndarray__": True, b"data": actions.tobytes(), b"dtype": "<f8", b"shape": list(actions.shape)}
    changed: dict[str, Any] = {
        "object-array": {**raw, b"dtype": "|O"},
        "huge-shape": {**raw, b"shape": [1 << 40, 1 << 20]},
        "short-data": {**raw, b"data": actions.tobytes()[:-1]},
        "nan": actions * np.nan,
        "misshapen": actions[:-1],
        "oversize": np.zeros(1 << 20),
        "complex": {**raw, b"dtype": "<c16", b"shape": [actions.size // 2]},
    }
    if fault == "list":
        return [good]
    if fault == "no-actions":
        return {name: value for name, value in good.items() if name != "actions"}
    return {**good, "actions": changed.get(fault, actions)}


def wxai_infer(policy: Policy) -> Infer:
    """The keys of configs/policies/servers/wxai-state-openpi.yaml, answered by one of our policies."""
    lock = threading.Lock()

    def infer(request: dict[str, Any]) -> dict[str, Any]:
        observation = Observation(
            images={},
            state=np.array(request["observation/state"], np.float32),
            task=request["prompt"],
            environment_state=np.array(request["observation/environment_state"], np.float32),
        )
        with lock:
            policy.reset()
            policy.observe(observation)
            return {"actions": policy.sample(1, int(request.get("seed", 0))).actions[0]}

    return infer


if __name__ == "__main__":
    serve_policy(__doc__, lambda policy, port: FakeOpenPiServer(wxai_infer(policy), port=port))
