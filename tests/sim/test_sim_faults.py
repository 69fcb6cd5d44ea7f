"""Faults: read from text with clear errors, in force when they should be, and doing what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.faults import ACTUATORS, KINDS, DelayLine, Fault, FaultInjector, parse_faults
from valueguide.errors import ConfigError

_NEEDED: dict[str, dict] = {
    "drop_images": {"probability": 0.5},
    "delay_images": {"seconds": 0.1},
    "delay_state": {"seconds": 1},
    "clock_jump": {"seconds": -3.0},
    "nan_state": {"part": "hand"},
    "stuck_actuator": {"part": "joint_2"},
}
_FIELDS = ["kind", "start", "duration", "camera", "stamp", "probability", "seconds", "part", "x"]


def _injector(*faults: dict, seed: int = 0) -> FaultInjector:
    return FaultInjector(parse_faults(json.dumps(faults)), seed)


def _picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_with_its_fields(kind: str) -> None:
    (fault,) = parse_faults(json.dumps([{"kind": kind, "start": 2, **_NEEDED.get(kind, {})}]))
    assert fault == Fault(kind, start=2, **_NEEDED.get(kind, {}))


def test_no_text_is_no_fault() -> None:
    assert parse_faults("") == parse_faults(" ") == parse_faults("[]") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "faults: expected a JSON list"),
        ('{"kind": "drop_images"}', "faults: text: expected a JSON list, found dict"),
        ("[3]", r"faults\[0\]: fault: expected an object"),
        ('[{"kind": "fire"}]', r"faults\[0\]: kind: expected freeze_camera or .*, found 'fire'"),
        ('[{"kind": "drop_images"}]', r"drop_images: fields: expected .*probability \(required\)"),
        ('[{"kind": "silent_joint_states", "seconds": 1}]', "silent_joint_states: fields: .*found.*seconds"),
        ('[{"kind": "drop_images", "probability": 1.5}]', "expected a number from 0 to 1, found 1.5"),
        ('[{"kind": "drop_images", "probability": true}]', "probability: expected a number"),
        ('[{"kind": "delay_state", "seconds": NaN}]', "seconds: expected a number"),
        ('[{"kind": "delay_state", "seconds": -1}]', "seconds: expected a number from 0"),
        ('[{"kind": "freeze_camera", "camera": "rear"}]', "camera: expected front or .*, found 'rear'"),
        ('[{"kind": "freeze_camera", "stamp": "late"}]', "stamp: expected advancing or same"),
        ('[{"kind": "stuck_actuator", "part": "hand"}]', "part: expected joint_0 or .*, found 'hand'"),
        ('[{"kind": "silent_joint_states", "start": "soon"}]', "start: expected a number"),
        ('[{"kind": "clock_jump", "seconds": 1, "duration": 1}]', "clock_jump: fields"),
        ("[" * 100_000, "faults: expected a JSON list"),
    ],
)  # fmt: skip
def test_wrong_faults_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        parse_faults(text)
    assert "\n" not in str(error.value)


_value = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _value | st.sampled_from(sorted(KINDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), _json.map(json.dumps)))
def test_any_text_is_faults_or_a_clear_error(text: str) -> None:
    try:
        faults = parse_faults(text)
    except ConfigError as error:
        assert str(error).startswith("faults")
    else:
        assert all(isinstance(fault, Fault) for fault in faults)


def test_faults_start_and_end_and_start_again_with_the_episode() -> None:
    faults = _injector({"kind": "silent_joint_states", "start": 1, "duration": 2})
    assert [faults.joints_silent(t) for t in (0, 0.99, 1, 2.99, 3)] == [False, False, True, True, False]
    faults.restart(0, now=10)
    assert [faults.joints_silent(t) for t in (10, 11, 13)] == [False, True, False]


def test_a_frozen_camera_shows_its_first_picture_until_the_end() -> None:
    for stamp, expected in (("advancing", [0, 1, 2, 3]), ("same", [0, 1, 1, 3])):
        freeze = {"kind": "freeze_camera", "camera": "front", "start": 1, "duration": 2, "stamp": stamp}
        faults = _injector(freeze, {**freeze, "start": 5})
        shown = [faults.picture("front", t, _picture(t), t) for t in range(4)]
        assert [s for s, _ in shown] == expected
        assert [int(p[0, 0, 0]) for _, p in shown] == [0, 1, 1, 3]
        assert faults.picture("wrist", 2, _picture(2), 2)[1][0, 0, 0] == 2
        assert faults.picture("front", 5, _picture(5), 5)[1][0, 0, 0] == 5  # frozen anew, not as before


def test_lost_pictures_follow_the_seed_and_the_probability() -> None:
    def lost(seed: int) -> list[bool]:
        faults = _injector({"kind": "drop_images", "camera": "front", "probability": 0.3}, seed=seed)
        assert not faults.lost("wrist", 0)
        return [faults.lost("front", t / 30) for t in range(1000)]

    assert lost(1) == lost(1) != lost(2)
    assert 240 < sum(lost(1)) < 360


def test_delays_are_per_camera_and_add_up() -> None:
    faults = _injector(
        {"kind": "delay_images", "camera": "front", "seconds": 0.1},
        {"kind": "delay_images", "seconds": 0.2, "duration": 1},
        {"kind": "delay_state", "seconds": 0.5, "start": 1},
    )
    assert faults.image_delay("front", 0) == pytest.approx(0.3)
    assert (faults.image_delay("wrist", 0), faults.image_delay("wrist", 1)) == (0.2, 0)
    assert (faults.state_delay(0), faults.state_delay(1)) == (0, 0.5)


def test_a_delay_line_keeps_the_order() -> None:
    line: DelayLine[str] = DelayLine()
    line.push(0.5, "slow")
    line.push(0.1, "quick")
    assert list(line.pop(0.4)) == []
    assert list(line.pop(0.5)) == ["slow", "quick"]
    assert list(line.pop(9.0)) == []


def test_the_clock_leaps_once_an_episode() -> None:
    faults = _injector(
        {"kind": "clock_jump", "start": 1, "seconds": -2}, {"kind": "clock_jump", "seconds": 5}
    )
    assert [faults.clock_leap(t) for t in (0, 0.5, 1, 2)] == [5, 0, -2, 0]
    faults.restart(0, now=3)
    assert [faults.clock_leap(t) for t in (3, 4)] == [5, -2]


def test_parts_are_told_apart() -> None:
    faults = _injector(
        {"kind": "nan_state", "part": "hand"}, *({"kind": "stuck_actuator", "part": p} for p in ACTUATORS)
    )
    assert faults.nan_parts(0) == {"hand"}
    assert faults.stuck_parts(0) == set(ACTUATORS)
