"""A link to openpi's WebSocket policy server (src/openpi/serving/websocket_policy_server.py).

The server sends its metadata when a client connects; then every binary message is an observation and is
answered by one binary message with `actions`, or by a text message, its traceback, and a close. There are no
request numbers, so nothing may be asked on a connection on which an answer is still due.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from valueguide.errors import DataError, EnvironmentSetupError, LinkError, mismatch
from valueguide.transport.msgpack_arrays import pack_openpi, unpack_openpi
from valueguide.transport.remote_link import CONNECT_S, LateReply, LinkClosed, one_line, remaining
from valueguide.transport.remote_mapping import ServerConfig

_TOO_BIG = 1009  # RFC 6455, section 7.4.1


class OpenPiLink:
    """Implements `remote_link.PolicyServerLink`. key: sent as `Authorization: Api-Key`; "" sends none."""

    batches = False

    def __init__(self, host: str, port: int, config: ServerConfig, key: str = "", tls: bool = False) -> None:
        try:
            import websockets  # noqa: F401  (told here, not in the middle of an episode)
        except ImportError as error:
            raise EnvironmentSetupError(
                "openpi: expected the package websockets, found none. Install valueguide[openpi]"
            ) from error
        host = f"[{host}]" if ":" in host else host
        self.where = f"openpi server {host}:{port}"
        self._uri = f"{'wss' if tls else 'ws'}://{host}:{port}"
        self._config, self._metadata = config, None
        self._headers = {"Authorization": f"Api-Key {key}"} if key else {}
        self._connection: Any = None

    def open(self, deadline: float) -> bool:
        """Connect and read the metadata, unless connected."""
        if self._connection is not None:
            return False
        from websockets.exceptions import ConnectionClosed, InvalidHandshake
        from websockets.sync.client import connect

        try:
            # Pictures do not compress; the server cannot answer pings while its model runs; a proxy from
            # the environment is not what was named.
            opening = connect(
                self._uri,
                additional_headers=self._headers,
                compression=None,
                proxy=None,
                ping_interval=None,
                open_timeout=min(CONNECT_S, remaining(deadline)),
                close_timeout=0.5,
                max_size=self._config.reply_bytes,
            )
        except TimeoutError as error:
            raise LateReply(f"{self.where}: expected a connection in time, found none") from error
        except (OSError, InvalidHandshake, ConnectionClosed, EOFError, AssertionError) as error:
            # EOFError, AssertionError: websockets, where the other side speaks or leaves before it is asked.
            reason = one_line(str(error) or repr(error))
            raise LinkClosed(f"{self.where}: cannot connect: {reason}") from error
        self._connection = opening.__enter__()
        with self._until(deadline):
            self._metadata = self._read(self._connection.recv())
        return True

    def metadata(self) -> Any:
        """The server's own description, as it sent it."""
        return self._metadata

    def reset(self, deadline: float) -> None:
        """openpi's servers keep nothing between observations."""

    def ask(self, parts: dict[str, Any], rows: int, seed: int | None, deadline: float) -> Any:
        """The reply to one observation, a map with `actions` (H, D)."""
        extra = {} if seed is None else {self._config.seed_key: seed}
        message = pack_openpi({**parts, **extra})
        self._refuse_unasked()
        with self._until(deadline):
            self._connection.send(message)
            answer = self._connection.recv()
        return self._read(answer)

    def close(self) -> None:
        """No closing handshake with a server that may be stuck: the socket goes first."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _cut(connection)
            connection.__exit__(None, None, None)

    def _read(self, message: Any) -> Any:
        if isinstance(message, str):  # the protocol's way to report a failure
            raise LinkError(f"{self.where}: the server refused: {one_line(message)}")
        return unpack_openpi(message, self.where)

    def _refuse_unasked(self) -> None:
        """A message that came without a question would be taken for the answer to the next one."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.recv(timeout=0)
        except TimeoutError:
            return
        except ConnectionClosed as error:
            raise LinkClosed(f"{self.where}: closed the connection") from error
        raise DataError(mismatch(self.where, "messages", "one an observation", "one that was not asked for"))

    @contextlib.contextmanager
    def _until(self, deadline: float) -> Iterator[None]:
        """Sending and receiving end at the deadline, however slowly the bytes trickle either way."""
        from websockets.exceptions import ConnectionClosed

        connection, late = self._connection, threading.Event()

        def cut() -> None:
            late.set()
            _cut(connection)

        timer = threading.Timer(remaining(deadline), cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (ConnectionClosed, OSError) as error:
            if late.is_set() or time.monotonic() >= deadline:
                raise LateReply(f"{self.where}: expected an answer in time, found none") from error
            if isinstance(error, ConnectionClosed) and error.sent and error.sent.code == _TOO_BIG:
                wanted = f"{self._config.reply_bytes} bytes at most (reply_bytes)"
                raise DataError(mismatch(self.where, "reply", wanted, "more")) from error
            raise LinkClosed(f"{self.where}: closed the connection: {one_line(str(error))}") from error
        finally:
            timer.cancel()


def _cut(connection: Any) -> None:
    with contextlib.suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)
