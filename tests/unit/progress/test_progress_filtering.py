"""Which episodes are kept, and the reason of every other one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError
from valueguide.progress.filtering import (
    Candidate,
    counts_of,
    keep_above,
    keep_detected,
    keep_random,
    keep_top,
)
from valueguide.progress.success import Detector


def _one(
    episode: int, final: float | None, voc: float | None, task: str = "a", status: str = "ok"
) -> Candidate:
    row: dict[str, Any] = {"episode": episode, "final": final, "voc": voc, "status": status}
    return Candidate(episode, task, row)


CANDIDATES = [
    _one(0, 0.9, 0.2),
    _one(1, 0.9, 0.8),
    _one(2, 0.1, None, "b"),
    _one(3, None, None, "b", "malformed"),
    Candidate(4, "a", None),
    _one(5, 0.5, 1.0, "b"),
    _one(6, 0.9, 0.2, "b"),
]


def test_the_top_by_hand() -> None:
    found = keep_top(
        CANDIDATES, 0.4, "final", per_task=False
    )  # 2.8 of 7: 3; the tie of 0 and 6 to the earlier
    assert found.kept == [0, 1, 6]
    assert found.dropped == {
        2: "final 0.100 is number 5, 3 of 7 are kept",
        3: "malformed",
        4: "no scores",
        5: "final 0.500 is number 4, 3 of 7 are kept",
    }
    assert keep_top(CANDIDATES, 0.3, "final", False).kept == [0, 1]
    assert keep_top(CANDIDATES, 0.4, "voc", False).kept == [0, 1, 5]  # constant values rank last
    assert keep_top(CANDIDATES, 1.0, "voc", False).kept == [0, 1, 2, 5, 6]  # and nothing unusable is kept
    assert keep_top(CANDIDATES, 0.34, "final", True).kept == [1, 6]  # 1 of 3, and 1 of 4


def test_above_and_detected_by_hand() -> None:
    found = keep_above(CANDIDATES, 0.5, "final")
    assert found.kept == [0, 1, 5, 6] and found.dropped[2] == "final 0.100 is below 0.5"
    assert keep_above(CANDIDATES, 0.8, "voc").kept == [1, 5]
    detector = Detector("final", {"voc": 0.0, "final": 0.6, "both": 0.5}, (0.0, 0.0, 0.0))
    found = keep_detected(CANDIDATES, detector)
    assert found.kept == [0, 1, 6] and found.dropped[3] == "malformed"
    assert found.dropped[5] == "failure: 0.5 is below 0.6"


@settings(deadline=None)  # a busy machine is not an error
@given(st.integers(0, 99), st.floats(0.01, 1.0), st.booleans())
def test_the_control_arm_has_the_same_size_whatever_the_scores(
    seed: int, share: float, per_task: bool
) -> None:
    usable = [_one(i, 0.01 * i, 0.0, "ab"[i % 2]) for i in range(11)]
    top = keep_top(usable, share, "final", per_task)
    drawn = keep_random(usable, counts_of(usable, share, per_task), seed)
    assert len(drawn.kept) == len(top.kept) and len(drawn.dropped) == 11 - len(drawn.kept)
    if per_task:
        assert sum(i % 2 for i in drawn.kept) == sum(i % 2 for i in top.kept)
    assert drawn == keep_random(usable, counts_of(usable, share, per_task), seed)


def test_every_episode_is_as_likely_in_the_control_arm() -> None:
    counts = [0] * 7
    for seed in range(700):
        for episode in keep_random(CANDIDATES, {"": 3}, seed).kept:
            counts[episode] += 1
    assert all(240 <= count <= 360 for count in counts)  # 300 expected, 13 its standard deviation


def test_wrong_choices() -> None:
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            keep_top(CANDIDATES, share, "final", False)
    with pytest.raises(ConfigError, match="--by"):
        keep_above(CANDIDATES, 0.5, "luck")
    with pytest.raises(ConfigError, match="at most 7"):
        keep_random(CANDIDATES, {"": 8}, 0)
