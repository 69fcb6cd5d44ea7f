"""`Server`: takes requests from several robots, gives them to the engine in fair batches, sends the answers.

One thread does all networking; the models run in another, so that pings are answered and requests taken
while they think. Models that are known to answer at once run in the first one, too: to hand a request to
another thread and its answer back would take longer than they do.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import zmq
from msgspec import Raw

from valueguide.errors import DataError, ValueguideError
from valueguide.serving.access import Door, user_of
from valueguide.serving.engine import Engine, Outcome
from valueguide.serving.metrics import Metrics
from valueguide.serving.pace import Pace
from valueguide.serving.sessions import Job, Session, Sessions, describe
from valueguide.transport.keys import ServerKeys
from valueguide.transport.messages import (
    BYE,
    DECIDE,
    DECISION,
    HELLO,
    PING,
    PONG,
    REFUSED,
    WELCOME,
    Refusal,
    Welcome,
    body_of,
    decision_message,
    read_decide,
    read_hello,
)
from valueguide.transport.sockets import poll, receive, send
from valueguide.transport.wire import NOTHING, Limits, Message, decode, encode

log = logging.getLogger("valueguide.serving")
LIMITS = Limits()
_POLL_MS, _HOUSEKEEPING_S = 100, 1.0
#: Seconds that models still working after the drain are waited for: a thread cannot be ended from outside.
_LAST_S = 1.0
#: Messages taken from the socket before answers are sent and batches begun.
_BURST = 64
_WAKE = "inproc://done"


@dataclass(frozen=True)
class ServerSettings:
    """endpoint: tcp://HOST:PORT. keys: needed beyond loopback. max_batch: requests in one pass.

    batch_wait_s: so long a request may wait for others to share a pass with, while the models are idle.
    max_sessions: robots. idle_s: silence after which one is forgotten. drain_s: bound on the graceful end.
    """

    endpoint: str = "tcp://127.0.0.1:7447"
    keys: ServerKeys | None = None
    max_batch: int = 8
    batch_wait_s: float = 0.0
    max_sessions: int = 64
    idle_s: float = 30.0
    drain_s: float = 10.0


class Server:
    """Bound when constructed; `run` serves until `stop`, which may be called from anywhere, a signal too.

    Raises ConfigError when it cannot listen at the endpoint.
    """

    def __init__(self, engine: Engine, settings: ServerSettings, metrics: Metrics | None = None) -> None:
        self.engine, self.settings = engine, settings
        self.metrics = metrics or Metrics()
        self.name = secrets.token_hex(8)
        self._sessions = Sessions(lambda: secrets.randbits(62) + 1, settings.max_sessions, settings.idle_s)
        self._door = Door(settings.endpoint, settings.keys)
        self.endpoint = self._door.endpoint
        self._stop = threading.Event()
        self._batches: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[list[Job], list[Outcome]]] = queue.SimpleQueue()
        self._woken: zmq.Socket[bytes] = self._door.context.socket(zmq.PULL)
        self._woken.bind(_WAKE)
        self._busy = False
        self._drain_until = float("inf")
        self._next_housekeeping = 0.0
        self._pace = Pace()
        self._received = 0
        self._trouble: BaseException | None = None
        self._worker = threading.Thread(target=self._work, daemon=True, name="models")
        self._network = threading.Thread(target=self._serve, daemon=True, name="network")

    # -- from outside ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Finish what was taken, refuse what comes, then end."""
        self._stop.set()

    def health(self) -> dict[str, Any]:
        """For the status page, from any thread."""
        models = self.engine.models
        sessions = [describe(session) for session in [*self._sessions.by_identity.values()]]
        return {
            "status": "draining" if self._stop.is_set() else "ready",
            "endpoint": self.endpoint,
            "server": self.name,
            "policy": models.policy.version,
            "critic": models.critic.version if models.critic else None,
            "sessions": sessions,
            "clients": self._door.allowed.trouble if self._door.allowed else "",
        }

    def run(self) -> None:
        """Serve until `stop` and the drain, however long the models take then."""
        self._worker.start()
        self._network.start()
        limit = float("inf")
        while self._network.is_alive() and time.perf_counter() < limit:
            self._network.join(_LAST_S)
            if self._stop.is_set() and limit == float("inf"):
                limit = time.perf_counter() + self.settings.drain_s + 2 * _LAST_S
        if self._network.is_alive():
            log.error("the models hang: left behind")
        if self._trouble is not None:
            raise self._trouble

    def _serve(self) -> None:
        """In the network's thread."""
        readers = (self._door.socket, self._woken)
        try:
            while not self._finished():
                ready = poll(readers, self._timeout_ms())
                if self._woken in ready:
                    self._woken.recv()
                    self._send_outcomes(*self._done.get())
                if self._door.socket in ready:
                    self._receive()
                self._begin()
                self._keep_house()
        except BaseException as error:  # for the thread that waits in `run`
            self._trouble = error
        finally:
            self._batches.put(None)
            self._worker.join(_LAST_S)
            self._woken.close()
            if self._worker.is_alive():
                log.error("the models hang: left behind")
            self._door.close(abandon=self._worker.is_alive())

    def _finished(self) -> bool:
        if not self._stop.is_set():
            return False
        now = time.perf_counter()
        if self._drain_until == float("inf"):
            log.info("draining")
            self._drain_until = now + self.settings.drain_s
        return (not self._busy and not self._sessions.waiting) or now >= self._drain_until

    def _timeout_ms(self) -> int:
        if self._busy or not self._sessions.waiting or not self.settings.batch_wait_s:
            return _POLL_MS
        return min(_POLL_MS, math.ceil(1e3 * self.settings.batch_wait_s))

    # -- messages in -----------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(_BURST):
            identity, *frames = receive(self._door.socket)
            received_ns = time.monotonic_ns()
            name = identity.bytes
            user = user_of(frames[0]) if frames and self._door.allowed is not None else ""
            try:
                message = decode([frame.buffer for frame in frames], LIMITS)
                self._handle(name, user, message, received_ns)
            except ValueguideError as error:
                self._refuse(name, None, 0, received_ns, "message", str(error))
            except Exception as error:  # such as no memory for it: must not end what serves the others
                log.error("a message could not be taken", exc_info=error)
                self._refuse(name, None, 0, received_ns, "failed", f"{type(error).__name__}: {error}")
            self._received += sum(map(len, frames))
            # One robot alone has nobody to share a pass with: what else it sent can wait for the next round.
            if len(self._sessions.by_identity) < 2 or not poll((self._door.socket,)):
                return

    def _handle(self, identity: bytes, user: str, message: Message, received_ns: int) -> None:
        now = time.perf_counter()
        if message.kind == HELLO:
            self._greet(identity, user, message, received_ns, now)
            return
        session = self._sessions.find(identity, message.session, now)
        if session is None or session.user != user:
            self._refuse(identity, None, message.seq, received_ns, "no_session", "say hello first")
            return
        if message.seq <= session.seq:
            text = f"seq: expected more than {session.seq}, found {message.seq}"
            self._refuse(identity, session, message.seq, received_ns, "replayed", text)
            return
        session.seq = message.seq
        if message.kind == PING:
            self._send(identity, self._reply(PONG, session, message.seq, received_ns))
        elif message.kind == DECIDE:
            self._take(session, message, received_ns, now)
        elif message.kind == BYE:
            self._sessions.close(identity)
        else:
            text = f"kind: expected hello, decide, ping or bye, found {message.kind!r}"
            self._refuse(identity, session, message.seq, received_ns, "message", text)

    def _greet(self, identity: bytes, user: str, message: Message, received_ns: int, now: float) -> None:
        if self._stop.is_set():
            self._refuse(identity, None, message.seq, received_ns, "draining", "this server ends")
            return
        try:
            name = read_hello(message).name[:64]
        except DataError as error:
            self._refuse(identity, None, message.seq, received_ns, "message", str(error))
            return
        session = self._sessions.open(identity, name, user, message.seq, now)
        if session is None:
            text = f"sessions: expected at most {self.settings.max_sessions}, found one more"
            self._refuse(identity, None, message.seq, received_ns, "busy", text)
            return
        log.info("session of %r", name)
        models = self.engine.models
        welcome = body_of(Welcome(self.name, models.policy_facts(), models.critic_facts()))
        self._send(identity, self._reply(WELCOME, session, message.seq, received_ns, welcome))

    def _take(self, session: Session, message: Message, received_ns: int, now: float) -> None:
        if self._stop.is_set():
            self._refuse(session.identity, session, message.seq, received_ns, "draining", "this server ends")
            return
        try:
            request = read_decide(message)
        except DataError as error:
            self._refuse(session.identity, session, message.seq, received_ns, "message", str(error))
            return
        before = session.waiting
        if before is not None:
            text = f"the same robot asked again with seq {message.seq}"
            self._refuse(session.identity, session, before.seq, before.received_ns, "superseded", text)
        deadline = _deadline(message, received_ns, now)
        session.waiting = Job(
            session.identity, session.number, message.seq, request, now, received_ns, deadline
        )

    # -- batches ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give the models what waits, unless they work, or others may still join."""
        waiting = self._sessions.waiting
        if self._busy or not waiting:
            return
        now = time.perf_counter()
        if waiting < self.settings.max_batch and not self._stop.is_set():
            jobs = [s.waiting for s in self._sessions.by_identity.values() if s.waiting is not None]
            if now - min(job.arrived for job in jobs) < self.settings.batch_wait_s:
                return
        batch, late = self._sessions.take(self.settings.max_batch, now)
        for job in late:
            session = self._sessions.find(job.identity, job.session, now)
            text = "its deadline passed before it was begun"
            self._refuse(job.identity, session, job.seq, job.received_ns, "late", text)
        if not batch:
            return
        models, begun = self.engine.models, time.perf_counter()
        outcomes = self._answer(batch, wait=False) if self._pace.fast(models) else None
        if outcomes is None:
            self._busy = True
            self._batches.put(batch)
        else:
            self._pace.took(models, time.perf_counter() - begun)
            self._send_outcomes(batch, outcomes)

    def _answer(self, jobs: list[Job], wait: bool) -> list[Outcome] | None:
        """None while the models are being changed, unless it is to wait for that."""
        try:
            return self.engine.answer(jobs, wait)
        except Exception as error:  # must reach the robots, not end the thread
            return [error] * len(jobs)

    def _work(self) -> None:
        """In the models' thread."""
        done: zmq.Socket[bytes] = self._door.context.socket(zmq.PUSH)
        done.connect(_WAKE)
        done.sndtimeo = 1000  # nobody listens any more when the end did not wait for this
        try:
            while (jobs := self._batches.get()) is not None:
                models, begun = self.engine.models, time.perf_counter()
                outcomes = self._answer(jobs, wait=True)
                self._pace.took(models, time.perf_counter() - begun)
                self._done.put((jobs, outcomes or []))
                done.send(b"")
        except zmq.Again:
            return
        finally:
            done.close(linger=0)

    def _send_outcomes(self, jobs: list[Job], outcomes: list[Outcome]) -> None:
        self._busy = False
        for job, outcome in zip(jobs, outcomes, strict=True):
            session = self._sessions.by_identity.get(job.identity)
            if session is None or session.number != job.session:
                self.metrics.requests.labels("gone").inc()
                continue
            if isinstance(outcome, Exception):
                self._tell_failure(session, job, outcome)
                continue
            try:
                packed, arrays = decision_message(outcome)
                reply = self._reply(DECISION, session, job.seq, job.received_ns, packed, arrays)
                self._send(job.identity, reply)
            except Exception as error:  # as where messages are taken
                self._tell_failure(session, job, error)
                continue
            session.decisions += 1
            self.metrics.answered(outcome, time.perf_counter() - job.arrived)
        self.metrics.batch.observe(len(jobs))

    def _tell_failure(self, session: Session, job: Job, error: Exception) -> None:
        code, text = "message", str(error)
        if not isinstance(error, ValueguideError):
            log.error("the models failed", exc_info=error)
            code, text = "failed", f"{type(error).__name__}: {error}"
        self._refuse(job.identity, session, job.seq, job.received_ns, code, text)

    # -- messages out ----------------------------------------------------------------------------

    def _reply(
        self,
        kind: str,
        session: Session | None,
        answers: int,
        received_ns: int,
        packed: Raw = NOTHING,
        arrays: dict[str, Any] | None = None,
    ) -> Message:
        return Message(
            kind,
            session=session.number if session else 0,
            seq=session.next_seq() if session else 0,
            answers=answers,
            sent_ns=time.monotonic_ns(),
            received_ns=received_ns,
            body=packed,
            arrays=arrays or {},
        )

    def _refuse(
        self, identity: bytes, session: Session | None, seq: int, received_ns: int, code: str, text: str
    ) -> None:
        self.metrics.requests.labels(code).inc()
        log.info("refused (%s): %s", code, text)
        refusal = body_of(Refusal(code, " ".join(text.split())[:500]))
        self._send(identity, self._reply(REFUSED, session, seq, received_ns, refusal))

    def _send(self, identity: bytes, message: Message) -> None:
        frames = encode(message)
        try:
            send(self._door.socket, (identity, *frames))
        except zmq.Again:  # a robot that does not read: its answers are dropped, it will ask again
            self.metrics.requests.labels("unread").inc()
            return
        self.metrics.sent.inc(sum(map(len, frames)))

    def _keep_house(self) -> None:
        self.metrics.waiting.set(self._sessions.waiting)
        self.metrics.received.inc(self._received)  # here, where no answer waits for it
        self._received = 0
        now = time.perf_counter()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + _HOUSEKEEPING_S
        self._sessions.expire(now)
        allowed = self._door.allowed
        if allowed is not None and allowed.refresh():
            for session in self._sessions.close_users(allowed.keys):
                log.warning("the key of %r is not on the list any more", session.name)
        self.metrics.sessions.set(len(self._sessions.by_identity))


def _deadline(message: Message, received_ns: int, now: float) -> float:
    """The deadline on the server's clock, seconds: by the sender's estimate of the offset if it has one."""
    if not message.deadline_ns:
        return float("inf")
    if message.offset_ns is not None:
        return now + (message.deadline_ns + message.offset_ns - received_ns) * 1e-9
    return now + (message.deadline_ns - message.sent_ns) * 1e-9
