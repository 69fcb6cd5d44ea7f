"""A link to GR00T's ZeroMQ policy server (gr00t/policy/server_client.py; N1.5: gr00t/eval/service.py).

A REQ/REP socket; a request is a map `endpoint`, `data`, `api_token`, a reply the endpoint's result or a map
`error`. Observations carry a batch and a time dimension (N1.5: time only), so that K copies of one
observation in one request are K draws: candidates cost one forward pass there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zmq

from valueguide.errors import DataError, LinkError, mismatch
from valueguide.transport.msgpack_arrays import pack_groot, unpack_groot
from valueguide.transport.remote_link import CONNECT_S, LateReply, LinkClosed, one_line, remaining
from valueguide.transport.remote_mapping import ServerConfig


class GrootLink:
    """Implements `remote_link.PolicyServerLink` for the dialects groot, groot_sim and groot_n1_5.

    key: sent as `api_token`, readable by anybody on the way; "" sends none.
    """

    def __init__(self, host: str, port: int, config: ServerConfig, key: str = "") -> None:
        host = f"[{host}]" if ":" in host else host
        self.where = f"GR00T server {host}:{port}"
        self._address, self._ipv6 = f"tcp://{host}:{port}", host.startswith("[")
        self._config, self._key = config, key
        self._old = config.dialect == "groot_n1_5"
        self.batches = not self._old
        self._socket: zmq.Socket[bytes] | None = None

    def open(self, deadline: float) -> bool:
        """Connect and ask whether the server is there, unless connected."""
        if self._socket is not None:
            return False
        self._socket = zmq.Context.instance().socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.immediate = True  # nothing is queued for a server that is not there
        self._socket.maxmsgsize = self._config.reply_bytes
        self._socket.ipv6 = self._ipv6
        self._socket.connect(self._address)
        if not self._ready(zmq.POLLOUT, deadline, CONNECT_S):
            raise LinkClosed(f"{self.where}: cannot connect: nobody answers there")
        found = self._call("ping", None, deadline)
        if not isinstance(found, dict) or found.get("status") != "ok":
            raise DataError(
                mismatch(self.where, "answer to ping", "{'status': 'ok'}", one_line(repr(found), 80))
            )
        return True

    def metadata(self) -> Any:
        """Nothing: what the server says of itself are modality names, which the mapping has too."""
        return None

    def reset(self, deadline: float) -> None:
        """N1.5 has no such endpoint."""
        if not self._old:
            self._call("reset", {"options": None}, deadline)

    def ask(self, parts: dict[str, Any], rows: int, seed: int | None, deadline: float) -> Any:
        """`rows` chunks (rows, H, D) a key for one observation; N1.5: one, (H, D)."""
        if self._old:
            return self._call("get_action", _timed(parts), deadline)
        observation = _batched(_timed(parts), rows)
        if self._config.dialect == "groot":
            observation = _nested(observation)
        options = None if seed is None else {self._config.seed_key: seed}
        found = self._call("get_action", {"observation": observation, "options": options}, deadline)
        if not isinstance(found, list) or len(found) != 2:
            raise DataError(mismatch(self.where, "reply", "[actions, facts]", type(found).__name__))
        return found[0]

    def close(self) -> None:
        """A REQ socket that missed its reply would take it for the answer to the next question."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _call(self, endpoint: str, data: dict[str, Any] | None, deadline: float) -> Any:
        assert self._socket is not None
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if self._key:
            request["api_token"] = self._key
        message = pack_groot(request)
        if not self._ready(zmq.POLLOUT, deadline):
            raise LinkClosed(f"{self.where}: closed the connection")
        self._socket.send(message, copy=False)
        if not self._ready(zmq.POLLIN, deadline):
            raise LateReply(
                f"{self.where}: expected an answer to {endpoint} in time and of at most "
                f"{self._config.reply_bytes} bytes, found none"
            )
        return self._read(endpoint, self._socket.recv())

    def _ready(self, what: int, deadline: float, longest_s: float = math.inf) -> bool:
        assert self._socket is not None
        return bool(self._socket.poll(math.ceil(1e3 * min(longest_s, remaining(deadline))), what))

    def _read(self, endpoint: str, answer: bytes) -> Any:
        if answer == b"ERROR":  # servers before N1.5's api_token
            raise LinkError(f"{self.where}: the server refused {endpoint} without a reason")
        found = unpack_groot(answer, self.where)
        if isinstance(found, dict) and "error" in found:
            raise LinkError(f"{self.where}: the server refused {endpoint}: {one_line(str(found['error']))}")
        return found


def _timed(parts: dict[str, Any]) -> dict[str, Any]:
    """A time dimension of length 1 in front of every part."""
    return {k: v[None] if isinstance(v, np.ndarray) else [v] for k, v in parts.items()}


def _batched(parts: dict[str, Any], rows: int) -> dict[str, Any]:
    """`rows` copies of every part along a new first dimension; text: a list of `rows`."""
    return {
        k: np.broadcast_to(v, (rows, *v.shape)) if isinstance(v, np.ndarray) else v * rows
        for k, v in parts.items()
    }


def _nested(parts: dict[str, Any]) -> dict[str, Any]:
    """`video.front` -> {"video": {"front": …}}; text becomes a list of one for each row."""
    nested: dict[str, Any] = {}
    for key, value in parts.items():
        modality, _, name = key.partition(".")
        nested.setdefault(modality, {})[name] = [[v] for v in value] if isinstance(value, list) else value
    return nested
