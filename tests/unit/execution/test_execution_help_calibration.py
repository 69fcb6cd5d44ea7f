"""Calibration keeps its budget, finds what separates failures, and survives the way through a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.execution.help import ANY_TASK, Curve, HelpSettings, Reference
from valueguide.execution.help_calibration import (
    LabelledEpisode,
    calibrate,
    load_help,
    requests,
    save_help,
)

START = HelpSettings(decisions=2, cooldown_steps=20)


def episode(
    success: bool, value: list[Any], progress: list[Any], task: str = "lift", steps: int = 0
) -> LabelledEpisode:
    at = [4 * i for i in range(len(value))]
    return LabelledEpisode(task, success, steps or 4 * len(at), at, value, progress, f"do {task}")


def noisy(seed: int, success: bool, slope: float, task: str = "lift", n: int = 12) -> LabelledEpisode:
    """Value and progress rise by `slope` of what a success's do, with noise."""
    rng = np.random.default_rng(seed)
    rising = np.arange(n) * slope
    value = -20 + rising + rng.normal(0, 0.5, n)
    progress = 0.05 * rising + rng.normal(0, 0.01, n)
    return episode(success, value.tolist(), progress.tolist(), task)


GOOD = [noisy(i, True, 1.0) for i in range(20)]
BAD = [noisy(100 + i, False, 0.0) for i in range(10)]


def test_the_reference_is_worked_out_by_hand() -> None:
    good = [
        episode(True, [-10.0, -8.0], [0.1, 0.5]),
        episode(True, [-12.0, -7.0], [0.2, 0.6]),
        episode(True, [-11.0, -3.0, -1.0], [0.0, 0.7, 0.9]),  # alone at step 8: too few for the curve
    ]
    found = calibrate([*good, episode(False, [-30.0] * 3, [0.0] * 3)], start=START)
    curve = found.references["lift"].value
    assert (curve.steps, curve.median) == ((0, 4), (-11.0, -7.0))
    assert curve.scale == pytest.approx((1 + 1 + 0 + 1 + 0 + 4) / 6)
    assert found.references["lift"].progress.median == (0.1, 0.6)
    assert found.instructions == {"do lift": "lift"}


@pytest.mark.parametrize("rule", ["both", "value", "progress"])
def test_what_separates_is_found_within_the_budget(rule: Any) -> None:
    found = calibrate([*GOOD, *BAD], 0.1, replace(START, rule=rule))
    assert sum(bool(requests(found, e)) for e in GOOD) <= 2
    first = [requests(found, e)[0] for e in BAD]
    assert max(first) <= 28  # of 48 steps, 20 or more are left in every failure


def test_no_budget_means_no_alarm_in_any_success_of_the_calibration() -> None:
    rng = np.random.default_rng(3)  # nothing separates these
    mixed = [noisy(i, bool(rng.random() < 0.6), 1.0) for i in range(30)]
    found = calibrate(mixed, 0.0, replace(START, decisions=1))
    assert not any(requests(found, e) for e in mixed if e.success)


def test_more_budget_never_catches_less() -> None:
    caught = []
    mixed = [*GOOD, *(noisy(200 + i, False, 0.8) for i in range(10))]
    for budget in (0.0, 0.1, 0.3, 1.0):
        found = calibrate(mixed, budget, replace(START, rule="value"))
        caught.append(
            sum(bool(asked) and asked[0] <= 28 for asked in (requests(found, e) for e in mixed[20:]))
        )
    assert caught == sorted(caught) and caught[0] < caught[-1]


def test_tasks_have_their_own_reference_when_they_have_enough_successes() -> None:
    low = [replace(e, task="hard", instruction="try", value=[v - 30 for v in e.value]) for e in GOOD[:3]]
    few = [replace(e, task="rare") for e in GOOD[:2]]
    found = calibrate([*GOOD, *low, *few, *BAD], start=START)
    assert set(found.references) == {ANY_TASK, "lift", "hard"}
    assert found.references["hard"].value.at(0) == pytest.approx(
        found.references["lift"].value.at(0) - 30, abs=2
    )
    assert set(calibrate([*GOOD, *low, *BAD], start=START, by_task=False).references) == {ANY_TASK}


def test_missing_values_are_no_obstacle() -> None:
    holes = [
        replace(e, value=[None, math.nan, *e.value[2:]], progress=[*e.progress[:-1], None]) for e in GOOD
    ]
    found = calibrate([*holes, *BAD], start=START)
    assert found.references["lift"].value.steps[0] == 8
    assert found.references["lift"].progress.steps[-1] == 40


@pytest.mark.parametrize("some", [GOOD, BAD, [*GOOD[:2], *BAD]])
def test_too_few_episodes_are_refused(some: list[LabelledEpisode]) -> None:
    with pytest.raises(DataError, match="expected 3 successful and 1 failed"):
        calibrate(some)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ConfigError, match="false-alarm budget: expected 0 to 1, found 1.5"):
        calibrate([*GOOD, *BAD], 1.5)
    blind = [replace(e, value=[None] * len(e.value)) for e in GOOD]
    with pytest.raises(DataError, match="with value and progress at the same step"):
        calibrate([*blind, *BAD])
    with pytest.raises(DataError, match="decisions: expected one of each"):
        LabelledEpisode("lift", True, 8, [0, 4], [1.0], [0.0, 0.1])


def test_settings_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    found = replace(calibrate([*GOOD, *BAD], start=START), critic_version="abc", stall_steps=None)
    save_help(found, tmp_path / "new" / "help.json", {"episodes": 30})
    assert load_help(tmp_path / "new" / "help.json") == found
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["help.json"]
    assert json.loads((tmp_path / "new" / "help.json").read_text())["facts"] == {"episodes": 30}


def _broken(change: Any) -> str:
    curve = Curve((0, 4), (1.0, 2.0), 1.0)
    content = dataclasses.asdict(HelpSettings(references={ANY_TASK: Reference(curve, curve)}))
    content["format"] = "valueguide-help-1"
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("value_margin"), "field 'value_margin' is missing"),
        (lambda c: c.update(format="other"), "format: expected valueguide-help-1, found other"),
        (lambda c: c.update(rule=["both"]), "help: rule"),
        (lambda c: c.update(decisions="two"), "invalid literal"),
        (lambda c: c.update(references=[]), "items"),
        (lambda c: c["references"][""]["value"].update(scale=0), "help: curve scale"),
        (lambda c: c["references"][""].pop("progress"), "field 'progress' is missing"),
        (lambda c: c["references"][""]["value"].update(steps=[10**400, 1]), "help.json: "),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "help.json"
    path.write_text(_broken(change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_help(path)
    assert str(path) in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*HelpSettings.__dataclass_fields__, "format"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(name=FIELDS, value=JSON)
def test_a_file_loads_or_is_refused_never_anything_else(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "help.json"
    path.write_text(_broken(lambda content: content.update({name: value})))
    with contextlib.suppress(ConfigError):
        assert isinstance(load_help(path), HelpSettings)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{" * 3])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "help.json").write_bytes(content)
    with pytest.raises(ConfigError, match="help.json"):
        load_help(tmp_path / "help.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_help(tmp_path / "none.json")
