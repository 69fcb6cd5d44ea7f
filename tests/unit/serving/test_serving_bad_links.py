"""The robot's link over bad networks: clocks, silence, pictures, a pilot. More in tests/faults."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from valueguide.errors import LinkError
from valueguide.execution.executor import ExecutorSettings
from valueguide.robots.remote import RemotePilot
from valueguide.serving.server import Server
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.fakes import FakePolicy
from valueguide.testing.link_proxy import LinkFaults, LinkProxy
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Observation

sys.path.insert(0, str(Path(__file__).parent))
from serving_helpers import observation, request, running


def through(server: Server, faults: LinkFaults | None = None) -> LinkProxy:
    return LinkProxy(int(server.endpoint.rpartition(":")[2]), faults)


def linked(proxy: LinkProxy, timeout_s: float = 20.0) -> ServerLink:
    settings = LinkSettings(
        f"tcp://127.0.0.1:{proxy.port}", timeout_s=timeout_s, ping_s=0.2, silent_s=1.0, retry_s=2.0
    )
    return ServerLink(settings)


def chunk_of(seed: int) -> np.ndarray:
    policy = FakePolicy()
    policy.observe(observation())
    return policy.sample(4, seed).actions[0]


def answered(connection: ServerLink, seed: int, wait_s: float = 30.0) -> np.ndarray:
    """Ask until there is an answer, as a robot does."""
    limit = time.monotonic() + wait_s
    while True:
        try:
            return connection.ask(request(seed)).result().reply.actions
        except LinkError:
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_the_clocks_offset_is_known_through_delay_and_jitter() -> None:
    faults = LinkFaults(delay_s=0.05, jitter_s=0.02, seed=1)
    with running() as server, through(server, faults) as proxy, linked(proxy) as connection:
        connection.connect(20)
        for seed in range(8):
            answer = connection.ask(request(seed)).result()
            assert np.array_equal(answer.reply.actions, chunk_of(seed))
            assert answer.round_trip_s >= 0.06
        clock = connection.clock
        assert clock.offset_ns is not None and clock.round_trip_ns is not None
        assert clock.round_trip_ns >= 0.06e9 and abs(clock.offset_ns) <= clock.round_trip_ns / 2
        # Both ends are this machine, so the truth is known: an answer was sent before it came.
        assert -0.025e9 <= time.monotonic_ns() - answer.sent_ns <= 2e9


def test_silence_is_noticed_without_a_question() -> None:
    with running() as server, through(server) as proxy, linked(proxy) as connection:
        connection.connect(20)
        proxy.freeze()
        limit = time.monotonic() + 20
        while not connection.trouble:
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert "silent" in connection.trouble or "hello" in connection.trouble
        proxy.thaw()
        assert np.array_equal(answered(connection, 3), chunk_of(3))


def test_loss_and_a_narrow_link_only_cost_time() -> None:
    class FakeSeeingPolicy(FakePolicy):
        cameras = {"top": (64, 64)}

    policy = FakeSeeingPolicy()
    faults = LinkFaults(loss=0.2, stall_s=0.05, bytes_per_s=200_000, seed=2)
    with running(policy) as server, through(server, faults) as proxy, linked(proxy) as connection:
        connection.connect(20)
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        seen = Observation({"top": image}, np.float32([0, 1]), "reach")
        start = time.monotonic()
        answer = connection.ask(DecideRequest((seen,), 5, k=4)).result()
        assert np.array_equal(answer.reply.actions, chunk_of(5))
        assert np.array_equal(policy.observed[-1].images["top"], image)
        assert time.monotonic() - start > image.nbytes / 200_000 * 0.9


def test_a_pilot_reaches_its_goal_through_delay_and_jitter() -> None:
    limit, period_s = np.float32([0.2]), 0.05
    faults = LinkFaults(delay_s=0.05, jitter_s=0.02, seed=3)
    with (
        running(FakePolicy(noise=0.01)) as server,
        through(server, faults) as proxy,
        linked(proxy) as connection,
    ):
        steerer = RemoteSteerer(connection, SteeringConfig(k=2), connect_s=20)
        pilot = RemotePilot(steerer, ExecutorSettings(period_s, execute=4, low=-limit, high=limit))
        pilot.start()
        at, steps = 0.0, 0
        while abs(at - 1.0) > 0.06 and steps < 400:
            motion = pilot.step(Observation({}, np.float32([at, 1.0]), "reach", steps))
            at += float(motion.values[0]) if motion else 0.0
            steps += 1
            time.sleep(period_s)
        assert abs(at - 1.0) <= 0.06 and not pilot.trouble
        assert pilot.executor.counters.holds < steps
