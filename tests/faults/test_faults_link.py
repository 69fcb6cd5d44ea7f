"""Real servers over a bad network: whatever it does, an answer is the right one or there is none in time."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from valueguide.errors import LinkError
from valueguide.progress.http import JsonEndpoint, Patience
from valueguide.progress.request import RequestFailed
from valueguide.serving.server import Server, ServerSettings
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.fake_groot_server import FakeGrootServer
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.testing.fake_openpi_server import FakeOpenPiServer
from valueguide.testing.fakes import FakePolicy
from valueguide.testing.link_proxy import LinkFaults, LinkProxy
from valueguide.transport.link import ServerLink
from valueguide.transport.pending import LinkSettings
from valueguide.transport.remote_policy import connect_policy
from valueguide.transport.steerer import RemoteSteerer

for _package in ("serving", "transport"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / _package))
from remote_helpers import OBSERVATION, ROBOT, address, answer, description  # noqa: E402
from serving_helpers import (  # noqa: E402
    ANYWHERE,
    FakeGatedPolicy,
    batch_critic,
    observation,
    request,
    running,
)

pytestmark = pytest.mark.faults
#: What a busy machine may take longer than a deadline.
SLACK_S = 2.0


def _chunk_of(seed: int, position: float = 0.0) -> np.ndarray:
    """What the server's policy does with this seed: no two seeds give the same chunk."""
    policy = FakePolicy()
    policy.observe(observation(position))
    return policy.sample(4, seed).actions[0]


def _through(proxy: LinkProxy, **options: float) -> ServerLink:
    settings = {"timeout_s": 5.0, "ping_s": 0.2, "silent_s": 1.0, "retry_s": 0.5, **options}
    return ServerLink(LinkSettings(f"tcp://127.0.0.1:{proxy.port}", **settings))  # type: ignore[arg-type]


@contextmanager
def _shaped(faults: LinkFaults | None = None) -> Iterator[tuple[Server, LinkProxy]]:
    with running(critic=batch_critic()) as server, LinkProxy(_port(server), faults) as proxy:
        yield server, proxy


def _port(server: Server) -> int:
    return int(server.endpoint.rsplit(":", 1)[1])


def _answered(link: ServerLink, seed: int, timeout_s: float = 15.0) -> float:
    """Ask, check that it is this question's answer, and give the round trip in seconds."""
    found = link.ask(request(seed, guided=False), timeout_s).result()
    assert np.array_equal(found.reply.actions, _chunk_of(seed))
    return found.round_trip_s


def _silent_until_the_deadline(link: ServerLink, seed: int, timeout_s: float = 0.4) -> None:
    start = time.monotonic()
    with pytest.raises(LinkError):
        link.ask(request(seed, guided=False), timeout_s).result()
    assert timeout_s - 0.1 < time.monotonic() - start < timeout_s + SLACK_S


def test_a_slow_and_uneven_network_delivers_every_chunk_and_none_is_stale() -> None:
    """50 ms with 20 ms of jitter each way: at least 60 ms a round trip."""
    with _shaped(LinkFaults(0.05, 0.02, seed=1)) as (_, proxy), _through(proxy) as link:
        link.connect(10)
        trips = [_answered(link, seed) for seed in range(20)]
        assert min(trips) >= 0.06 and np.median(trips) < 1.0
        assert (link.counters.answers, link.counters.missed) == (20, 0)


def test_of_questions_asked_ahead_the_newest_is_answered_and_none_gets_anothers_answer() -> None:
    faults = LinkFaults(0.03, 0.03, loss=0.2, stall_s=0.1, seed=2)
    with _shaped(faults) as (_, proxy), _through(proxy) as link:
        link.connect(10)
        for first in range(0, 24, 4):
            seeds = range(first, first + 4)
            asked = [(seed, link.ask(request(seed, guided=False), 15.0)) for seed in seeds]
            for seed, pending in asked[:-1]:
                with contextlib.suppress(LinkError):  # superseded by the one after it
                    assert np.array_equal(pending.result().reply.actions, _chunk_of(seed))
            assert np.array_equal(asked[-1][1].result().reply.actions, _chunk_of(asked[-1][0]))


def test_a_guided_plan_over_a_bad_network_is_the_plan() -> None:
    """Policy, critic and choice on the server: the decision does not depend on the way there."""
    plans = []
    for faults in (None, LinkFaults(0.03, 0.02, loss=0.1, stall_s=0.1, seed=3)):
        with _shaped(faults) as (_, proxy), _through(proxy, timeout_s=15.0) as link:
            steerer = RemoteSteerer(link, SteeringConfig(k=4))
            steerer.observe(observation(0.3))
            plans.append([steerer.plan(seed) for seed in range(5)])
    for (chunk, candidates, decision), (other, others, again) in zip(*plans, strict=True):
        assert np.array_equal(chunk.actions, other.actions) and decision.index == again.index
        assert np.array_equal(candidates.actions, others.actions)


def test_half_open_no_answer_by_the_deadline_and_no_old_one_afterwards() -> None:
    with _shaped() as (_, proxy), _through(proxy) as link:
        link.connect(10)
        _answered(link, 1)
        proxy.freeze()
        for seed in (2, 3):
            _silent_until_the_deadline(link, seed)
        proxy.thaw()  # what was held back arrives now: hellos and answers to questions long given up
        for seed in (4, 5, 6):
            _answered(link, seed)


def test_a_cut_costs_no_question_whether_it_was_open_or_came_after() -> None:
    """The link greets the server again by itself, and asks there what the cut left without an answer."""
    policy = FakeGatedPolicy()
    with (
        running(policy, settings=ServerSettings(ANYWHERE, idle_s=2.0)) as server,
        LinkProxy(_port(server)) as proxy,
        _through(proxy) as link,
    ):
        link.connect(10)
        for seed in range(0, 9, 3):
            _answered(link, seed)
            proxy.cut()
            _answered(link, seed + 1)
            policy.gate.clear()
            policy.began.clear()
            pending = link.ask(request(seed + 2, guided=False), 15.0)
            assert policy.began.wait(10)
            proxy.cut()
            policy.gate.set()  # this answer is for a connection that is gone
            assert np.array_equal(pending.result().reply.actions, _chunk_of(seed + 2))
            assert pending.repeats == 1
        assert link.counters.missed == 0 and proxy.connections >= 7
        assert _sessions_end_at(server, 1)


def _sessions_end_at(server: Server, count: int, wait_s: float = 15.0) -> bool:
    """What the cut connections left behind is forgotten: a robot that is there has one session."""
    limit = time.monotonic() + wait_s
    while len(server.health()["sessions"]) != count:
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def test_a_network_that_is_down_and_comes_back() -> None:
    with _shaped() as (_, proxy), _through(proxy) as link:
        link.connect(10)
        proxy.cut(refuse=True)
        _silent_until_the_deadline(link, 1)
        proxy.mend()
        _answered(link, 2)


def test_one_robots_bad_link_does_not_hold_another() -> None:
    with (
        _shaped() as (server, proxy),
        LinkProxy(_port(server)) as good,
        _through(proxy) as bad_link,
        _through(good) as good_link,
    ):
        bad_link.connect(10)
        good_link.connect(10)
        proxy.freeze()
        waiting = [bad_link.ask(request(seed, guided=False), 10.0) for seed in range(3)]
        for seed in range(10, 15):
            assert _answered(good_link, seed) < SLACK_S
        assert not any(pending._answer for pending in waiting)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_the_network_does_an_answer_is_the_right_one_or_there_is_none(seed: int) -> None:
    """Silence, cuts, loss and jitter at random; every question ends by its deadline."""
    draw, answers = random.Random(seed), 0
    faults = LinkFaults(0.005, 0.005, loss=0.05, stall_s=0.05, seed=seed)
    with _shaped(faults) as (_, proxy), _through(proxy) as link:
        link.connect(10)
        for number in range(40):
            event = draw.choice(["", "", "", "freeze", "thaw", "thaw", "cut"])
            if event:
                getattr(proxy, event)()
            start = time.monotonic()
            try:
                found = link.ask(request(number, guided=False), 0.4).result()
            except LinkError:
                assert time.monotonic() - start < 0.4 + SLACK_S
                continue
            assert np.array_equal(found.reply.actions, _chunk_of(number))
            answers += 1
        proxy.thaw()
        _answered(link, 1000)
    assert answers


@pytest.mark.parametrize("protocol", ["openpi", "groot"])
def test_somebody_elses_server_over_a_bad_network(protocol: str, tmp_path: Path) -> None:
    def openpi(asked: dict) -> dict:
        return {"actions": answer(float(asked["state"][0]), asked["seed"])}

    def groot(asked: dict) -> list:
        row = answer(float(asked["observation"]["state"]["arm"][0, 0, 0]), asked["options"]["seed"])[None]
        return [{"arm": row[:, :, :1], "hand": row[:, :, 1:]}, {}]

    server = FakeOpenPiServer(openpi) if protocol == "openpi" else FakeGrootServer(groot)
    config = description(protocol, timeout_s=1.0)
    with server, LinkProxy(server.port, LinkFaults(0.02, 0.01, seed=4)) as proxy:
        policy = connect_policy(address(tmp_path, protocol, proxy.port, config), ROBOT)
        policy.observe(OBSERVATION)
        for seed in range(3):
            assert np.array_equal(policy.sample(1, seed).actions[0], answer(0.25, seed)[:3])
        proxy.freeze()
        start = time.monotonic()
        with pytest.raises(LinkError):
            policy.sample(1, 3)
        assert time.monotonic() - start < 1.0 + SLACK_S
        proxy.thaw()
        assert np.array_equal(policy.sample(1, 4).actions[0], answer(0.25, 4)[:3])
        proxy.cut(refuse=True)
        with pytest.raises(LinkError):
            policy.sample(1, 5)
        proxy.mend()
        assert np.array_equal(policy.sample(1, 6).actions[0], answer(0.25, 6)[:3])
        policy.close()


def test_http_over_a_link_that_goes_silent_and_is_cut() -> None:
    """The client of vision-language endpoints: its deadline holds, and the next request works."""
    body = {"messages": [{"role": "user", "content": "hello"}]}
    with FakeOpenAiServer() as server, LinkProxy(urlsplit(server.url).port or 0) as proxy:
        patience = Patience(timeout_s=0.5, tries=1)
        endpoint = JsonEndpoint(f"http://127.0.0.1:{proxy.port}/v1", patience=patience)
        for fault, repair in (("freeze", "thaw"), ("cut", "mend")):
            assert endpoint.post("/chat/completions", body, len) == 2
            proxy.cut(refuse=True) if fault == "cut" else proxy.freeze()
            start = time.monotonic()
            with pytest.raises(RequestFailed):
                endpoint.post("/chat/completions", body, len)
            assert time.monotonic() - start < 0.5 + SLACK_S
            getattr(proxy, repair)()
        assert endpoint.post("/chat/completions", body, len) == 2
