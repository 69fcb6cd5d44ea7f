"""The server's socket: bounded queues, and beyond loopback only clients whose key is on the list."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from valueguide.errors import ConfigError, mismatch
from valueguide.transport.keys import ServerKeys, allowed_clients, check_endpoint, use_server_keys

#: Bytes of one frame beyond which ZeroMQ ends the connection, before it allocates.
MAX_FRAME = 1 << 25
#: Messages that may wait in one connection's queue, each way.
_QUEUE = 16
_DOMAIN = "valueguide"
_HEARTBEAT_MS, _SILENT_MS, _HANDSHAKE_MS = 1000, 5000, 5000


class AllowList:
    """The public keys of a folder, read anew when the folder changes. Also ZAP's `callback`."""

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.monotonic, every_s: float = 1.0
    ) -> None:
        self._folder, self._clock, self._every_s = folder, clock, every_s
        self._seen, self._next = self._signature(), clock() + every_s
        self.keys = allowed_clients(folder)
        self.trouble = ""

    def callback(self, domain: str, key: bytes) -> bool:
        return key.decode("ascii", "replace") in self.keys

    def refresh(self) -> bool:
        """True when the list changed. A folder that cannot be read now allows nobody new, and says so."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + self._every_s
        seen = self._signature()
        if seen == self._seen and not self.trouble:
            return False
        try:
            keys, self.trouble = allowed_clients(self._folder), ""
        except ConfigError as error:
            keys, self.trouble = frozenset(), str(error)
        changed = keys != self.keys
        self._seen, self.keys = seen, keys
        return changed

    def _signature(self) -> Any:
        try:
            return sorted((path.name, path.stat().st_mtime_ns) for path in self._folder.glob("*.key"))
        except OSError:
            return None


class Door:
    """A bound ROUTER socket with its context. endpoint: where it really listens, with its port."""

    def __init__(self, endpoint: str, keys: ServerKeys | None) -> None:
        """Raises ConfigError: an address that others can reach without keys, damaged keys, a port in use."""
        check_endpoint(endpoint, keys)
        self.allowed = AllowList(keys.clients) if keys else None
        self.context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        try:
            self._configure(endpoint, keys)
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(mismatch(endpoint, "address", "a free one of this machine", error)) from None
        except BaseException:
            self.close()
            raise
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _configure(self, endpoint: str, keys: ServerKeys | None) -> None:
        socket = self.socket
        socket.sndhwm = socket.rcvhwm = _QUEUE
        socket.maxmsgsize = MAX_FRAME
        socket.linger = 1000
        socket.ipv6 = "[" in endpoint
        socket.heartbeat_ivl, socket.heartbeat_timeout = _HEARTBEAT_MS, _SILENT_MS
        socket.handshake_ivl = _HANDSHAKE_MS
        if keys is None or self.allowed is None:
            return
        # Before the first connection, and so that nobody gets in should the authenticator be missing.
        self._authenticator = ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_DOMAIN, self.allowed)
        socket.zap_domain = _DOMAIN.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        use_server_keys(socket, keys)

    def close(self, abandon: bool = False) -> None:
        """Sends what waits for up to a second. abandon: do not wait for another thread's open socket."""
        self.socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        if not abandon:
            self.context.term()


def user_of(frame: zmq.Frame) -> str:
    """The client's public key that the authenticator found, "" without keys."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""
