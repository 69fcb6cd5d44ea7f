"""The estimate of another machine's clock: worked out by hand, and its bound under asymmetric delays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from valueguide.transport.clock import ClockOffset


def test_the_four_stamps_worked_out_by_hand() -> None:
    """Theirs is 1000 ahead; 30 there, 7 thought, 10 back: ((1030 + 0) + (1037 - 47)) / 2 = 1010."""
    clock = ClockOffset()
    assert clock.offset_ns is None and clock.to_ours(5) is None
    clock.add(0, 1030, 1037, 47)
    assert clock.offset_ns == 1010 and clock.round_trip_ns == 40
    assert clock.to_ours(1037) == 27


def test_the_fastest_exchange_is_believed_until_it_is_old() -> None:
    clock = ClockOffset(window=3, age_s=10.0)
    clock.add(0, 105, 105, 10)  # offset 100, round trip 10
    clock.add(1000, 1500, 1500, 1800)  # a queue on the way back
    assert clock.offset_ns == 100 and clock.round_trip_ns == 10
    clock.add(1900, 2000, 2000, 2300)
    clock.add(2400, 2600, 2600, 2700)  # the fast one has left the window
    assert clock.round_trip_ns == 300
    late = 20_000_000_000
    clock.add(late, late + 350, late + 350, late + 500)  # all others are older than 10 s
    assert clock.offset_ns == 100 and clock.round_trip_ns == 500


def test_stamps_that_cannot_be_are_ignored() -> None:
    clock = ClockOffset()
    for stamps in ((10, 0, 0, 9), (0, 5, 4, 10), (0, 0, 20, 10)):
        clock.add(*stamps)
    assert clock.offset_ns is None
    clock.add(0, 5, 5, 10)
    clock.clear()
    assert clock.offset_ns is None


DELAY = st.integers(0, 10**9)


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(DELAY, DELAY, DELAY), min_size=1, max_size=20))
def test_the_truth_is_within_half_of_the_round_trip(
    offset: int, exchanges: list[tuple[int, int, int]]
) -> None:
    clock, now = ClockOffset(window=50, age_s=1e6), 10**6
    for there, thought, back in exchanges:
        arrived = now + there + offset
        clock.add(now, arrived, arrived + thought, now + there + thought + back)
        now += there + thought + back + 1
    assert clock.offset_ns is not None and clock.round_trip_ns is not None
    assert clock.round_trip_ns == min(there + back for there, _, back in exchanges)
    assert abs(clock.offset_ns - offset) <= clock.round_trip_ns / 2 + 1


def test_the_best_exchange_is_believed_until_it_falls_out_of_the_window() -> None:
    clock = ClockOffset(window=3)
    trips = [50, 10, 40, 30, 60, 10, 70]
    for number, trip in enumerate(trips):
        start = 1000 * number
        clock.add(start, start + trip // 2 + 7, start + trip // 2 + 7, start + trip)
        assert clock.round_trip_ns == min(trips[max(0, number - 2) : number + 1])
