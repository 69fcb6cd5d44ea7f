"""The server over real sockets: decisions, refusals, batches, the graceful end."""

from __future__ import annotations

import pickle
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.execution.splice import splice
from valueguide.serving.metrics import Metrics, StatusPage
from valueguide.serving.server import ServerSettings
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy
from valueguide.transport.packing import pack
from valueguide.transport.steerer import RemoteSteerer
from valueguide.transport.wire import Message, encode
from valueguide.types import Candidates

sys.path.insert(0, str(Path(__file__).parent))
from serving_helpers import (
    ANYWHERE,
    FakeGatedPolicy,
    Raw,
    batch_critic,
    link,
    observation,
    request,
    running,
    said,
)


def test_a_remote_steerer_decides_what_one_in_process_decides() -> None:
    config = SteeringConfig(k=8, beta=0.1)
    with running(FakePolicy(), FakeCritic()) as server, link(server) as connection:
        remote, local = RemoteSteerer(connection, config), Steerer(FakePolicy(), FakeCritic(), config)
        for episode in range(2):
            remote.reset()
            local.reset()
            for step in range(4):
                seen = observation(0.1 * step, 0.7, stamp_ns=step)
                remote.observe(seen)
                local.observe(seen)
                ours, theirs = local.plan(100 * episode + step), remote.plan(100 * episode + step)
                assert np.array_equal(ours[0].actions, theirs[0].actions)
                assert (ours[0].chunk_id, ours[0].stamp_ns) == (theirs[0].chunk_id, theirs[0].stamp_ns)
                assert np.array_equal(ours[1].actions, theirs[1].actions)
                for name in ("index", "reason", "preferred", "seed"):
                    assert getattr(ours[2], name) == getattr(theirs[2], name)
                assert np.array_equal(ours[2].scores.q, theirs[2].scores.q)
        assert remote.policy.version == "fake-policy" and remote.critic.version == "fake-critic"


def test_committed_actions_come_first_and_are_scored() -> None:
    committed = np.float32([[0.5]])
    critic = FakeCritic()
    with running(FakePolicy(), critic) as server, link(server) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=3))
        remote.observe(observation())
        _, candidates, _ = remote.plan(1, committed=committed)
        alone = FakePolicy()
        alone.observe(observation())
        wanted = splice(alone.sample(3, 1), committed, absolute=False)
        assert np.array_equal(candidates.actions, wanted.actions)
        assert np.array_equal(critic.scored[-1], wanted.actions)


def test_what_catches_up_with_its_path_is_what_is_scored_and_sent() -> None:
    committed, limits = np.float32([[-0.1]]), np.float32([[-0.1], [0.1]])
    critic = FakeCritic()
    with running(FakePolicy(), critic) as server, link(server) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=3))
        remote.observe(observation(0.9))
        _, candidates, _ = remote.plan(1, committed=committed, increments=limits)
    alone = FakePolicy()
    alone.observe(observation(0.9))
    wanted = splice(alone.sample(3, 1), committed, absolute=False, increments=limits)
    assert np.array_equal(candidates.actions, wanted.actions)
    assert np.array_equal(critic.scored[-1], wanted.actions)
    assert not np.array_equal(wanted.actions[:, 1:], alone.sample(3, 1).actions[:, 1:])


def test_candidates_that_are_sent_along_are_only_scored() -> None:
    policy = FakePolicy()
    with running(policy, FakeCritic()) as server, link(server) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=3))
        remote.observe(observation(0.0, 0.4))
        actions = np.float32([-0.1, 0.1, 0.3])[:, None, None] * np.ones((1, 4, 1), np.float32)
        chunk, _, decision = remote.take(remote.ask(1, candidates=Candidates(actions)))
        assert decision.index == 1 and np.array_equal(chunk.actions, actions[1])
        assert not policy.sampled


@pytest.mark.parametrize("guided", [True, False])
def test_without_a_critic_candidate_0_runs(guided: bool) -> None:
    with running(FakePolicy(), FakeCritic() if not guided else None) as server, link(server) as connection:
        remote = RemoteSteerer(connection, SteeringConfig(k=2), guided=guided)
        remote.observe(observation())
        decision = remote.plan(0)[2]
        assert (decision.index, decision.reason) == (0, "no_critic") and remote.critic is None


# -- refusals --------------------------------------------------------------------------------------


def code(message: Message) -> str:
    assert message.kind == "refused"
    return str(said(message)["code"])


def test_a_replayed_message_is_refused() -> None:
    with running() as server, Raw(server.endpoint) as robot:
        robot.greet()
        frames = robot.message("decide", request())
        robot.send(frames)
        assert robot.receive().kind == "decision"
        robot.send(frames)
        assert code(robot.receive()) == "replayed"
        assert code(robot.ask("ping", seq=1)) == "replayed"
        assert robot.ask("decide", request()).kind == "decision"


def test_without_a_session_nothing_is_answered_and_a_session_belongs_to_its_connection() -> None:
    with running() as server, Raw(server.endpoint) as robot, Raw(server.endpoint) as thief:
        assert code(thief.ask("decide", request())) == "no_session"
        robot.greet()
        thief.session = robot.session
        assert code(thief.ask("decide", request(), seq=99)) == "no_session"
        assert robot.ask("decide", request()).kind == "decision"


def test_what_is_no_message_is_refused_and_harms_nobody() -> None:
    with running() as server, Raw(server.endpoint) as robot:
        robot.greet()
        rubbish = [
            [b""],
            [b"VGW\x02whatever"],
            [pickle.dumps(print)],
            [b"VGW\x01" + pickle.dumps(print)],
            [b"\x00"] * 100,
            encode(Message("decide", session=robot.session, seq=50)),
            encode(
                Message(
                    "decide",
                    session=robot.session,
                    seq=51,
                    body=msgspec.Raw(pack({"window": [{}], "seed": -1})),
                )
            ),
            encode(Message("dance", session=robot.session, seq=52)),
            encode(Message("hello", seq=53, body=msgspec.Raw(pack({"name": 5})))),
        ]
        for frames in rubbish:
            robot.send(frames)
            refusal = robot.receive()
            assert code(refusal) == "message"
        assert refusal.answers == 53 and "name: expected str, found int" in said(refusal)["text"]
        robot.seq = 60
        assert robot.ask("decide", request()).kind == "decision"


def test_a_request_that_does_not_fit_the_models_says_why_and_is_alone_with_it() -> None:
    policy = FakeGatedPolicy()
    with (
        running(policy, batch_critic()) as server,
        Raw(server.endpoint) as one,
        Raw(server.endpoint) as two,
        Raw(server.endpoint) as three,
    ):
        policy.gate.clear()
        one.greet().send(one.message("decide", request()))
        assert policy.began.wait(10)
        two.greet().send(two.message("decide", request(execute=3)))
        three.greet().send(three.message("decide", request()))
        time.sleep(0.3)
        policy.gate.set()
        refusal = two.receive()
        assert code(refusal) == "message"
        assert "execute: expected 4, the steps that the critic scores, found 3" in said(refusal)["text"]
        assert one.receive().kind == three.receive().kind == "decision"


def test_models_that_fail_are_reported_and_the_server_goes_on() -> None:
    class FakeBrokenPolicy(FakePolicy):
        def sample(self, k: int, seed: int) -> Candidates:
            if seed == 13:
                raise RuntimeError("out of memory")
            return super().sample(k, seed)

    with running(FakeBrokenPolicy()) as server, Raw(server.endpoint) as robot:
        refusal = robot.greet().ask("decide", request(13))
        assert code(refusal) == "failed" and said(refusal)["text"] == "RuntimeError: out of memory"
        assert robot.ask("decide", request(14)).kind == "decision"


def test_a_newer_request_takes_the_place_of_one_that_was_not_begun() -> None:
    policy = FakeGatedPolicy()
    with running(policy) as server, Raw(server.endpoint) as other, Raw(server.endpoint) as robot:
        policy.gate.clear()
        other.greet().send(other.message("decide", request()))
        assert policy.began.wait(10)
        robot.greet().send(robot.message("decide", request(1)))
        first = robot.seq
        robot.send(robot.message("decide", request(2)))
        refusal = robot.receive()
        assert code(refusal) == "superseded" and refusal.answers == first
        policy.gate.set()
        assert robot.receive().answers == first + 1
        assert [seed for _, seed in policy.sampled] == [0, 2]


@pytest.mark.parametrize("knows_clocks", [False, True])
def test_a_request_whose_deadline_has_passed_is_not_begun(knows_clocks: bool) -> None:
    """Also when the robot's clock is far behind the server's (at half of it), and it knows that."""
    offset_ns = time.monotonic_ns() // 2 if knows_clocks else None
    policy = FakeGatedPolicy()
    with running(policy) as server, Raw(server.endpoint) as other, Raw(server.endpoint) as robot:
        policy.gate.clear()
        other.greet().send(other.message("decide", request()))
        assert policy.began.wait(10)
        now = time.monotonic_ns() - (offset_ns or 0)
        stamps = {"sent_ns": now, "deadline_ns": now + 200_000_000, "offset_ns": offset_ns}
        robot.greet().send(robot.message("decide", request(1), **stamps))
        time.sleep(0.3)
        policy.gate.set()
        assert code(robot.receive()) == "late"
        assert [seed for _, seed in policy.sampled] == [0]


def test_too_many_robots_are_refused_and_goodbye_makes_room() -> None:
    with running(max_sessions=1) as server, Raw(server.endpoint) as one, Raw(server.endpoint) as two:
        one.greet()
        assert code(two.ask("hello")) == "busy"
        one.send(one.message("bye"))
        time.sleep(0.2)
        assert two.ask("hello").kind == "welcome"


# -- batches and the end ---------------------------------------------------------------------------


def test_robots_that_wait_together_share_one_pass() -> None:
    policy, critic = FakeGatedPolicy(), batch_critic()
    with running(policy, critic) as server:
        robots = [Raw(server.endpoint).greet() for _ in range(4)]
        policy.gate.clear()
        robots[0].send(robots[0].message("decide", request(0)))
        assert policy.began.wait(10)
        for number, robot in enumerate(robots[1:], 1):
            robot.send(robot.message("decide", request(number, position=0.1 * number)))
        time.sleep(0.3)
        policy.gate.set()
        answers = [robot.receive() for robot in robots]
        assert [said(a)["batch"] for a in answers] == [1, 3, 3, 3]
        assert critic.batches == [(3, 4)]
        for number, answer in enumerate(answers):
            alone = Steerer(FakePolicy(), FakeCritic(), SteeringConfig(k=4))
            alone.observe(observation(0.1 * number))
            chunk, _, decision = alone.plan(number)
            assert np.array_equal(answer.arrays["actions"], chunk.actions)
            assert said(answer)["index"] == decision.index
        for robot in robots:
            robot.__exit__()


def test_what_was_taken_is_answered_before_the_end_and_what_comes_then_is_refused() -> None:
    policy = FakeGatedPolicy()
    with running(policy) as server, Raw(server.endpoint) as robot, Raw(server.endpoint) as other:
        robot.greet()
        other.greet()
        policy.gate.clear()
        robot.send(robot.message("decide", request()))
        assert policy.began.wait(10)
        server.stop()
        assert code(other.ask("decide", request())) == "draining"
        assert server.health()["status"] == "draining"
        threading.Timer(0.2, policy.gate.set).start()
        assert robot.receive().kind == "decision"


def test_an_end_does_not_wait_for_models_that_hang() -> None:
    policy = FakeGatedPolicy()
    settings = ServerSettings(ANYWHERE, drain_s=0.3)
    with running(policy, settings=settings) as server, Raw(server.endpoint) as robot:
        policy.gate.clear()
        robot.greet().send(robot.message("decide", request()))
        assert policy.began.wait(10)
        start = time.monotonic()
        server.stop()
    assert time.monotonic() - start < 10
    policy.gate.set()


def test_a_port_in_use_is_said_in_one_line() -> None:
    with running() as server, pytest.raises(ConfigError, match="a free one of this machine"):
        running(settings=ServerSettings(server.endpoint)).__enter__()


def test_health_and_metrics() -> None:
    metrics = Metrics()
    with running(FakePolicy(), FakeCritic()) as server, Raw(server.endpoint) as robot:
        server.metrics = metrics
        page = StatusPage(0, metrics, server.health)
        robot.greet().ask("decide", request())
        time.sleep(0.1)
        read = lambda path: urllib.request.urlopen(f"http://127.0.0.1:{page.port}{path}").read().decode()  # noqa: E731
        text = read("/metrics")
        assert 'valueguide_requests_total{outcome="decision"} 1.0' in text
        assert "valueguide_decision_seconds_count 1.0" in text
        assert '"status": "ready"' in read("/health") and '"fake-critic"' in read("/health")
        with pytest.raises(urllib.error.HTTPError):
            read("/other")
        server.stop()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            read("/health")
        page.close()
