"""A small policy server that speaks GR00T's public ZeroMQ protocol, and fails on demand.

Written to what gr00t/policy/server_client.py (N1.6 and later) and gr00t/eval/service.py (N1.5) do on
the wire, with none of their code. As a process, serving a real policy:

    python -m valueguide.testing.fake_groot_server sim/assets/checkpoints/wxai-state/policy --port 5555
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import zmq

from valueguide.interfaces import Policy
from valueguide.testing.serve_policy import serve_policy
from valueguide.types import Observation

#: What the server can do instead of answering well.
FAULTS = (
    "hang", "garbage", "ERROR", "error", "object-array", "huge-shape", "short-data", "nan", "misshapen",
    "oversize", "map", "no-actions", "not-npy", "pickle",
)  # fmt: skip

#: (data of the request) -> result of `get_action`.
GetAction = Callable[[dict[str, Any]], Any]


class FakeGrootServer:
    """Answers `get_action` with what `get_action` makes of the request. Use as a context manager.

    faults: what to do with each `get_action` in turn, a name of FAULTS or "" for a good answer; afterwards
        all answers are good. hang_s: length of a hang. token: the `api_token` that is required. calls: the
        endpoints asked for. requests: the data of each `get_action`. old: N1.5, where it is the observation.
    """

    def __init__(
        self,
        get_action: GetAction,
        faults: list[str] | None = None,
        hang_s: float = 3.0,
        port: int = 0,
        token: str = "",
        old: bool = False,
    ) -> None:
        unknown = set(faults or ()) - {"", *FAULTS}
        assert not unknown, f"unknown faults {unknown}"
        self.get_action, self.faults, self.hang_s = get_action, list(faults or ()), hang_s
        self.token, self.old = token, old
        self.calls: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 0
        address = "tcp://127.0.0.1"
        self.port = port or self._socket.bind_to_random_port(address)
        if port:
            self._socket.bind(f"{address}:{port}")
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> FakeGrootServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def serve_forever(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(20):
                self._socket.send(self._answer(self._socket.recv()))
        self._socket.close()
        self._context.term()

    def _answer(self, message: bytes) -> bytes:
        try:
            request = unpacked(message)
            if self.token and request.get("api_token") != self.token:
                return packed({"error": "Unauthorized: Invalid API token"})
            endpoint, data = request.get("endpoint", "get_action"), request.get("data", {})
            self.calls.append(endpoint)
            if endpoint == "ping":
                return packed({"status": "ok", "message": "Server is running"})
            if endpoint == "reset" and not self.old:
                return packed({})
            if endpoint != "get_action":
                raise ValueError(f"Unknown endpoint: {endpoint}")
            self.requests.append(data)
            return self._act(self.faults.pop(0) if self.faults else "", data)
        except Exception as error:
            return packed({"error": str(error)})

    def _act(self, fault: str, data: dict[str, Any]) -> bytes:
        if fault == "hang":
            self._ended.wait(self.hang_s)
        if fault in ("garbage", "ERROR"):
            return {"garbage": b"\xc1\x00\xff{{{", "ERROR": b"ERROR"}[fault]
        if fault == "error":
            raise RuntimeError("the observation has no wings")
        good = self.get_action(data)
        if fault:
            actions = {key: _faulty(fault, array) for key, array in good[0].items()}
            good = [{} if fault == "no-actions" else actions, {}]
        return packed(good[0] if fault == "map" else good)


def packed(value: Any) -> bytes:
    """msgpack with arrays as GR00T's MsgSerializer writes them."""

    def default(item: Any) -> Any:
        if isinstance(item, _Raw):
            return {"__ndarray_class__": True, "as_npy": item.npy}
        return {"__ndarray_class__": True, "as_npy": npy(item)}

    return msgpack.packb(value, default=default)


def unpacked(message: bytes) -> Any:
    """The other way."""

    def hook(found: dict[Any, Any]) -> Any:
        if "__ndarray_class__" in found:
            return np.load(io.BytesIO(found["as_npy"]), allow_pickle=False)
        return found

    return msgpack.unpackb(message, object_hook=hook)


def npy(array: Any, pickled: bool = False) -> bytes:
    """The .npy file of an array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def claimed_npy(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """A .npy file whose header says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


class _Raw:
    """A .npy file that no array has."""

    def __init__(self, content: bytes) -> None:
        self.npy = content


def _faulty(fault: str, array: Any) -> Any:
    array = np.asarray(array, np.float32)
    data, shape = array.tobytes(), array.shape
    return {
        "object-array": _Raw(claimed_npy("|O", shape, data)),
        "huge-shape": _Raw(claimed_npy("<f4", (1 << 40, 1 << 20), data)),
        "short-data": _Raw(claimed_npy("<f4", shape, data[:-1])),
        "nan": array * np.float32(np.nan),
        "misshapen": array[:, :-1],
        "oversize": np.zeros((1 << 20, 3)),
        "not-npy": _Raw(b"PK\x03\x04"),
        "pickle": _Raw(npy(np.array([{"a": 1}], dtype=object), pickled=True)),
    }.get(fault, array)


def wxai_get_action(policy: Policy) -> GetAction:
    """The keys of configs/policies/servers/wxai-state-groot.yaml, answered by one of our policies.

    Row i of a batch is candidate i of the request's seed.
    """

    def get_action(data: dict[str, Any]) -> Any:
        asked, options = data["observation"], data.get("options") or {}
        state, tasks = asked["state"], asked["language"]["task"]
        whole = np.concatenate([state["hand"], state["gripper"]], axis=-1)[:, 0]
        policy.reset()
        policy.observe(Observation({}, whole[0], tasks[0][0], environment_state=state["world"][0, 0]))
        actions = policy.sample(len(whole), int(options.get("seed", 0))).actions
        return [{"hand": actions[:, :, :4], "gripper": actions[:, :, 4:]}, {}]

    return get_action


if __name__ == "__main__":
    serve_policy(__doc__, lambda policy, port: FakeGrootServer(wxai_get_action(policy), port=port))
