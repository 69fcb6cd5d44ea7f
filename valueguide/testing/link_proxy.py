"""A TCP proxy that makes a bad network of a good one: delay, jitter, loss, bandwidth, silence, cuts.

    with LinkProxy(server_port, LinkFaults(delay_s=0.05, jitter_s=0.02)) as proxy:
        connect to 127.0.0.1:proxy.port

What TCP hides stays hidden: within a connection bytes arrive complete and in order, so a lost packet shows as
a stall of everything behind it; only different connections overtake each other. In flight are at most 1 MiB
each way, as in a TCP window. For any protocol over TCP: ZeroMQ, HTTP, WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

_CHUNK, _IN_FLIGHT = 16_384, 64
UP, DOWN = "up", "down"


@dataclass(frozen=True)
class LinkFaults:
    """What happens to bytes, each way separately.

    delay_s, jitter_s: a piece of up to 16 kB is late by delay_s ± jitter_s, uniform. loss: probability that a
    piece is lost and sent again, which takes stall_s more (TCP waits 0.2 s or longer before that).
    bytes_per_s: bandwidth. seed: of jitter and loss, with the connection's number and direction.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    stall_s: float = 0.2
    bytes_per_s: float = math.inf
    seed: int = 0


class Schedule:
    """When each piece of one direction of one connection arrives. Never before the piece in front of it."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._sent = self._due = -math.inf

    def due(self, now: float, size: int, faults: LinkFaults) -> float:
        """The time at which a piece of `size` bytes, ready at `now`, arrives."""
        self._sent = max(now, self._sent) + size / faults.bytes_per_s
        late = faults.delay_s + self._random.uniform(-faults.jitter_s, faults.jitter_s)
        if self._random.random() < faults.loss:
            late += faults.stall_s
        self._due = max(self._due, self._sent + max(0.0, late))
        return self._due


class LinkProxy:
    """Forwards 127.0.0.1:port to 127.0.0.1:target. Use as a context manager; safe from any thread.

    connections: how many were accepted. forwarded: bytes that arrived, {"up": to the target, "down": back}.
    """

    def __init__(self, target: int, faults: LinkFaults | None = None, port: int = 0) -> None:
        self.target, self.faults, self.port = target, faults or LinkFaults(), port
        self.connections, self.forwarded = 0, {UP: 0, DOWN: 0}
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="link proxy")

    def __enter__(self) -> LinkProxy:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def freeze(self) -> None:
        """Half-open: nothing is forwarded any more, not even a close, and nothing is closed.

        Both sides keep connections that look alive, new ones too, and fill the buffers before them.
        """
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        """What was held back goes on, complete."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def cut(self, refuse: bool = False) -> None:
        """Reset all connections; what is under way is lost. refuse: new ones too, until `mend`."""
        self._refusing = refuse
        self._call(self._reset())

    def mend(self) -> None:
        """New connections are accepted again."""
        self._refusing = False

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        for writer in self._writers:
            _abort(writer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            return _abort(writer)
        number, self.connections = self.connections, self.connections + 1
        self._writers.add(writer)
        task = asyncio.ensure_future(self._serve(number, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until one side fails or both have closed."""
        ours: set[asyncio.StreamWriter] = {writer}
        failed = True
        try:
            await self._flowing.wait()
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ours.add(their_writer)
            self._writers.add(their_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(number, UP, reader, their_writer))
                group.create_task(self._carry(number, DOWN, their_reader, writer))
            failed = False
        except* OSError:
            pass  # one side is gone, and the other is told below
        finally:
            for one in ours:
                _abort(one) if failed else one.close()
            self._writers -= ours

    async def _carry(
        self, number: int, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        schedule = Schedule(f"{self.faults.seed} {number} {way}")

        async def take() -> None:
            data = b" "
            while data:
                data = await reader.read(_CHUNK)
                await self._flowing.wait()
                await under_way.put((schedule.due(self._loop.time(), len(data), self.faults), data))

        async def deliver() -> None:
            data = b" "
            while data:
                due, data = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
                self.forwarded[way] += len(data)
            writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            group.create_task(deliver())


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as a network that lost the connection does."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
