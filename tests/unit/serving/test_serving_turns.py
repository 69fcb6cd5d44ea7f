"""Which thread does the work: who waits drives the link, and fast models run where the networking is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from valueguide.errors import LinkError
from valueguide.serving import pace
from valueguide.serving.pace import FAST_S, Pace
from valueguide.serving.server import ServerSettings
from valueguide.testing.fakes import FakePolicy
from valueguide.transport import link as link_module
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideReply, PolicyFacts, Welcome, body_of, decision_message
from valueguide.transport.pending import LinkSettings, Pending
from valueguide.transport.wire import Message, decode, encode
from valueguide.types import Candidates, Decision, Observation

sys.path.insert(0, str(Path(__file__).parent))
from serving_helpers import ANYWHERE, FakeGatedPolicy, Raw, link, request, running


class ByHand:
    """A server that answers when the test says so, and what it says."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def take(self, kind: str) -> tuple[bytes, int]:
        """Sender and number of the next message of that kind."""
        while True:
            assert self.socket.poll(10_000), f"no {kind}"
            name, *frames = self.socket.recv_multipart()
            message = decode(frames)
            if message.kind == kind:
                return name, message.seq

    def welcome(self) -> None:
        name, seq = self.take("hello")
        body = body_of(Welcome("here", PolicyFacts("p", 2, 3), None))
        self.socket.send_multipart([name, *encode(Message("welcome", 7, 1, seq, body=body))])

    def decide(self, asked: tuple[bytes, int], value: float) -> None:
        chunk = DecideReply(np.full((3, 2), value, np.float32), Decision(0, "best"), 3)
        body, arrays = decision_message(chunk)
        self.socket.send_multipart(
            [asked[0], *encode(Message("decision", 7, 1, asked[1], body=body, arrays=arrays))]
        )


@contextmanager
def by_hand(**options: Any) -> Iterator[tuple[ByHand, ServerLink]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(ANYWHERE)
        server = ByHand(socket)
        settings = LinkSettings(server.endpoint, **{"timeout_s": 20.0, "ping_s": 60.0, **options})
        with ServerLink(settings) as connection:
            server.welcome()
            connection.connect(20)
            yield server, connection


class Waiter(threading.Thread):
    """Waits for an answer in a thread of its own, and keeps what came."""

    def __init__(self, pending: Pending) -> None:
        super().__init__(daemon=True)
        self.pending, self.found, self.error = pending, float("nan"), ""
        self.start()

    def run(self) -> None:
        try:
            self.found = float(self.pending.result().reply.actions[0, 0])
        except LinkError as error:
            self.error = str(error)


def driven(connection: ServerLink) -> None:
    """Until a thread that waits does the link's work."""
    limit = time.monotonic() + 10
    while not connection._driven:
        assert time.monotonic() < limit
        time.sleep(0.01)


# -- the robot's side ------------------------------------------------------------------------------


def test_who_asks_and_waits_sends_and_receives_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    received: list[int] = []
    send, receive = link_module.send, link_module.receive
    with running() as server, link(server, timeout_s=20.0, ping_s=60.0) as connection:
        connection.connect(20)
        monkeypatch.setattr(link_module, "send", lambda *a: (sent.append(threading.get_ident()), send(*a)))
        monkeypatch.setattr(
            link_module, "receive", lambda *a: (received.append(threading.get_ident()), receive(*a))[1]
        )
        for seed in range(20):
            connection.ask(request(seed)).result()
        me = threading.get_ident()
        assert len(sent) == len(received) == 20
        # Not all: on a busy machine the link's own thread may just have the turn.
        assert sent.count(me) > 10 and received.count(me) > 10


def test_pictures_are_not_compressed_by_who_only_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders: list[int] = []
    encode_message = link_module.encode
    with running() as server, link(server, pictures="jpeg", timeout_s=20.0) as connection:
        connection.connect(20)
        monkeypatch.setattr(
            link_module, "encode", lambda *a: (encoders.append(threading.get_ident()), encode_message(*a))[1]
        )
        pending = connection.ask(request())
        while not pending.done:
            time.sleep(0.01)
        assert encoders and threading.get_ident() not in encoders


def test_an_answer_nobody_waits_for_is_there_without_a_look() -> None:
    with by_hand() as (server, connection):
        pending = connection.ask(request())
        server.decide(server.take("decide"), 3.0)
        limit = time.monotonic() + 10
        while not pending.done:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert pending.result().reply.actions[0, 0] == 3.0


def test_who_waits_also_sends_and_receives_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_REST_S", 30.0)  # it is woken, and does not just look now and then
    with by_hand() as (server, connection):
        first = Waiter(connection.ask(request(1)))
        asked = server.take("decide")
        driven(connection)
        second = Waiter(connection.ask(request(2)))
        server.decide(server.take("decide"), 2.0)
        second.join(10)
        assert second.found == 2.0 and first.is_alive()
        server.decide(asked, 1.0)
        first.join(10)
        assert first.found == 1.0


def test_what_is_still_open_when_the_one_who_waited_leaves_is_answered() -> None:
    with by_hand() as (server, connection):
        first = Waiter(connection.ask(request(1)))
        asked = server.take("decide")
        driven(connection)
        second = Waiter(connection.ask(request(2)))
        other = server.take("decide")
        server.decide(asked, 1.0)
        first.join(10)
        server.decide(other, 2.0)
        second.join(10)
        assert (first.found, second.found) == (1.0, 2.0)


def test_a_shorter_deadline_than_that_of_who_has_the_turn_holds() -> None:
    with by_hand(retry_s=60.0) as (server, connection):
        Waiter(connection.ask(request(1)))
        server.take("decide")
        driven(connection)
        start = time.monotonic()
        with pytest.raises(LinkError, match="no answer in time"):
            connection.ask(request(2), timeout_s=0.3).result()
        assert time.monotonic() - start < 3.0


def test_pings_go_out_while_somebody_waits_and_while_nobody_does() -> None:
    with by_hand(ping_s=0.2, silent_s=60.0) as (server, connection):
        server.take("ping")
        server.take("ping")
        waiter = Waiter(connection.ask(request()))
        asked = server.take("decide")
        driven(connection)
        server.take("ping")
        server.take("ping")
        server.decide(asked, 1.0)
        waiter.join(10)
        assert waiter.found == 1.0


def test_to_close_ends_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_REST_S", 30.0)
    with by_hand() as (server, connection):
        waiter = Waiter(connection.ask(request()))
        server.take("decide")
        driven(connection)
        start = time.monotonic()
        connection.close()
        waiter.join(10)
        assert "closed" in waiter.error and time.monotonic() - start < 5.0


def test_after_an_interrupt_nothing_half_sent_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server, link(server, timeout_s=20.0, retry_s=0.2) as connection:
        connection.connect(20)
        send = link_module.send

        def interrupted(socket: Any, frames: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                socket.send(frames[0], zmq.SNDMORE)
                raise KeyboardInterrupt
            send(socket, frames)

        monkeypatch.setattr(link_module, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for seed in range(100):
                connection.ask(request(seed)).result()
        monkeypatch.setattr(link_module, "send", send)
        chunk = connection.ask(request(3)).result().reply.actions
        policy = FakePolicy()
        policy.observe(Observation({}, np.float32([0.0, 1.0]), "reach"))
        assert np.array_equal(chunk, policy.sample(4, 3).actions[0])
        assert connection.counters.connections == 2


# -- the server's side -----------------------------------------------------------------------------


class FakeWatchedPolicy(FakeGatedPolicy):
    """Remembers in which threads it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def sample(self, k: int, seed: int) -> Candidates:
        self.threads.append(threading.current_thread().name)
        return super().sample(k, seed)


def test_fast_are_models_whose_last_passes_all_were() -> None:
    models, others, found = object(), object(), Pace()
    for _ in range(5):
        assert not found.fast(models)
        found.took(models, FAST_S / 2)
    assert found.fast(models) and not found.fast(others)
    found.took(models, 2 * FAST_S)
    for _ in range(5):
        assert not found.fast(models)
        found.took(models, FAST_S / 2)
    assert found.fast(models)
    found.took(others, FAST_S / 2)
    assert not found.fast(models) and not found.fast(others)


@pytest.mark.parametrize("limit_s", [60.0, 0.0])
def test_models_known_to_be_fast_run_in_the_networks_thread(
    limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FAST_S", limit_s)
    policy = FakeWatchedPolicy()
    with running(policy) as server, Raw(server.endpoint) as robot:
        robot.greet()
        for seed in range(8):
            assert robot.ask("decide", request(seed)).kind == "decision"
        assert policy.threads == ["models"] * 5 + (["network"] * 3 if limit_s else ["models"] * 3)
        server.engine.models = replace(server.engine.models)
        robot.ask("decide", request(8))
        assert policy.threads[-1] == "models"  # others than those that are known


def test_pings_are_answered_while_fast_models_are_being_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FAST_S", 60.0)
    with running(FakeWatchedPolicy()) as server, Raw(server.endpoint) as robot:
        robot.greet()
        for seed in range(6):
            robot.ask("decide", request(seed))
        with server.engine.pause:
            robot.send(robot.message("decide", request(6)))
            assert robot.ask("ping").kind == "pong"
        assert robot.receive().kind == "decision"


def test_an_end_does_not_wait_for_models_that_were_fast_and_hang_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FAST_S", 60.0)
    policy = FakeWatchedPolicy()
    settings = ServerSettings(ANYWHERE, drain_s=0.3)
    with running(policy, settings=settings) as server, Raw(server.endpoint) as robot:
        robot.greet()
        for seed in range(6):
            robot.ask("decide", request(seed))
        policy.gate.clear()
        policy.began.clear()
        robot.send(robot.message("decide", request(6)))
        assert policy.began.wait(10) and policy.threads[-1] == "network"
        start = time.monotonic()
        server.stop()
    assert time.monotonic() - start < 10
    policy.gate.set()
