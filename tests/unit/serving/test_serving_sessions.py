"""Whose turn it is: worked out by hand, and that nobody starves."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valueguide.serving.sessions import Job, Session, Sessions
from valueguide.testing.fakes import FakeClock
from valueguide.transport.messages import DecideRequest


def sessions(**options: float) -> Sessions:
    numbers = itertools.count(1)
    return Sessions(lambda: next(numbers), **options)  # type: ignore[arg-type]


def asks(session: Session, now: float, deadline: float = float("inf")) -> None:
    session.waiting = Job(session.identity, session.number, 1, DecideRequest((), 0), now, 0, deadline)


def test_those_served_longest_ago_come_first() -> None:
    table = sessions()
    a, b, c = (table.open(name, "", "", 0, 0.0) for name in (b"a", b"b", b"c"))
    assert a and b and c
    for session, now in ((a, 1.0), (b, 2.0), (c, 3.0)):
        asks(session, now)
    assert [job.identity for job in table.take(2, 4.0)[0]] == [b"a", b"b"]  # by arrival
    asks(a, 4.1)  # the greedy one asks again at once
    assert [job.identity for job in table.take(1, 5.0)[0]] == [b"c"]
    assert [job.identity for job in table.take(1, 6.0)[0]] == [b"a"]
    assert table.take(1, 7.0) == ([], []) and table.waiting == 0
    asks(b, 8.0)
    asks(c, 8.0)
    asks(b, 9.0)  # a newer request in place of the old one does not cost b its turn: it was served before c
    assert [job.identity for job in table.take(1, 10.0)[0]] == [b"b"]


def test_what_is_late_takes_no_place() -> None:
    table = sessions()
    a, b = (table.open(name, "", "", 0, 0.0) for name in (b"a", b"b"))
    assert a and b
    asks(a, 1.0, deadline=2.0)
    asks(b, 1.5)
    batch, late = table.take(1, 2.0)
    assert [job.identity for job in batch] == [b"b"] and [job.identity for job in late] == [b"a"]


def test_silent_ones_are_forgotten_and_their_number_is_worth_nothing() -> None:
    clock = FakeClock()
    table = sessions(most=2, idle_s=10.0)
    a, b = table.open(b"a", "", "k", 0, clock()), table.open(b"b", "", "", 0, clock())
    assert a and b and table.open(b"c", "", "", 0, clock()) is None
    asks(b, 0.0)
    clock.advance(11.0)
    assert table.open(b"c", "", "", 0, clock()) is not None  # a is gone, b waits for something
    assert table.find(b"a", a.number, clock()) is None
    assert table.find(b"b", a.number, clock()) is None and table.find(b"b", b.number, clock()) is b
    again = table.open(b"b", "", "", 0, clock())
    assert again and again.number != b.number and table.find(b"b", b.number, clock()) is None


def test_clients_that_are_not_allowed_any_more_go() -> None:
    table = sessions()
    for name, user in ((b"a", "good"), (b"b", "bad")):
        table.open(name, "", user, 0, 0.0)
    assert [s.user for s in table.close_users(frozenset({"good"}))] == ["bad"]
    assert set(table.by_identity) == {b"a"}


@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_waits_for_more_rounds_than_there_are_robots(
    robots: int, most: int, rounds: list[set[int]]
) -> None:
    """Whoever asks again and again, a request is begun within as many rounds as others can be before it."""
    table = sessions()
    everyone = [table.open(bytes([i]), "", "", 0, 0.0) for i in range(robots)]
    waited = dict.fromkeys(range(robots), 0)
    for now, asking in enumerate(rounds, 1):
        for i, session in enumerate(everyone):
            assert session
            if i in asking and session.waiting is None:
                asks(session, float(now))
        batch, _ = table.take(most, now + 0.5)
        served = {job.identity[0] for job in batch}
        for i, session in enumerate(everyone):
            waited[i] = waited[i] + 1 if session and session.waiting else 0
            assert waited[i] <= -(-robots // most)
        assert len(served) == len(batch) <= most
