"""openpi's policy server as a proposer, over real sockets: good answers, bad ones, late ones, none."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_helpers import OBSERVATION, ROBOT, STATE, address, answer, description, within

from valueguide.errors import ConfigError, DataError, EnvironmentSetupError, LinkError
from valueguide.interfaces import Policy
from valueguide.testing.fake_openpi_server import FakeOpenPiServer
from valueguide.transport.remote_link import LateReply, LinkClosed
from valueguide.transport.remote_policy import RemotePolicy, connect_policy, is_remote


def _infer(request: dict[str, Any]) -> dict[str, Any]:
    return {"actions": answer(float(request["state"][0]), request.get("seed", 0))}


@pytest.fixture
def server() -> Iterator[FakeOpenPiServer]:
    with FakeOpenPiServer(_infer, hang_s=1.5) as running:
        yield running


def _connect(server: FakeOpenPiServer, tmp_path: Path, **changed: Any) -> RemotePolicy:
    target = address(tmp_path, "openpi", server.port, description("openpi", **changed))
    policy = connect_policy(target, ROBOT)
    policy.observe(OBSERVATION)
    return policy


def test_candidates_are_the_servers_answers_in_our_units(server: FakeOpenPiServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    assert isinstance(policy, Policy)
    assert (policy.horizon, policy.action_dim, policy.cameras) == (3, 2, {"front": (4, 6)})
    actions = policy.sample(3, seed=7).actions
    assert actions.shape == (3, 3, 2) and actions.dtype == np.float32
    assert np.array_equal(actions[0], answer(0.25, 7)[:3])  # candidate 0 has the seed itself
    request = server.requests[0]
    assert request.keys() == {"image", "state", "prompt", "seed"}
    assert request["prompt"] == "go" and request["state"].tolist() == STATE.tolist()
    assert np.array_equal(request["image"], OBSERVATION.images["front"])
    seeds = [r["seed"] for r in server.requests]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    policy.sample(5, seed=7)
    assert [r["seed"] for r in server.requests[3:6]] == seeds  # whatever K is
    assert server.connections == 1


def test_a_server_that_takes_no_seed_is_sent_none(server: FakeOpenPiServer, tmp_path: Path) -> None:
    _connect(server, tmp_path, seed_key="").sample(1, 3)
    assert "seed" not in server.requests[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("garbage", "expected msgpack"),
        ("text", "the server refused: RuntimeError: the observation has no wings"),
        ("object-array", "array type: expected one of"),
        ("complex", "array type"),
        ("huge-shape", "array shape"),
        ("short-data", "bytes of an array"),
        ("nan", "expected finite numbers"),
        ("list", "reply: expected a map"),
        ("no-actions", "actions: value: expected an array of numbers, found NoneType"),
        ("oversize", r"reply: expected 65536 bytes at most \(reply_bytes\)"),
    ],
)
def test_a_bad_answer_is_one_clear_error_and_the_next_is_good(
    server: FakeOpenPiServer, tmp_path: Path, fault: str, words: str
) -> None:
    policy = _connect(server, tmp_path)
    server.faults = [fault]
    with within(0.5), pytest.raises((DataError, LinkError), match=words) as caught:
        policy.sample(2, 3)
    assert "127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert np.array_equal(policy.sample(1, 3).actions[0], answer(0.25, 3)[:3])
    assert server.connections == 2


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_late_answer_is_never_taken_for_the_next(
    server: FakeOpenPiServer, tmp_path: Path, fault: str
) -> None:
    policy = _connect(server, tmp_path)
    policy.sample(1, 1)
    server.faults = [fault]
    with within(0.5), pytest.raises(LateReply, match="expected an answer in time"):
        policy.sample(1, 1)
    time.sleep(1.2)  # the late answer has been sent by now
    assert np.array_equal(policy.sample(1, 2).actions[0], answer(0.25, 2)[:3])


def test_candidates_that_do_not_come_in_time_are_copies_of_candidate_0(
    server: FakeOpenPiServer, tmp_path: Path
) -> None:
    policy = _connect(server, tmp_path)
    policy.sample(1, 1)
    server.faults = ["", "", "hang"]
    with within(0.5):
        actions = policy.sample(4, 5).actions
    assert policy.late == 2 and actions.shape == (4, 3, 2)
    assert np.array_equal(actions[2], actions[0]) and np.array_equal(actions[3], actions[0])
    assert not np.array_equal(actions[1], actions[0])
    assert np.array_equal(policy.sample(1, 6).actions[0], answer(0.25, 6)[:3])


def test_an_answer_nobody_asked_for_is_not_taken(server: FakeOpenPiServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    server.faults = ["twice"]
    policy.sample(1, 1)
    time.sleep(0.2)
    with pytest.raises(DataError, match="expected one an observation"):
        policy.sample(1, 2)
    assert np.array_equal(policy.sample(1, 3).actions[0], answer(0.25, 3)[:3])


def test_an_idle_connection_that_died_is_replaced_within_the_same_decision(
    server: FakeOpenPiServer, tmp_path: Path
) -> None:
    policy = _connect(server, tmp_path)
    server.faults = ["close"]
    assert np.array_equal(policy.sample(2, 4).actions[0], answer(0.25, 4)[:3])
    assert server.connections == 2


def test_a_server_that_keeps_closing_is_an_error(server: FakeOpenPiServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    server.faults = ["close", "close"]
    with within(0.5), pytest.raises(LinkClosed, match="closed the connection"):
        policy.sample(2, 4)


def test_a_server_that_went_away_and_came_back(server: FakeOpenPiServer, tmp_path: Path) -> None:
    with FakeOpenPiServer(_infer) as first:
        policy = _connect(first, tmp_path)
        policy.sample(1, 1)
        port = first.port
        policy.close()
    with within(0.5), pytest.raises(LinkClosed, match="cannot connect"):
        policy.sample(1, 1)
    with FakeOpenPiServer(_infer, port=port):
        assert np.array_equal(policy.sample(1, 2).actions[0], answer(0.25, 2)[:3])


@pytest.mark.parametrize(
    ("metadata", "words"), [(b"\xc1", "expected msgpack"), ("no", "the server refused: no")]
)
def test_something_else_than_openpi_is_noticed_on_connecting(
    tmp_path: Path, metadata: bytes | str, words: str
) -> None:
    with (
        FakeOpenPiServer(_infer, metadata=metadata) as server,
        pytest.raises((DataError, LinkError), match=words),
    ):
        _connect(server, tmp_path)


def test_a_port_where_something_else_or_nothing_answers(tmp_path: Path) -> None:
    config = description("openpi", first_timeout_s=0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = address(tmp_path, "openpi", silent.getsockname()[1], config)
        with within(0.4), pytest.raises(LateReply, match="expected a connection in time"):
            connect_policy(target, ROBOT)

        def talk() -> None:
            peer, _ = silent.accept()  # the client that has given up
            peer.close()
            peer, _ = silent.accept()
            peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 1000)
            peer.recv(1000)
            peer.close()

        threading.Thread(target=talk, daemon=True).start()
        with within(0.4), pytest.raises(LinkClosed, match="cannot connect"):
            connect_policy(target, ROBOT)
    with within(0.4), pytest.raises(LinkClosed, match="cannot connect"):
        connect_policy(target, ROBOT)


@pytest.mark.parametrize("raised", [AssertionError(), EOFError("early"), ConnectionResetError("gone")])
def test_what_the_library_raises_while_connecting_is_a_closed_link(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them comes depends on who is first: the request, or what the other side says unasked."""

    def connect(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("websockets.sync.client.connect", connect)
    target = address(tmp_path, "openpi", 1, description("openpi"))
    with pytest.raises(LinkClosed, match=f"cannot connect: .*{str(raised) or 'AssertionError'}"):
        connect_policy(target, ROBOT)


def test_a_server_that_stops_reading_cannot_hold_us(tmp_path: Path) -> None:
    """Requests beyond what socket buffers take block in the kernel; the deadline ends that too."""
    huge = np.zeros((3000, 3000, 3), np.uint8)

    def stuck(request: dict[str, Any]) -> dict[str, Any]:
        time.sleep(3)
        return {}

    with FakeOpenPiServer(stuck) as server:
        policy = _connect(server, tmp_path, first_timeout_s=0.4)
        policy.observe(OBSERVATION.__class__({"front": huge}, STATE, "go"))
        for _ in range(2):  # the second meets a server busy with the first
            with within(0.5), pytest.raises(LateReply):
                policy.sample(1, 0)


def test_the_key_comes_from_the_environment(
    server: FakeOpenPiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="variable SECRET: expected the server's key, found none"):
        _connect(server, tmp_path, key_variable="SECRET")
    monkeypatch.setenv("SECRET", "k-123")
    _connect(server, tmp_path, key_variable="SECRET")
    assert server.headers[-1]["Authorization"] == "Api-Key k-123"


def test_versions_tell_mappings_and_servers_apart(server: FakeOpenPiServer, tmp_path: Path) -> None:
    first, again = _connect(server, tmp_path), _connect(server, tmp_path)
    other = _connect(server, tmp_path, horizon=2)
    assert first.version == again.version != other.version
    assert first.version.startswith("remote-") and len(first.version) == 19


def test_warm_up_asks_for_a_blank_and_forgets_it(server: FakeOpenPiServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    assert policy.warm_up(2).k == 2
    assert not server.requests[0]["image"].any()
    with pytest.raises(DataError, match="Call observe first"):
        policy.sample(1, 0)


@pytest.mark.parametrize(("k", "seed"), [(0, 1), (1, -1)])
def test_impossible_questions(server: FakeOpenPiServer, tmp_path: Path, k: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="K, seed"):
        _connect(server, tmp_path).sample(k, seed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("openpi://127.0.0.1:8000", "expected openpi://HOST:PORT"),
        ("openpi://127.0.0.1?config=wxai-state-openpi", "expected openpi://HOST:PORT"),
        ("openpi://127.0.0.1:99999?config=wxai-state-openpi", "expected openpi://HOST:PORT"),
        ("openpi://:8000?config=wxai-state-openpi", "expected openpi://HOST:PORT"),
        ("openpi://127.0.0.1:8000/x?config=wxai-state-openpi", "expected openpi://HOST:PORT"),
        ("openpi://me:pw@127.0.0.1:8000?config=wxai-state-openpi", "a user"),
        ("openpi://127.0.0.1:8000?config=wxai-state-openpi&k=3", "a user, or other settings"),
        ("openpi://127.0.0.1:8000?config", "expected openpi://HOST:PORT"),
        ("openpi://127.0.0.1:8000?config=wxai-state-groot", "dialect: expected one of openpi, found groot"),
        ("groot://127.0.0.1:8000?config=wxai-state-openpi", "dialect: expected one of groot, found openpi"),
        ("openpi://127.0.0.1:8000?config=nowhere", "nowhere: expected one of"),
        ("openpi://127.0.0.1:8000?config=wxai-state-openpi", "actions: expected the robot's"),
    ],
)
def test_addresses_that_cannot_be_used(text: str, words: str) -> None:
    assert is_remote(text)
    with pytest.raises(ConfigError, match=words) as caught:
        connect_policy(text, ROBOT)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "lerobot/smolvla_base", "outputs/policy", "/a:/b", "http://x", "openpi"]
)
def test_other_policies_are_not_servers(name: str) -> None:
    assert not is_remote(name)


def test_without_websockets_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(EnvironmentSetupError, match=r"Install valueguide\[openpi\]"):
        connect_policy(address(tmp_path, "openpi", 9, description("openpi")), ROBOT)
