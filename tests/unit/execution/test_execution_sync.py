"""Synchronised observations: the newest consistent set, or an error that names the source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.errors import DataError
from valueguide.execution.sync import ObservationSync, StaleError

MS = 1_000_000


def sync(**kwargs: object) -> ObservationSync:
    return ObservationSync(["camera", "joints"], 20 * MS, **kwargs)  # type: ignore[arg-type]


def filled() -> ObservationSync:
    made = sync(as_of=["grip"])
    for t in range(0, 100, 33):
        made.push("camera", t * MS, f"c{t}")
    for t in range(0, 105, 10):
        made.push("joints", t * MS, f"j{t}")
    return made


def test_the_newest_picture_with_the_joints_nearest_to_it() -> None:
    match = filled().match()
    assert match.values == {"camera": "c99", "joints": "j100", "grip": None}
    assert match.stamp == 99 * MS, "the oldest part"


def test_not_after_and_not_before_bound_the_choice() -> None:
    made = filled()
    assert made.match(not_after=70 * MS).values["camera"] == "c66"
    assert made.match(not_before=99 * MS).values["camera"] == "c99"
    with pytest.raises(StaleError, match="camera is 0.001 s older than asked for"):
        made.match(not_before=100 * MS)


def test_a_silent_source_is_named_also_for_a_time_before_the_newest_picture() -> None:
    made = sync()
    made.push("joints", 0, "j0")
    for t in range(500, 800, 33):
        made.push("camera", t * MS, f"c{t}")
    with pytest.raises(StaleError, match="joints is 0.500 s older than asked for"):
        made.match(not_before=500 * MS, not_after=700 * MS)


def test_an_as_of_source_gives_its_last_value_at_or_before() -> None:
    made = filled()
    made.push("grip", 50 * MS, "closed")
    made.push("grip", 200 * MS, "open")
    assert made.match().values["grip"] == "closed"
    assert made.match(not_after=40 * MS).values["grip"] is None


def test_a_silent_source_is_named() -> None:
    made = sync()
    made.push("camera", 0, "c")
    with pytest.raises(StaleError, match="nothing received from joints"):
        made.match()


def test_parts_too_far_apart_do_not_match_but_an_older_set_may() -> None:
    made = sync()
    made.push("camera", 0, "c0")
    made.push("joints", 5 * MS, "j5")
    made.push("camera", 100 * MS, "c100")
    assert made.match().values["camera"] == "c0"
    with pytest.raises(StaleError, match="joints is 0.095 s away from camera|older than asked"):
        made.match(not_before=10 * MS)


def test_late_messages_find_their_place_and_a_clock_set_back_starts_anew() -> None:
    made = filled()
    made.push("camera", 95 * MS, "late")
    assert made.match().values["camera"] == "c99"
    made.push("camera", 5 * MS - 2_000 * MS, "after the jump")
    assert made.newest("camera") == 5 * MS - 2_000 * MS


def test_clear_forgets() -> None:
    made = filled()
    made.clear()
    with pytest.raises(StaleError, match="nothing received"):
        made.match()


def test_no_sources_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one source"):
        ObservationSync([], 1)


@given(
    st.lists(st.tuples(st.sampled_from(["camera", "joints"]), st.integers(0, 500)), min_size=1, max_size=80),
    st.integers(0, 500),
)
def test_whatever_matches_lies_within_the_tolerance_and_the_bounds(
    messages: list[tuple[str, int]], bound: int
) -> None:
    made = sync(depth=200)
    for source, t in messages:
        made.push(source, t * MS, t)
    try:
        match = made.match(not_before=bound * MS)
    except StaleError:
        pairs = [
            (a, b)
            for s, a in messages
            for q, b in messages
            if s == "camera" and q == "joints" and abs(a - b) <= 20 and min(a, b) >= bound
        ]
        newest = max((a for s, a in messages if s == "camera"), default=-1)
        assert not any(a == newest for a, _ in pairs), "the newest picture had a partner"
        return
    camera, joints = match.values["camera"], match.values["joints"]
    assert abs(camera - joints) <= 20 and match.stamp == min(camera, joints) * MS >= bound * MS
