"""A pilot whose models are on a server: chunks fetched ahead, holds when the server dies, goes on after."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from valueguide.execution.executor import ExecutorSettings, Motion
from valueguide.robots.remote import RemotePilot
from valueguide.serving.server import ServerSettings
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Observation

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from serving_helpers import FakeGatedPolicy, link, running

PERIOD_S = 0.02
LIMIT = np.float32([0.2])
SETTINGS = ExecutorSettings(PERIOD_S, execute=4, low=-LIMIT, high=LIMIT)


class Point:
    """A point on a line that moves by what it is told."""

    def __init__(self, pilot: RemotePilot) -> None:
        self.pilot, self.at, self.steps = pilot, 0.0, 0

    def step(self) -> Motion | None:
        self.steps += 1
        motion = self.pilot.step(Observation({}, np.float32([self.at, 1.0]), "reach", self.steps))
        if motion is not None:
            self.at += float(motion.values[0])
        time.sleep(PERIOD_S)
        return motion

    def until_it_moves(self, wait_s: float = 30.0) -> float:
        start = time.monotonic()
        while self.step() is None:
            assert time.monotonic() - start < wait_s, self.pilot.trouble
        return time.monotonic() - start


def test_it_reaches_its_goal_and_prefetch_leaves_no_gap() -> None:
    with running(FakePolicy(noise=0.01), FakeCritic()) as server, link(server) as connection:
        pilot = RemotePilot(RemoteSteerer(connection, SteeringConfig(k=8)), SETTINGS)
        pilot.start(seed=1)
        point = Point(pilot)
        while abs(point.at - 1.0) > 0.05 and point.steps < 500:
            point.step()
        assert abs(point.at - 1.0) <= 0.05
        assert pilot.planned is not None and pilot.planned.decision.reason == "argmax"
        chunks = pilot.planned.chunk_id
        pilot.stop()
        assert point.step() is None and chunks >= 2


def test_what_adds_up_goes_along_with_what_is_committed_and_each_decision_is_told() -> None:
    told, limits = [], np.float32([[-0.2], [0.2]])
    with running(FakePolicy(noise=0.01), FakeCritic()) as server, link(server) as connection:
        steerer = RemoteSteerer(connection, SteeringConfig(k=2))
        pilot = RemotePilot(steerer, SETTINGS, increments=limits, on_planned=told.append)
        pilot.start()
        point = Point(pilot)
        asked: list[DecideRequest] = []
        ask = connection.ask
        connection.ask = lambda request, timeout_s=None: (asked.append(request), ask(request, timeout_s))[1]  # type: ignore[method-assign]
        start = time.monotonic()
        while len(told) < 3:
            point.step()
            assert time.monotonic() - start < 30.0, pilot.trouble
        pilot.stop()
    ahead = [request for request in asked if request.committed is not None]
    assert ahead and all(np.array_equal(request.increments, limits) for request in ahead)
    assert asked[0].committed is None and asked[0].increments is None
    assert [planned.start for planned in told] == [
        0 if request.committed is None else len(request.committed) for request in asked[: len(told)]
    ]
    assert all(planned.round_trip_s > 0 and planned.used for planned in told)


def test_it_holds_when_the_server_dies_and_goes_on_with_the_next_one() -> None:
    with running(FakePolicy(noise=0.01)) as first:
        endpoint = first.endpoint
        connection = ServerLink(LinkSettings(endpoint, timeout_s=0.5, ping_s=0.2, silent_s=1.0, retry_s=0.3))
        pilot = RemotePilot(RemoteSteerer(connection, SteeringConfig(k=2)), SETTINGS)
        pilot.start()
        point = Point(pilot)
        point.until_it_moves()
    # What was planned is the most that still runs: one chunk.
    moved = sum(point.step() is not None for _ in range(60))
    assert moved <= 4
    assert pilot.trouble and all(point.step() is None for _ in range(5))
    with running(FakePolicy(noise=0.01), settings=ServerSettings(endpoint)):
        point.until_it_moves()
        assert pilot.trouble == ""
    connection.close()


def test_several_short_chunks_may_wait_and_each_has_its_age() -> None:
    """Asked for as early as can be and answered at once: of each chunk one step runs, three wait."""
    with running(FakePolicy(noise=0.01)) as server, link(server) as connection:
        pilot = RemotePilot(RemoteSteerer(connection, SteeringConfig(k=2)), SETTINGS)
        pilot.executor.delay.steps = lambda period_s, most: most  # type: ignore[method-assign]
        pilot.start()
        point = Point(pilot)
        chunks = {motion.chunk_id for _ in range(80) if (motion := point.step()) is not None}
        assert len(chunks) > 10 and not pilot.trouble


def test_an_answer_that_comes_too_late_does_not_run() -> None:
    policy = FakeGatedPolicy()
    with running(policy) as server, ServerLink(LinkSettings(server.endpoint, timeout_s=0.3)) as connection:
        pilot = RemotePilot(RemoteSteerer(connection, SteeringConfig(k=2)), SETTINGS)
        pilot.start()
        point = Point(pilot)
        policy.gate.clear()
        assert all(point.step() is None for _ in range(40))
        seeds = [seed for _, seed in policy.sampled]
        policy.gate.set()
        point.until_it_moves()
        assert pilot.planned is not None
        late, answered = seeds, [seed for _, seed in policy.sampled]
        assert len(answered) > len(late)  # it ran another question's answer
        assert connection.counters.missed >= 1
