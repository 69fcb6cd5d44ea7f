"""JSON over HTTP that can be relied on: deadlines, retries with backoff, and no key in any message.

Only the standard library: what a robot computer has. Redirects are not followed and proxies not used, so
that the key goes to the host that was named and to no other.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from valueguide.errors import ConfigError, mismatch
from valueguide.progress.request import RequestFailed

log = logging.getLogger("valueguide.progress")
_LARGEST_REPLY = 16 * 2**20
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_NEVER = {401: "the key was refused", 403: "access was refused", 404: "nothing is there", 405: "not accepted"}


class RequestRefused(RequestFailed):
    """The server says that this request is wrong (status 400 and the like); the same again cannot help."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for one request.

    timeout_s: for each try, from connecting to the last byte, however slowly it drips.
    tries: at least 1. first_wait_s, longest_wait_s: before the second try, doubled up to the longest. A
    server that asks for a longer wait (Retry-After) is not asked again.
    """

    timeout_s: float = 120.0
    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.timeout_s > 0 and self.tries >= 1 and self.first_wait_s >= 0):
            raise ConfigError(mismatch("endpoint", "timeout, tries, wait", "> 0, >= 1, >= 0", self))


class _Again(Exception):
    """This try failed; another may not. wait_s: what the server asks for, None when it does not say."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class JsonEndpoint:
    """Posts JSON below one base address, from any number of threads.

    url: for example http://127.0.0.1:8000/v1. key: sent as a bearer token; "" sends none.
    Raises ConfigError for an address or key that cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(mismatch("endpoint", "address", "http(s)://host[:port]/path", repr(url)))
        if parts.username or parts.password:
            raise ConfigError("endpoint: address: expected no user or password in it, found one")
        if not all(33 <= ord(character) <= 126 for character in key):
            raise ConfigError("endpoint: key: expected printable ASCII without spaces, found something else")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts, self._key, self._sleep = parts, key, sleep
        self._patience = patience or Patience()
        if key and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            log.warning("%s: the key is sent without encryption", self.url)

    def post[T](self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the reply to `body`; `read` raises ValueError for a reply that is no answer.

        Raises RequestRefused (do not repeat), RequestFailed (all tries failed), and ConfigError for what
        no request to this address can get past (key refused, nothing there, certificate not trusted).
        """
        content = json.dumps(body).encode()
        reason = ""
        for number in range(self._patience.tries):
            try:
                return read(self._once(path, content))
            except (_Again, ValueError) as error:
                reason = self._clean(str(error) or type(error).__name__)
                wait = self._wait(number, error)
            if number + 1 < self._patience.tries:
                log.info("%s: %s; trying again in %.1f s", self.url, reason, wait)
                self._sleep(wait)
        raise RequestFailed(f"{self.url}: no answer in {self._patience.tries} tries; the last: {reason}")

    def _wait(self, number: int, error: Exception) -> float:
        patience = self._patience
        asked = error.wait_s if isinstance(error, _Again) else None
        if asked is not None and asked > patience.longest_wait_s:
            raise RequestFailed(f"{self.url}: the server asks to wait for {asked:.0f} s") from error
        usual = min(patience.longest_wait_s, patience.first_wait_s * 2.0**number)
        return max(asked or 0.0, usual * random.uniform(0.5, 1.0))  # spread, so that threads do not march

    def _once(self, path: str, content: bytes) -> Any:
        """One try. Raises _Again, ValueError (not JSON), RequestRefused or ConfigError."""
        status, wait, payload = self._exchange(path, content)
        if status == 200:
            try:
                return json.loads(payload)
            except RecursionError as error:
                raise ValueError("the reply nests too deeply") from error
        text = self._clean(payload[:300].decode("utf-8", "replace"))
        if status in _RETRIED:
            raise _Again(f"status {status} {text}", wait)
        if status in _NEVER or 300 <= status < 400:
            raise ConfigError(f"{self.url}{path}: {_NEVER.get(status, 'redirected')}: status {status} {text}")
        raise RequestRefused(f"{self.url}{path}: status {status} {text}")

    def _exchange(self, path: str, content: bytes) -> tuple[int, float | None, bytes]:
        """Status, wait asked for, and content of one reply."""
        connection, watchdog = self._connection(), _Watchdog(self._patience.timeout_s)
        try:
            connection.connect()
            watchdog.guard(connection.sock)
            connection.request("POST", self._parts.path.rstrip("/") + path, content, self._headers())
            response = connection.getresponse()
            payload = response.read(_LARGEST_REPLY + 1)
            if len(payload) > _LARGEST_REPLY:
                raise RequestRefused(f"{self.url}{path}: the reply is larger than {_LARGEST_REPLY} bytes")
            if watchdog.bit:
                raise TimeoutError
            if response.length:  # http.client does not mind a body shorter than announced when given a size
                raise _Again("the connection ended within the reply")
            return response.status, _retry_after(dict(response.headers)), payload
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"{self.url}: certificate not trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            timeout = watchdog.bit or isinstance(error, TimeoutError)
            raise _Again(
                f"no answer within {self._patience.timeout_s:g} s" if timeout else _say(error)
            ) from None
        finally:
            watchdog.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, timeout = self._parts.hostname or "", self._patience.timeout_s
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, self._parts.port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, self._parts.port, timeout=timeout)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _clean(self, text: str) -> str:
        """One line without the key, which some servers repeat in their messages."""
        line = " ".join(text.split())
        return line.replace(self._key, "***") if self._key else line


class _Watchdog:
    """Ends whatever a connection is waiting for. A socket's own timeout starts anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.bit = False
        self._sock: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._bite)
        self._timer.daemon = True
        self._timer.start()

    def guard(self, sock: socket.socket) -> None:
        """From now on (connecting has a timeout of its own). http.client lets go of its socket early."""
        self._sock = sock
        if self.bit:
            raise TimeoutError

    def cancel(self) -> None:
        self._timer.cancel()

    def _bite(self) -> None:
        self.bit = True
        if self._sock is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._sock.shutdown(socket.SHUT_RDWR)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or a date; None when absent or neither.

    A date is counted from the reply's own: the clock here may be hours off, or have jumped.
    """
    value = headers.get("Retry-After")
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        until, said = parsedate_to_datetime(value).timestamp(), headers.get("Date")
        return max(0.0, until - (parsedate_to_datetime(said).timestamp() if said else time.time()))
    except (ValueError, TypeError):
        return None


def _say(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended within the reply"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
