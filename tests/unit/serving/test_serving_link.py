"""The robot's side against real servers: deadlines, no stale chunk, new connections, keys."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from valueguide.errors import ConfigError, DataError, LinkError
from valueguide.serving.server import ServerSettings
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy
from valueguide.transport.keys import ClientKeys, ServerKeys, make_keys
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import (
    DecideReply,
    DecideRequest,
    PolicyFacts,
    Refusal,
    Welcome,
    body_of,
    decision_message,
)
from valueguide.transport.packing import pack
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide.transport.wire import Message, decode, encode
from valueguide.types import Decision, Observation

sys.path.insert(0, str(Path(__file__).parent))
from serving_helpers import ANYWHERE, FakeGatedPolicy, Raw, link, observation, request, running, said


def chunk_of(seed: int, position: float = 0.0) -> np.ndarray:
    policy = FakePolicy()
    policy.observe(observation(position))
    return policy.sample(4, seed).actions[0]


def test_questions_are_asked_ahead() -> None:
    policy = FakeGatedPolicy()
    with running(policy) as server, link(server) as connection:
        connection.connect(10)
        policy.gate.clear()
        pending = connection.ask(request(3))
        assert policy.began.wait(10) and not pending.done
        policy.gate.set()
        answer = pending.result()
        assert np.array_equal(answer.reply.actions, chunk_of(3))
        assert answer.round_trip_s >= answer.network_s >= 0


def test_a_missed_answer_is_never_taken_for_a_later_one() -> None:
    policy = FakeGatedPolicy()
    with running(policy) as server, link(server) as connection:
        connection.connect(10)
        policy.gate.clear()
        missed = connection.ask(request(1), timeout_s=0.3)
        start = time.monotonic()
        with pytest.raises(LinkError, match="no answer in time"):
            missed.result()
        assert 0.2 < time.monotonic() - start < 2.0
        policy.gate.set()  # now the old answer is sent, to a connection that is gone
        answer = connection.ask(request(2)).result()
        assert np.array_equal(answer.reply.actions, chunk_of(2))
        assert connection.counters.missed == 1 and connection.counters.connections == 2


def test_without_a_server_the_deadline_holds() -> None:
    with Raw("tcp://127.0.0.1:9"), ServerLink(LinkSettings("tcp://127.0.0.1:9", retry_s=0.1)) as connection:
        start = time.monotonic()
        with pytest.raises(LinkError, match="server tcp://127.0.0.1:9: no"):
            connection.ask(request(), timeout_s=0.4).result()
        assert 0.3 < time.monotonic() - start < 2.0
        with pytest.raises(LinkError):
            connection.connect(0.1)


def test_another_server_at_the_same_place_is_found_and_told_apart() -> None:
    with running() as first:
        endpoint = first.endpoint
        connection = ServerLink(LinkSettings(endpoint, timeout_s=5.0, ping_s=0.2, silent_s=1.0, retry_s=0.3))
        name = connection.connect(10).server
        connection.ask(request()).result()
    with pytest.raises(LinkError):
        connection.ask(request(), timeout_s=0.5).result()
    with running(settings=ServerSettings(endpoint)):
        assert np.array_equal(connection.ask(request(4), timeout_s=20.0).result().reply.actions, chunk_of(4))
        assert connection.welcome is not None and connection.welcome.server != name
    connection.close()


def test_a_server_that_lost_the_session_is_greeted_again() -> None:
    with running(idle_s=0.0) as server, link(server, ping_s=60.0) as connection:
        connection.connect(10)
        time.sleep(1.5)  # the server keeps house once a second
        pending = connection.ask(request(3))
        assert np.array_equal(pending.result().reply.actions, chunk_of(3))
        assert pending.repeats == 1
        counters = connection.counters
        assert (counters.connections, counters.repeated, counters.answers) == (2, 1, 1)


def test_a_server_that_never_knows_the_session_is_asked_twice_and_no_more() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        server.linger = 0
        server.bind(ANYWHERE)
        endpoint = server.getsockopt_string(zmq.LAST_ENDPOINT)
        with ServerLink(LinkSettings(endpoint, timeout_s=20.0, ping_s=60.0)) as connection:
            pending, kinds = connection.ask(request()), []
            while not pending.done:
                if not server.poll(50):
                    continue
                name, *frames = server.recv_multipart()
                asked = decode(frames)
                kinds.append(asked.kind)
                kind, body = "refused", body_of(Refusal("no_session", "say hello first"))
                if asked.kind == "hello":
                    kind, body = "welcome", body_of(Welcome("here", PolicyFacts("p", 2, 3), None))
                reply = Message(kind, 7 if kind == "welcome" else 0, 1, asked.seq, body=body)
                server.send_multipart([name, *encode(reply)])
            with pytest.raises(LinkError, match="no_session"):
                pending.result()
            assert kinds.count("decide") == 2


def test_an_answer_of_another_session_is_no_answer() -> None:
    """A server that answers our question, but as another session's, is not believed."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        server.linger = 0
        server.bind(ANYWHERE)
        endpoint = server.getsockopt_string(zmq.LAST_ENDPOINT)
        with ServerLink(LinkSettings(endpoint, timeout_s=1.0, ping_s=60.0, retry_s=20.0)) as connection:

            def answer(kind: str, session: int, body: msgspec.Raw, arrays: dict[str, Any]) -> None:
                assert server.poll(10_000)
                name, *frames = server.recv_multipart()
                reply = Message(kind, session, 1, decode(frames).seq, body=body, arrays=arrays)
                server.send_multipart([name, *encode(reply)])

            welcome = body_of(Welcome("here", PolicyFacts("p", 2, 3), None))
            chunk = DecideReply(np.zeros((3, 2), np.float32), Decision(0, "best"), 3)
            answer("welcome", 7, welcome, {})
            connection.connect(10)
            pending = connection.ask(request(), 1.0)
            answer("decision", 8, *decision_message(chunk))
            with pytest.raises(LinkError, match="no answer in time"):
                pending.result()
            assert connection.counters.dropped == 1
            answer("welcome", 7, welcome, {})  # it connects anew
            connection.connect(10)
            pending = connection.ask(request(), 10.0)
            answer("decision", 7, *decision_message(chunk))
            assert pending.result().reply.executed_length == 3
            pending = connection.ask(request(), 10.0)
            answer("refused", 7, msgspec.Raw(pack({"code": 3})), {})
            asked = time.monotonic()
            with pytest.raises(LinkError, match="code: expected str, found int"):
                pending.result()
            assert time.monotonic() - asked < 5.0  # and not only at its deadline
            # It may have been "no_session": it connects anew, after `retry_s`.
            assert connection.trouble.startswith("refused (unreadable)")


def test_a_closed_link_says_so() -> None:
    with running() as server:
        connection = link(server)
        connection.connect(10)
        connection.close()
        with pytest.raises(LinkError, match="closed"):
            connection.ask(request()).result()


def test_the_offset_of_two_clocks_on_one_machine_is_nothing() -> None:
    with running() as server, link(server) as connection:
        connection.connect(10)
        for seed in range(5):
            answer = connection.ask(request(seed)).result()
        assert connection.clock.round_trip_ns is not None and connection.clock.offset_ns is not None
        assert abs(connection.clock.offset_ns) <= connection.clock.round_trip_ns
        assert abs(answer.sent_ns - time.monotonic_ns()) < 5e9


def test_a_request_that_is_no_message_is_the_robots_own_error() -> None:
    with running() as server, link(server) as connection:
        connection.connect(10)
        wrong = Observation({}, np.array([None]), "reach")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="dtype"):
            connection.ask(DecideRequest((wrong,), 0)).result()
        assert connection.ask(request(1)).result().reply.decision.index == 0


class FakeSeeingPolicy(FakePolicy):
    """Also looks at one camera, and remembers what it saw."""

    cameras = {"top": (32, 48)}


@pytest.mark.parametrize("pictures", ["raw", "png", "jpeg"])
def test_pictures_arrive_as_chosen_and_only_those_that_are_looked_at(pictures: str) -> None:
    rows, columns = np.mgrid[0:32, 0:48]
    image = np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    policy = FakeSeeingPolicy()
    with running(policy, FakeCritic()) as server, link(server, pictures=pictures) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=2))
        buffer = image.copy()
        remote.observe(Observation({"top": buffer, "side": buffer}, np.float32([0, 1]), "reach"))
        buffer[:] = 0  # a driver's buffer, filled anew before the picture is sent
        remote.plan(0)
        seen = policy.observed[-1].images
        assert set(seen) == {"top"}
        assert np.abs(seen["top"].astype(int) - image).max() <= (12 if pictures == "jpeg" else 0)


def test_a_policy_with_a_history_gets_it_with_every_request() -> None:
    policy = FakePolicy(history=3)
    with running(policy) as server, link(server) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=2))
        for step in range(5):
            remote.observe(observation(0.1 * step, stamp_ns=step))
        remote.plan(0)
        assert [seen.stamp_ns for seen in policy.observed] == [2, 3, 4]
        remote.reset()
        remote.observe(observation(stamp_ns=9))
        remote.plan(0)
        assert [seen.stamp_ns for seen in policy.observed] == [9]


# -- keys ------------------------------------------------------------------------------------------


@pytest.fixture
def keyring(tmp_path: Path) -> dict[str, Path]:
    server = make_keys(tmp_path / "server", "server")
    known = make_keys(tmp_path / "clients", "arm1")
    stranger = make_keys(tmp_path / "stranger", "arm2")
    return {
        "server": server[1],
        "server_public": server[0],
        "clients": tmp_path / "clients",
        "known": known[1],
        "known_public": known[0],
        "stranger": stranger[1],
    }


def test_with_keys_only_listed_clients_are_answered(keyring: dict[str, Path]) -> None:
    keys = ServerKeys(keyring["server"], keyring["clients"])
    with running(settings=ServerSettings("tcp://0.0.0.0:*", keys)) as server:
        endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        good = ClientKeys(keyring["known"], keyring["server_public"])
        with ServerLink(LinkSettings(endpoint, good, timeout_s=10.0)) as connection:
            assert np.array_equal(connection.ask(request(5)).result().reply.actions, chunk_of(5))
            unknown = ClientKeys(keyring["stranger"], keyring["server_public"])
            false_server = ClientKeys(keyring["known"], keyring["clients"] / "arm1.key")
            for wrong in (None, unknown, false_server):
                with (
                    ServerLink(LinkSettings(endpoint, wrong)) as refused,
                    pytest.raises(LinkError, match="no answer to hello|not connected yet"),
                ):
                    refused.connect(1.5)
            with Raw(endpoint) as raw:
                raw.send(raw.message("hello"))
                assert raw.silent()
            assert connection.ask(request(6)).result().reply.batch == 1


def test_a_key_that_is_taken_off_the_list_ends_the_session(keyring: dict[str, Path]) -> None:
    make_keys(keyring["clients"], "arm3")
    keys = ServerKeys(keyring["server"], keyring["clients"])
    with running(settings=ServerSettings(ANYWHERE, keys)) as server:
        settings = LinkSettings(
            server.endpoint, ClientKeys(keyring["known"], keyring["server_public"]), timeout_s=10.0
        )
        with ServerLink(settings) as connection:
            connection.ask(request(5)).result()
            keyring["known_public"].unlink()
            time.sleep(2.5)
            with pytest.raises(LinkError):
                connection.ask(request(6), timeout_s=2.0).result()
            with pytest.raises(LinkError):
                connection.connect(1.5)


def test_a_session_is_its_keys_whoever_takes_the_name_of_its_connection(keyring: dict[str, Path]) -> None:
    other = make_keys(keyring["clients"], "arm3")[1]
    mine, theirs = (ClientKeys(key, keyring["server_public"]) for key in (keyring["known"], other))
    with running(
        settings=ServerSettings(ANYWHERE, ServerKeys(keyring["server"], keyring["clients"]))
    ) as server:
        with Raw(server.endpoint, mine, b"arm1") as robot:
            robot.greet()
            session, seq = robot.session, robot.seq
        with Raw(server.endpoint, theirs, b"arm1") as thief:
            thief.session, thief.seq = session, seq
            assert said(thief.ask("decide", request()))["code"] == "no_session"
        with Raw(server.endpoint, mine, b"arm1") as robot:
            robot.session, robot.seq = session, seq + 1
            assert robot.ask("decide", request()).kind == "decision"


def test_damaged_keys_are_said_at_once(keyring: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="expected a key file"):
        ServerLink(LinkSettings("tcp://127.0.0.1:9", ClientKeys(Path("/no"), keyring["server_public"])))
    with pytest.raises(ConfigError, match="CURVE keys"):
        ServerLink(LinkSettings("tcp://192.0.2.1:7447"))
