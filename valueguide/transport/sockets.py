"""ZeroMQ sockets used sparingly, and what a thread sleeps on that must not hold one.

pyzmq's `send_multipart` and `recv_multipart` look at every option through enumerations, and trying to receive
from an empty socket builds an exception: together that took longer than the packing of a message.
"""

from __future__ import annotations

import contextlib
import select
import socket as sockets
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.backend import Socket as PlainSocket
from zmq.backend import zmq_poll

_NOW, _MORE, _IN = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)


def send(socket: zmq.Socket[bytes], frames: Sequence[Any]) -> None:
    """One message, copied; at once or zmq.Again.

    Copied, because pyzmq frees what it sends without a copy in one more thread, which costs more than the
    copy of two pictures.
    """
    for frame in frames[:-1]:
        PlainSocket.send(socket, frame, _MORE)
    PlainSocket.send(socket, frames[-1], _NOW)


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """One message, not copied. Raises zmq.Again when none is there: ask `poll` before."""
    frames = [socket.recv(_NOW, False)]
    while frames[-1].more:
        frames.append(socket.recv(_NOW, False))
    return frames


def poll(readers: Sequence[Any], timeout_ms: int = 0) -> list[Any]:
    """Those of the sockets and file descriptors that can be read."""
    return [reader for reader, _ in zmq_poll([(reader, _IN) for reader in readers], timeout_ms)]


class Sleep:
    """Waits, without touching them, until ZeroMQ sockets have news; `wake` ends it from any thread.

    A socket's descriptor may be waited for by a thread that does not have the socket. Such news are hints:
    whoever has the socket looks with `poll`. While `hush`ed, the first socket does not end a sleep.
    """

    def __init__(self) -> None:
        # Where there is no epoll, a change only counts from the next sleep on: slower, and as correct.
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._unit = 1.0 if hasattr(select, "epoll") else 1e3
        self._ear, self._mouth = sockets.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self.wake_fd = self._ear.fileno()
        self._poll.register(self.wake_fd, select.POLLIN)
        self._descriptors: tuple[int, ...] = ()
        self._hushed = False

    def watch(self, *watched: zmq.Socket[bytes]) -> None:
        """These sockets from now on, in place of those before; before any of them is closed.

        The first one can be hushed.
        """
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError, KeyError):
                self._poll.unregister(descriptor)
        self._descriptors = tuple(int(socket.get(zmq.FD)) for socket in watched)
        for descriptor in self._descriptors:
            self._poll.register(descriptor, select.POLLIN)
        if self._hushed:
            self.hush(True)

    def hush(self, quiet: bool) -> None:
        self._hushed = quiet
        if self._descriptors:
            self._poll.modify(self._descriptors[0], 0 if quiet else select.POLLIN)

    def wake(self) -> None:
        """Full or closed: it has been told often enough."""
        with contextlib.suppress(OSError):
            self._mouth.send(b"\0")

    def heard(self) -> None:
        """Forget the wakes so far: who calls this looks for what they were about."""
        with contextlib.suppress(OSError):
            self._ear.recv(4096)

    def sleep(self, seconds: float) -> bool:
        """True when something may be there, False after the time."""
        return bool(self._poll.poll(seconds * self._unit))

    def close(self) -> None:
        if hasattr(self._poll, "close"):
            self._poll.close()
        self._ear.close()
        self._mouth.close()
