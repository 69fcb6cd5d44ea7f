"""A server that is short of memory: what does not fit is refused or ends without an answer, the rest goes on.

The limit is on the process's address space, so that it bites at the same place each time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from valueguide.errors import LinkError
from valueguide.serving import server as serving
from valueguide.testing.stand_ins import StandIn, policy
from valueguide.transport.link import ServerLink
from valueguide.transport.messages import DecideRequest
from valueguide.transport.pending import LinkSettings
from valueguide.types import Observation

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))
from serving_helpers import link, observation, request, running

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
HEADROOM_MB = 100
#: Pixels along the edges of a picture, and of one of 30 MB. A message may have 128 MiB.
USUAL, LARGE = 400, 3200
PATIENCE_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    found = StandIn("serve", str(tmp_path / "none"), "*", env={"HEADROOM_MB": str(HEADROOM_MB)})
    found.first_line()
    yield found
    found.kill()


def _link(server: StandIn, pictures: str = "raw", timeout_s: float = PATIENCE_S) -> ServerLink:
    endpoint = server.lines[0].split()[0]
    return ServerLink(LinkSettings(endpoint, pictures=pictures, timeout_s=timeout_s, silent_s=PATIENCE_S))


def _pictures(count: int, seed: int, size: int = USUAL) -> DecideRequest:
    picture = np.zeros((size, size, 3), np.uint8)
    seen = Observation({f"camera{i}": picture for i in range(count)}, np.float32([0.2, 1.0]), "reach")
    return DecideRequest((seen,), seed, k=4)


def _chunk(position: float, seed: int) -> np.ndarray:
    proposer = policy()
    proposer.observe(observation(position))
    return proposer.sample(4, seed).actions[0]


def _serves(server: StandIn, link: ServerLink, seed: int) -> None:
    """Another robot is answered as ever."""
    limit = time.monotonic() + PATIENCE_S
    while True:
        assert server.process.poll() is None, "the server is dead"
        try:
            found = link.ask(request(seed, guided=False), 10.0).result()
            break
        except LinkError:
            assert time.monotonic() < limit
    assert np.array_equal(found.reply.actions, _chunk(0.0, seed))


@pytest.mark.parametrize("pictures", ["raw", "png"])
def test_what_does_not_fit_gets_no_answer_and_others_are_served(server: StandIn, pictures: str) -> None:
    """raw: the message itself is too large. png: some kB that become 120 MB when they are read."""
    with _link(server) as other, _link(server, pictures) as large:
        _serves(server, other, 1)
        assert np.array_equal(large.ask(_pictures(4, 2)).result().reply.actions, _chunk(0.2, 2))
        pending = large.ask(_pictures(4, 3, LARGE), timeout_s=4.0)
        _serves(server, other, 3)
        with pytest.raises(LinkError):
            pending.result()
        _serves(server, other, 4)
        assert np.array_equal(large.ask(_pictures(4, 5)).result().reply.actions, _chunk(0.2, 5))


def test_many_that_fit_alone_and_not_together(server: StandIn) -> None:
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(_link(server)) for _ in range(8)]
        other = stack.enter_context(_link(server))
        asked = [link.ask(_pictures(1, seed, LARGE), timeout_s=4.0) for seed, link in enumerate(links)]
        _serves(server, other, 1)
        for seed, pending in enumerate(asked):
            with contextlib.suppress(LinkError):
                assert np.array_equal(pending.result().reply.actions, _chunk(0.2, seed))
        _serves(server, other, 2)
        for seed, link in enumerate(links):
            assert np.array_equal(link.ask(_pictures(1, seed)).result().reply.actions, _chunk(0.2, seed))


@pytest.mark.parametrize("where", ["decode", "decision_message"])
def test_no_memory_in_the_thread_that_talks_to_all_robots(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only models need memory: a message that cannot be taken or packed costs one robot one answer."""
    real, short = getattr(serving, where), threading.Event()

    def full(*arguments: object) -> object:
        if short.is_set():
            raise MemoryError("no room")
        return real(*arguments)

    monkeypatch.setattr(serving, where, full)
    with running() as server, link(server) as connection:
        connection.connect(PATIENCE_S)
        for seed in (1, 2):
            short.set()
            with pytest.raises(LinkError, match="no answer" if where == "decode" else "failed.*no room"):
                connection.ask(request(seed, guided=False), 1.0).result()
            short.clear()
            found = connection.ask(request(seed, guided=False), PATIENCE_S).result()
            assert np.array_equal(found.reply.actions, _chunk(0.0, seed))
