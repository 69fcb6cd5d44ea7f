"""`ServerLink`: a robot's connection to a server, over which it asks ahead and waits with a deadline.

A thread that waits for an answer does the link's work itself meanwhile: sends, receives, pings. While none
waits, the link's own thread does. Whoever does it holds `_turn`, and so the socket, which ZeroMQ allows to
one thread at a time.

When an answer is missed the socket is thrown away, and a new connection begins with a new session: what was
still under way cannot arrive any more, so an old chunk is never taken for a new one.
When the connection is cut, or the server has forgotten the session, the link greets again by itself and asks
what is open once more, until its deadline: a question is complete in itself, so nothing else is lost.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from valueguide.errors import DataError, LinkError
from valueguide.transport.clock import ClockOffset
from valueguide.transport.keys import check_endpoint, use_client_keys
from valueguide.transport.messages import (
    BYE,
    DECIDE,
    DECISION,
    HELLO,
    PING,
    REFUSED,
    WELCOME,
    DecideRequest,
    Hello,
    Refusal,
    Welcome,
    body_of,
    decide_message,
    read_decision,
    read_refusal,
    read_welcome,
)
from valueguide.transport.pending import Answer, Counters, LinkSettings, Pending
from valueguide.transport.sockets import Sleep, poll, receive, send
from valueguide.transport.wire import NOTHING, Message, decode, encode

log = logging.getLogger("valueguide.transport")
_QUEUE, _MAX_FRAME = 8, 1 << 25
#: Seconds. The link's thread looks at least so often: a question nobody waits for ends up to that late.
_LOOK_S = 0.1
#: Who asks waits up to so long for a thread that is just about to end its turn.
_SHORT_S = 0.005
#: Who waits looks at least so often, seconds, though nothing is due.
_REST_S = 1.0


class ServerLink:
    """Connects in the background from the start, and again whenever the connection is lost.

    welcome: what the server said of its models last, None before. trouble: what is wrong now, "" if nothing.
    Raises ConfigError at once when the endpoint needs keys, or a key file is damaged.
    """

    def __init__(self, settings: LinkSettings) -> None:
        check_endpoint(settings.endpoint, settings.keys)
        self.settings = settings
        self.clock = ClockOffset()
        self.counters = Counters()
        self.welcome: Welcome | None = None
        self.trouble = "not connected yet"
        self._context = zmq.Context()
        self._inbox: deque[Pending] = deque()
        self._connected = threading.Event()
        self._closed = threading.Event()
        self._sleep = Sleep()
        self._turn = threading.Lock()  # all below belongs to who has it
        self._asked: deque[Pending] = deque()
        self._open: dict[int, Pending] = {}
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._readers: tuple[Any, ...] = (self._sleep.wake_fd,)
        self._session, self._seq = 0, 0
        self._stamps: dict[int, int] = {}
        self._last_heard = self._last_ping = self._opened = self._due = -math.inf
        self._ended = self._driven = False
        if settings.keys is not None:  # so that damaged keys are said here and not in the thread
            with self._context.socket(zmq.DEALER) as probe:
                use_client_keys(probe, settings.keys)
        self._thread = threading.Thread(target=self._run, daemon=True, name="server link")
        self._thread.start()

    # -- from outside, any thread ----------------------------------------------------------------

    def connect(self, timeout_s: float) -> Welcome:
        """Waits until the server has said what it offers. Raises LinkError when it does not in time."""
        if not self._connected.wait(timeout_s) or self.welcome is None:
            raise LinkError(f"server {self.settings.endpoint}: {self.trouble}")
        return self.welcome

    def ask(self, request: DecideRequest, timeout_s: float | None = None) -> Pending:
        """A question; returns at once. It is sent when there is a connection, until its deadline.

        The request's arrays must not change until it is answered.
        """
        now = time.monotonic()
        pending = Pending(request, now, now + (timeout_s or self.settings.timeout_s), self._drive)
        self._inbox.append(pending)
        # Raw pictures are sent from here; to compress them takes too long for who only asks.
        here = self.settings.pictures == "raw" and not self._driven
        if not (here and self._in_turn(self._send_asked, _SHORT_S)):
            self._sleep.wake()
        return pending

    def close(self) -> None:
        """Says goodbye. Open questions end with LinkError."""
        if not self._closed.is_set():
            self._closed.set()
            self._sleep.wake()
            self._thread.join()
            self._context.term()

    def __enter__(self) -> ServerLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- whose turn it is ------------------------------------------------------------------------

    def _in_turn(self, work: Callable[[], None], wait_s: float) -> bool:
        """Do it, unless another thread keeps the turn for longer than that; -1: however long."""
        if not self._turn.acquire(timeout=wait_s):
            return False
        try:
            work()
        except BaseException:
            # A Ctrl-C, say between two frames: the next message must not be appended to these.
            self._give_up("interrupted")
            raise
        finally:
            self._turn.release()
        return True

    def _drive(self, pending: Pending) -> None:
        """In the thread that waits for it: the link's work until it is done, if no other thread does it."""
        if self._driven:
            return
        wait_s = max(0.0, pending.deadline - time.monotonic())
        self._in_turn(lambda: self._drive_until(pending), wait_s)

    def _drive_until(self, pending: Pending) -> None:
        self._driven = True
        self._sleep.hush(True)
        try:
            while not pending.done and not self._closed.is_set():
                self._look_after()
                # Rounded up: a poll that ends just before its time would spin.
                self._take_news(math.ceil(1e3 * min(_REST_S, max(0.0, self._due - time.monotonic()))))
        finally:
            self._driven = False
            self._sleep.hush(False)
        self._send_asked()

    def _run(self) -> None:
        """The link's own thread, for while nobody waits."""
        try:
            self._in_turn(self._look_after, -1)
            while not self._closed.is_set():
                # Not 0, lest it spins while the thread that has the turn is about to do what is due.
                woken = self._sleep.sleep(min(_LOOK_S, max(1e-3, self._due - time.monotonic())))
                # Who has the turn is also told; so waiting for its end instead of sleeping loses nothing.
                self._in_turn(self._work, -1 if woken else 0)
        finally:
            self._in_turn(self._end, -1)

    def _work(self) -> None:
        self._take_news()
        self._look_after()

    def _look_after(self) -> None:
        """All but waiting and receiving, and when it is to be done next."""
        self._check_deadlines()
        self._connect_if_due()
        self._send_asked()
        due = (
            self._last_ping + self.settings.ping_s if self._session else self._opened + self.settings.retry_s
        )
        self._due = min([due, *[p.deadline for p in (*self._open.values(), *self._asked)]])

    def _end(self) -> None:
        if self._session and self._socket is not None:
            with contextlib.suppress(zmq.Again):
                self._send(BYE)
        self._ended = True
        self._send_asked()
        self._sleep.close()

    def _connect_if_due(self) -> None:
        now = time.monotonic()
        waited = now - self._opened
        if self._socket is not None and not self._session and waited > self.settings.retry_s:
            self._give_up(self.trouble if self.trouble.startswith("refused") else "no answer to hello")
            self._opened = -math.inf  # the wait for the answer was the pause
        if self._socket is None and now - self._opened >= self.settings.retry_s:
            self._socket = self._new_socket()
            self._opened = self._last_ping = now
            self._send(HELLO, greeting=Hello(self.settings.name[:64]))

    def _new_socket(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _QUEUE
        socket.maxmsgsize = _MAX_FRAME
        socket.ipv6 = "[" in self.settings.endpoint
        if self.settings.keys is not None:
            use_client_keys(socket, self.settings.keys)
        # ZeroMQ would connect again behind our back, to a server that does not know the session there.
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self.settings.endpoint)
        self._readers = (socket, self._monitor, self._sleep.wake_fd)
        self._sleep.watch(socket, self._monitor)
        return socket

    def _give_up(self, why: str, linger_ms: int = 0) -> None:
        """The connection, and everything that was asked over it."""
        self._sleep.watch()
        if self._socket is not None and self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close(linger=linger_ms)
        self._socket, self._monitor, self._session = None, None, 0
        self._connected.clear()
        self._readers = (self._sleep.wake_fd,)
        self.trouble = why
        self._stamps.clear()
        for pending in self._open.values():
            pending.finish(error=LinkError(f"server {self.settings.endpoint}: {why}"))
        self._open.clear()
        if self._ended:
            while self._asked:
                self._asked.popleft().finish(error=LinkError(f"server {self.settings.endpoint}: {why}"))

    def _greet_again(self, why: str) -> None:
        """A new connection and session at once. What is open is asked there, once more and no oftener."""
        log.info("server %s: %s; greeting it again", self.settings.endpoint, why)
        again = [pending for pending in self._open.values() if not pending.repeats]
        for pending in again:
            pending.repeats += 1
            self._open.pop(pending.seq)
        self.counters.repeated += len(again)
        self._asked.extendleft(reversed(again))
        self._give_up(why)
        self._opened = -math.inf

    def _send(self, kind: str, pending: Pending | None = None, greeting: Hello | None = None) -> None:
        assert self._socket is not None
        self._seq += 1
        packed = body_of(greeting) if greeting else NOTHING
        arrays: dict[str, Any] = {}
        if pending is not None:
            packed, arrays = decide_message(pending.request)
        now, sent_ns = time.monotonic(), time.monotonic_ns()
        message = Message(
            kind,
            session=self._session,
            seq=self._seq,
            sent_ns=sent_ns,
            deadline_ns=sent_ns + int(1e9 * (pending.deadline - now)) if pending else 0,
            offset_ns=self.clock.offset_ns,
            body=packed,
            arrays=arrays,
        )
        frames = encode(message, self.settings.pictures if pending else "raw")
        send(self._socket, frames)
        self._stamps[self._seq] = sent_ns
        if pending is not None:
            pending.seq, pending.sent_ns = self._seq, sent_ns
            self._open[self._seq] = pending

    def _send_asked(self) -> None:
        while self._inbox:
            self._asked.append(self._inbox.popleft())
        if self._ended:
            self._give_up("the link is closed", linger_ms=200)
        while self._session and self._asked:
            pending = self._asked.popleft()
            try:
                self._send(DECIDE, pending)
            except DataError as error:  # it cannot be a message
                pending.finish(error=error)
            except zmq.Again:
                self.counters.missed += 1
                pending.finish(error=LinkError(f"server {self.settings.endpoint}: takes no more messages"))
                self._give_up("takes no more messages")

    def _check_deadlines(self) -> None:
        now, settings = time.monotonic(), self.settings
        for pending in [p for p in self._asked if p.deadline <= now]:
            self._asked.remove(pending)
            self.counters.missed += 1
            pending.finish(error=LinkError(f"server {settings.endpoint}: {self.trouble}"))
        if any(pending.deadline <= now for pending in self._open.values()):
            self.counters.missed += 1
            self._give_up("no answer in time")
            self._opened = -math.inf
        if not self._session or now - self._last_ping < settings.ping_s:
            return
        if now - self._last_heard > settings.silent_s:
            self._give_up(f"silent for {settings.silent_s:g} s")
            return
        self._last_ping = now
        try:
            self._send(PING)
        except zmq.Again:
            self._give_up("takes no more messages")

    # -- what comes ------------------------------------------------------------------------------

    def _take_news(self, timeout_ms: int = 0) -> None:
        """What is there, or comes in that time."""
        ready = poll(self._readers, timeout_ms)
        monitor = self._monitor
        if self._sleep.wake_fd in ready:
            self._sleep.heard()
        if self._socket is not None and self._socket in ready:
            self._receive(self._socket)
        if monitor is not None and monitor is self._monitor and monitor in ready:
            receive(monitor)
            if self._session:
                self._greet_again("the connection was cut")

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        """All that waits: a socket whose messages were not all taken does not end a sleep."""
        while True:
            frames, now_ns = receive(socket), time.monotonic_ns()
            try:
                self._take(decode([frame.buffer for frame in frames]), now_ns)
            except DataError as error:
                self.trouble = f"refused: {error}"
                self.counters.dropped += 1
            if socket is not self._socket or not poll((socket,)):
                return

    def _take(self, message: Message, now_ns: int) -> None:
        if self._session:
            # A server that does not know the session cannot repeat it.
            fits = message.session == self._session or (message.kind == REFUSED and not message.session)
        else:
            fits = message.kind in (WELCOME, REFUSED)
        if message.answers not in self._stamps or not fits:
            self.counters.dropped += 1
            return
        sent_ns = self._stamps.pop(message.answers)
        pending = self._open.pop(message.answers, None)
        self._last_heard = now_ns * 1e-9
        if not self._session and message.kind == WELCOME:
            self._begin_session(message)
        if message.received_ns:
            self.clock.add(sent_ns, message.received_ns, message.sent_ns, now_ns)
        if message.kind == REFUSED:
            self._take_refusal(message, pending)
        elif pending is not None:
            self._take_answer(message, pending, now_ns)

    def _begin_session(self, message: Message) -> None:
        welcome = read_welcome(message)
        if self.welcome is None or welcome.server != self.welcome.server:
            self.clock.clear()
        self._session, self.welcome, self.trouble = message.session, welcome, ""
        self.counters.connections += 1
        self._connected.set()

    def _take_refusal(self, message: Message, pending: Pending | None) -> None:
        try:
            refusal = read_refusal(message)
        except DataError as error:  # refused all the same: who asked must not wait longer
            refusal = Refusal("unreadable", str(error))
        code, self.counters.refused = refusal.code, self.counters.refused + 1
        why = f"refused ({code}): {refusal.text}"
        if pending is not None and self._session and code == "no_session" and not pending.repeats:
            self._open[pending.seq] = pending  # the server did not look at it
        elif pending is not None:
            pending.finish(error=LinkError(f"server {self.settings.endpoint} {why}"))
        if not self._session:
            self.trouble = why
        elif code == "no_session":
            self._greet_again(why)
        elif code in ("draining", "unreadable"):
            self._give_up(why)

    def _take_answer(self, message: Message, pending: Pending, now_ns: int) -> None:
        if message.kind != DECISION:
            pending.finish(error=DataError(f"server: expected a decision, found {message.kind!r}"))
            return
        if now_ns * 1e-9 >= pending.deadline:  # it waited here, because this process or thread stood still
            self.counters.missed += 1
            pending.finish(error=LinkError(f"server {self.settings.endpoint}: no answer in time"))
            return
        try:
            reply = read_decision(message)
        except DataError as error:
            pending.finish(error=error)
            return
        self.counters.answers += 1
        ours = self.clock.to_ours(message.sent_ns)
        round_trip_s = now_ns * 1e-9 - pending.asked
        thought_s = max(0, message.sent_ns - message.received_ns) * 1e-9
        pending.finish(
            Answer(reply, round_trip_s, now_ns if ours is None else ours, max(0.0, round_trip_s - thought_s))
        )
