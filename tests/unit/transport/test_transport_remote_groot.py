"""GR00T's policy servers as a proposer, over real sockets: three dialects, batches, errors, deadlines."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_helpers import OBSERVATION, ROBOT, address, answer, description, within

from valueguide.errors import ConfigError, DataError, LinkError
from valueguide.testing.fake_groot_server import FakeGrootServer
from valueguide.transport.remote_link import LateReply, LinkClosed
from valueguide.transport.remote_policy import RemotePolicy, connect_policy


def _nested(data: dict[str, Any]) -> Any:
    """N1.6 and later: row i of a batch answers with the seed plus i."""
    arm, seed = data["observation"]["state"]["arm"], (data["options"] or {}).get("seed", 0)
    rows = np.stack([answer(float(reach), seed + i) for i, reach in enumerate(arm[:, 0, 0])])
    return [{"arm": rows[:, :, :1], "hand": rows[:, :, 1]}, {}]


def _flat(data: dict[str, Any]) -> Any:
    arm = data["observation"]["state.arm"]
    rows = np.stack([answer(float(reach), i) for i, reach in enumerate(arm[:, 0, 0])])
    return [{"action.arm": rows[:, :, :1], "action.hand": rows[:, :, 1:]}, {}]


def _old(data: dict[str, Any]) -> Any:
    """N1.5: the data is the observation, without a batch dimension."""
    row = answer(float(data["state.arm"][0, 0]), 0)
    return {"action.arm": row[:, :1], "action.hand": row[:, 1]}


@pytest.fixture
def server() -> Iterator[FakeGrootServer]:
    with FakeGrootServer(_nested, hang_s=1.2) as running:
        yield running


def _connect(server: FakeGrootServer, tmp_path: Path, dialect: str = "groot", **changed: Any) -> RemotePolicy:
    policy = connect_policy(address(tmp_path, "groot", server.port, description(dialect, **changed)), ROBOT)
    policy.observe(OBSERVATION)
    return policy


def test_k_candidates_are_one_batch(server: FakeGrootServer, tmp_path: Path) -> None:
    actions = _connect(server, tmp_path).sample(3, seed=5).actions
    assert server.calls == ["ping", "reset", "get_action"]
    assert np.array_equal(actions, np.stack([answer(0.25, 5 + i)[:3] for i in range(3)]))
    asked = server.requests[0]["observation"]
    assert asked["video"]["front"].shape == (3, 1, 4, 6, 3) and asked["video"]["front"].dtype == np.uint8
    assert asked["state"]["arm"].shape == (3, 1, 1) and asked["state"]["arm"].dtype == np.float32
    assert asked["language"]["task"] == [["go"]] * 3
    assert server.requests[0]["options"] == {"seed": 5}


def test_the_flat_keys_of_the_simulation_wrapper(tmp_path: Path) -> None:
    with FakeGrootServer(_flat) as server:
        actions = _connect(server, tmp_path, "groot_sim", seed_key="").sample(2, 0).actions
    assert np.array_equal(actions, np.stack([answer(0.25, i)[:3] for i in range(2)]))
    asked = server.requests[0]["observation"]
    assert asked.keys() == {"video.front", "state.arm", "state.hand", "annotation.human.task"}
    assert asked["annotation.human.task"] == ["go", "go"] and server.requests[0]["options"] is None


def test_n1_5_is_asked_once_for_each_candidate(tmp_path: Path) -> None:
    with FakeGrootServer(_old, old=True) as server:
        actions = _connect(server, tmp_path, "groot_n1_5").sample(2, 0).actions
    assert server.calls == ["ping", "get_action", "get_action"]  # no reset there
    assert actions.shape == (2, 3, 2) and np.array_equal(actions[0], answer(0.25, 0)[:3])
    assert server.requests[0]["video.front"].shape == (1, 4, 6, 3)
    assert server.requests[0]["annotation.human.task"] == ["go"]


def test_the_server_is_told_of_every_episode_once(server: FakeGrootServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    for _ in range(2):
        policy.sample(1, 0)
    policy.reset()
    policy.observe(OBSERVATION)
    policy.sample(1, 0)
    assert server.calls == ["ping", "reset", "get_action", "get_action", "reset", "get_action"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("garbage", "expected msgpack"),
        ("ERROR", "the server refused get_action without a reason"),
        ("error", "the server refused get_action: the observation has no wings"),
        ("object-array", "array type"),
        ("pickle", "array type"),
        ("huge-shape", "array shape"),
        ("short-data", "bytes of an array"),
        ("not-npy", r"expected a \.npy file"),
        ("nan", "expected finite numbers"),
        ("misshapen", "actions|shape"),
        ("map", r"reply: expected \[actions, facts\]"),
        ("no-actions", "arm: value: expected an array of numbers, found NoneType"),
    ],
)
def test_a_bad_answer_is_one_clear_error_and_the_next_is_good(
    server: FakeGrootServer, tmp_path: Path, fault: str, words: str
) -> None:
    policy = _connect(server, tmp_path, horizon=4)
    server.faults = [fault]
    with within(0.5), pytest.raises((DataError, LinkError), match=words) as caught:
        policy.sample(2, 3)
    assert "127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert np.array_equal(policy.sample(1, 3).actions[0], answer(0.25, 3))


@pytest.mark.parametrize("fault", ["hang", "oversize"])
def test_a_late_answer_is_never_taken_for_the_next(
    server: FakeGrootServer, tmp_path: Path, fault: str
) -> None:
    policy = _connect(server, tmp_path)
    policy.sample(1, 1)
    server.faults = [fault]
    with within(0.5), pytest.raises(LateReply, match="in time and of at most 65536 bytes"):
        policy.sample(1, 1)
    time.sleep(1.0)
    assert np.array_equal(policy.sample(1, 2).actions[0], answer(0.25, 2)[:3])


def test_late_candidates_of_n1_5_are_copies_of_candidate_0(tmp_path: Path) -> None:
    with FakeGrootServer(_old, old=True, hang_s=1.2) as server:
        policy = _connect(server, tmp_path, "groot_n1_5")
        policy.sample(1, 1)
        server.faults = ["", "hang"]
        with within(0.5):
            assert policy.sample(3, 0).k == 3
        assert policy.late == 2


def test_a_server_that_was_started_again(tmp_path: Path) -> None:
    with FakeGrootServer(_nested) as first:
        policy = _connect(first, tmp_path)
        policy.sample(1, 1)
        port = first.port
    with within(0.5), pytest.raises(LinkError):
        policy.sample(1, 1)
    with FakeGrootServer(_nested, port=port):
        assert np.array_equal(policy.sample(1, 2).actions[0], answer(0.25, 2)[:3])


def test_a_token_is_sent_and_its_refusal_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "k-123")
    with FakeGrootServer(_nested, token="k-123") as server:
        assert _connect(server, tmp_path, key_variable="SECRET").sample(2, 0).k == 2
        monkeypatch.setenv("SECRET", "wrong")
        with pytest.raises(LinkError, match="the server refused ping: Unauthorized") as caught:
            _connect(server, tmp_path, key_variable="SECRET")
        assert "wrong" not in str(caught.value)
    monkeypatch.delenv("SECRET")
    with pytest.raises(ConfigError, match="variable SECRET"):
        _connect(server, tmp_path, key_variable="SECRET")


def test_nobody_there_or_something_else(tmp_path: Path) -> None:
    config = description("groot", first_timeout_s=0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = address(tmp_path, "groot", silent.getsockname()[1], config)
        with within(0.4), pytest.raises(LinkError):
            connect_policy(target, ROBOT)
    with within(0.4), pytest.raises(LinkClosed, match="cannot connect: nobody answers there"):
        connect_policy(target, ROBOT)


def test_links_that_fail_leave_no_sockets_behind(server: FakeGrootServer, tmp_path: Path) -> None:
    policy = _connect(server, tmp_path)
    policy.sample(1, 0)
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        server.faults = ["nan"]
        with pytest.raises(DataError):
            policy.sample(1, 0)
    time.sleep(0.3)
    assert len(os.listdir("/proc/self/fd")) <= open_before + 4
