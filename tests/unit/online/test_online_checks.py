"""Checks before promotion: every figure worked out by hand, every limit crossed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from critic_folders import write_critic

from valueguide.critics.manifest import read_manifest
from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.online.checks import (
    Check,
    CheckLimits,
    CheckReport,
    check_version,
    is_current,
    promote_checked,
    review,
)
from valueguide.online.probe import Probe
from valueguide.online.versions import CriticVersions
from valueguide.testing.fakes import FakeLinearCritic
from valueguide.types import Float32, Observation

# Ten states 0 … 9 whose returns are -9 … 0; the chunk that ran is 0, the candidates are 0 and 2.
STD = float(np.sqrt(99 / 12))  # of ten successive numbers


def probe(returns: Float32 | None = None, task: str = "open the drawer") -> Probe:
    observations = [Observation({}, np.array([i], np.float32), task) for i in range(10)]
    candidates = np.zeros((10, 2, 4, 1), np.float32)
    candidates[:, 1] = 2.0
    chosen = np.arange(-9, 1, dtype=np.float32) if returns is None else returns
    return Probe(observations, np.zeros((10, 4, 1), np.float32), chosen, np.arange(10), candidates)


def good(**changes: float) -> FakeLinearCritic:
    """Predicts every return exactly; its action std is 1, its spread 0.5, so the lower member is 0.5 off."""
    settings = {"shift": -9.0, "disagreement": 0.5, **changes}
    return FakeLinearCritic("good", **settings)


def by_name(report: CheckReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


def failed(report: CheckReport) -> list[str]:
    assert report.passed == (not report.failures)
    return [check.name for check in report.checks if not check.passed]


def test_every_figure_by_hand() -> None:
    report = check_version(good(spread_limit=0.4), None, probe())
    found = {name: (check.value, check.limit) for name, check in by_name(report).items()}
    assert found == {
        "not finite": (0.0, 0.0),
        "probe episodes": (10.0, 10),
        "probe rank": (pytest.approx(1.0), 0.1),
        "probe calibration": (pytest.approx(0.5), pytest.approx(4.5)),  # half the range of the returns
        "spread": (pytest.approx(0.5), pytest.approx(STD)),
        "action std": (pytest.approx(1.0), pytest.approx(0.002 * STD)),
        "abstention": (1.0, 0.05),  # every spread is above 0.4
    }
    assert failed(report) == ["abstention"]
    assert report.failures == ["abstention: expected at most 0.05, found 1"]
    assert (report.version, report.against, report.held_out) == ("good", "", "")


def test_the_aggregate_is_the_one_that_steers() -> None:
    report = check_version(good(), None, probe(), limits=CheckLimits(aggregate="mean"))
    assert by_name(report)["probe calibration"].value == pytest.approx(0.25)


def test_limits_come_from_the_serving_critic() -> None:
    report = check_version(good(), good(), probe())
    limits = {name: (check.limit, check.serving) for name, check in by_name(report).items()}
    assert limits == {
        "not finite": (0.0, None),
        "probe episodes": (10, None),
        "probe rank": (pytest.approx(0.95), pytest.approx(1.0)),
        "probe calibration": (pytest.approx(0.55), pytest.approx(0.5)),
        "spread": (pytest.approx(1.0), pytest.approx(0.5)),
        "action std": (pytest.approx(0.2), pytest.approx(1.0)),
    }
    assert report.passed


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"by_state": -1.0, "shift": 0.0}, ["probe rank", "probe calibration"]),
        ({"by_state": 0.0, "shift": -4.5}, ["probe rank", "probe calibration"]),
        ({"shift": -9.1}, ["probe calibration"]),
        ({"shift": -8.0}, []),  # 0.5 off to the other side
        ({"disagreement": 1.1, "shift": -8.5}, ["spread", "probe calibration"]),
        ({"by_action": 0.1}, ["action std"]),
        ({"by_action": 0.0}, ["action std"]),
        ({"by_action": -3.0}, []),
        ({"spread_limit": 0.49}, ["abstention"]),
        ({"spread_limit": 0.51}, []),
        ({"shift": float("nan")}, ["not finite"]),
        ({"shift": float("inf")}, ["not finite"]),
    ],
)
def test_each_fault_fails_in_its_own_check(changes: dict[str, float], names: list[str]) -> None:
    report = check_version(good(**changes), good(), probe())
    assert sorted(failed(report)) == sorted(names)
    assert len(report.failures) == len(names) and all("\n" not in line for line in report.failures)


def test_no_numbers_are_no_pass() -> None:
    bad = check_version(good(shift=float("nan")), None, probe())
    assert bad.failures == ["not finite: expected at most 0, found 60"]  # 10 states, 3 chunks, 2 members
    same = check_version(good(by_state=0.0), None, probe())
    assert "probe rank: expected at least 0.1, found scores that are all equal" in same.failures
    equal = check_version(good(), None, probe(np.full(10, -2.0, np.float32)))
    assert "probe rank: expected at least 0.1, found returns that are all equal" in equal.failures


def test_small_steps_down_end_at_the_floor_and_a_bad_serving_critic_is_no_wall() -> None:
    # Serving: errors of 0.5 + 3.8 = 4.3. A tenth more would be 4.73, above half the range, 4.5.
    drifted = good(shift=-12.8)
    assert by_name(check_version(good(), drifted, probe()))["probe calibration"].limit == pytest.approx(4.5)
    # One that is beyond the floor already may be replaced by its equal, not by a worse one.
    beyond = good(shift=-15.0)
    assert check_version(good(shift=-15.0), beyond, probe()).passed
    assert failed(check_version(good(shift=-15.1), beyond, probe())) == ["probe calibration"]
    worst = good(by_state=-1.0, shift=0.0)
    assert by_name(check_version(worst, worst, probe()))["probe rank"].limit == pytest.approx(-1.0)
    returns = np.array([-9, -1, -8, -2, -7, -3, -6, -4, -5, 0], np.float32)
    limits = CheckLimits(rank_drop=0.35)
    low = by_name(check_version(good(), good(), probe(returns), limits=limits))["probe rank"]
    # Squared differences of ranks: 0 + 49 + 1 + 16 + 4 + 1 + 9 + 4 + 16 + 0 = 100, and 1 - 6 * 100 / 990.
    assert low.serving == pytest.approx(1 - 600 / 990) and low.limit == 0.1


class _Noisy(FakeLinearCritic):
    """The good critic, 20 too low in some states."""

    def __init__(self, wrong: set[int]) -> None:
        super().__init__("noisy", shift=-9.0)
        self._wrong = wrong

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        off = np.array([20.0 if int(o.state[0]) in self._wrong else 0.0 for o in observations], np.float32)
        return super().score_batch(observations, actions) - off[:, None]


def test_what_could_be_chance_is_allowed_where_few_episodes_were_seen() -> None:
    serving, candidate = FakeLinearCritic("good", shift=-9.0), _Noisy({7})
    asked = probe()
    limits = CheckLimits(chance=1.0)
    report = by_name(check_version(candidate, serving, asked, limits=limits))
    # One of ten errors is 20: their mean is 2, its standard error over ten episodes 20 * sqrt(0.09 / 10).
    assert report["probe calibration"].value == pytest.approx(2.0)
    assert report["probe calibration"].limit == pytest.approx(20 * np.sqrt(0.009), rel=0.15)
    rank = report["probe rank"]
    # Squared differences of ranks: 49 for the lost state, 1 for the seven it passes, 1 - 6 * 56 / 990.
    assert rank.value == pytest.approx(1 - 336 / 990) and 0.65 < rank.limit < 0.9
    strict = by_name(check_version(candidate, serving, asked, limits=CheckLimits(chance=0.0)))
    assert strict["probe rank"].limit == pytest.approx(0.95) and strict["probe calibration"].limit == 0.0
    # Five states an episode stand and fall together: one of two episodes has a mean error of 4.
    halves = replace(asked, episode=np.arange(10) // 5)
    few = by_name(check_version(candidate, serving, halves, limits=limits))
    assert few["probe calibration"].limit == pytest.approx(4 * np.sqrt(0.25 / 2), rel=0.15)
    assert few["probe episodes"].value == 2 and not few["probe episodes"].passed


def test_held_out_chunks_are_judged_beside_the_probe() -> None:
    fresh = probe(np.arange(0, -10, -1, dtype=np.float32))  # the other way round
    report = check_version(good(), None, probe(), fresh)
    assert [check.name for check in report.checks][:7] == [
        "not finite",
        "held_out episodes",
        "held_out rank",
        "held_out calibration",
        "probe episodes",
        "probe rank",
        "probe calibration",
    ]
    assert failed(report) == ["held_out rank", "held_out calibration"]
    assert by_name(report)["held_out rank"].value == pytest.approx(-1.0)
    assert (report.probe, report.held_out) == (probe().digest, fresh.digest)


class _Refusing(FakeLinearCritic):
    def score_batch(self, observations: object, actions: Float32) -> Float32:
        raise ConfigError("critic: instruction: expected a known one, found 'juggle'")


def test_a_candidate_that_cannot_score_fails_but_a_serving_one_is_an_error() -> None:
    report = check_version(_Refusing("new"), good(), probe())
    assert failed(report) == ["scores"] and "found 'juggle'" in report.failures[0]
    with pytest.raises(ConfigError, match="juggle"):
        check_version(good(), _Refusing("old"), probe())


def test_a_report_survives_json() -> None:
    held_out = probe(task="press the button")
    for critic in (good(spread_limit=1.0), good(by_state=0.0), good(shift=float("nan"))):
        report = check_version(critic, good(), probe(), held_out, CheckLimits(rank_drop=0.2))
        content = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert CheckReport.from_json(content) == report and content["passed"] == report.passed
    for damage in ({"format": 2}, {"checks": [{}]}, {"limits": {"rank_drop": -1}}, {"checks": 3}):
        with pytest.raises(CheckpointError, match="check report"):
            CheckReport.from_json(content | damage)


@pytest.mark.parametrize("name", ["rank_drop", "std_floor"])
def test_limits_are_checked(name: str) -> None:
    for value in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match=f"check limits: {name}"):
            CheckLimits(**{name: value})
    with pytest.raises(ConfigError, match="aggregate"):
        CheckLimits(aggregate="max")


def _load(folder: Path) -> FakeLinearCritic:
    """The folder's own number decides: 9 ignores the action."""
    manifest = read_manifest(folder)
    critic = good(by_action=0.0) if manifest["step"] == 9 else good()
    critic.version = manifest["version"]
    return critic


def _published(tmp_path: Path, *contents: int) -> CriticVersions:
    made = CriticVersions(tmp_path / "versions")
    for content in contents:
        write_critic(tmp_path / f"new{content}", content)
        made.publish(tmp_path / f"new{content}")
    return made


def test_only_what_passed_against_the_serving_version_is_promoted(tmp_path: Path) -> None:
    made = _published(tmp_path, 1, 2, 9)
    first, second = review(made, 1, _load, probe()), review(made, 2, _load, probe())
    assert promote_checked(made, 1, first, "the first").serving == 1
    # The second was checked while nothing served.
    assert not is_current(second, made, 2)
    with pytest.raises(CheckpointError, match=r"version 2: check of: .*against none\. Check it again"):
        promote_checked(made, 2, second)
    bad = review(made, 3, _load, probe())
    with pytest.raises(
        CheckpointError, match="version 3: it failed its check: action std: expected at least"
    ):
        promote_checked(made, 3, bad)
    with pytest.raises(CheckpointError, match="Check it again"):
        promote_checked(made, 2, bad)
    assert made.state().serving == 1
    second = review(made, 2, _load, probe())
    assert CheckReport.from_json(made.report(2) or {}) == second and is_current(second, made, 2)
    state = promote_checked(made, 2, second, "better")
    assert (state.serving, state.previous, state.history[-1].reason) == (2, 1, "better")


def test_a_promotion_in_between_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _published(tmp_path, 1, 2, 3)
    made.promote(1)
    report = review(made, 2, _load, probe())
    seen = is_current(report, made, 2)

    def overtaken(*_: object) -> bool:
        made.promote(3)
        return seen

    monkeypatch.setattr("valueguide.online.checks.is_current", overtaken)
    with pytest.raises(ConfigError, match="Another version was promoted meanwhile"):
        promote_checked(made, 2, report)
    assert made.state().serving == 3


def test_a_damaged_version_is_not_reviewed(tmp_path: Path) -> None:
    made = _published(tmp_path, 1)
    (made.folder(1) / "config.yaml").write_text("x")
    with pytest.raises(CheckpointError, match="sha256"):
        review(made, 1, _load, probe())
    assert made.report(1) is None


def test_a_chunk_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="probe: shapes"):
        Probe(
            probe().observations,
            np.zeros((10, 3, 1), np.float32),
            probe().returns,
            probe().episode,
            probe().candidates,
        )
