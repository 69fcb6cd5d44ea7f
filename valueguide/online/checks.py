"""Whether a new critic may take the place of the serving one: both are asked about the same chunks.

Limits come from the serving critic, so that a version may be a little worse by chance but not clearly, and
from the returns themselves, so that many small steps down, or a bad first version, do not pass either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from valueguide.errors import CheckpointError, ConfigError, ValueguideError, mismatch
from valueguide.interfaces import BatchScorer
from valueguide.online.answers import Answers, ask, chance
from valueguide.online.probe import Probe
from valueguide.online.version_state import VersionState
from valueguide.online.versions import CriticVersions
from valueguide.steering.decide import AGGREGATES

Direction = Literal["at least", "at most"]
_FORMAT = 1


@dataclass(frozen=True)
class CheckLimits:
    """How much worse than the serving critic is still the same, and what no critic may fall below.

    rank_drop: in Spearman's correlation. min_rank: the least correlation.
    calibration_rise: share by which the error may grow. max_calibration: the largest error, as a share of
        the range of the returns.
    spread_rise: how many times the serving spread. max_spread: the largest spread, as a share of the standard
        deviation of the returns; a tenth of it is always allowed.
    max_abstention: share of the states in which the spread may be above the critic's own limit, so that
        steering falls back to the policy.
    min_std: share of the serving critic's standard deviation across candidates. std_floor: the least, as a
        share of the standard deviation of the returns.
    chance: standard errors of the difference between the two critics, by which rank and calibration may be
        worse where that is more than the above. 1.64 refuses one in twenty of those that are no worse.
    min_episodes: the least in a set; few of them tell nothing.
    aggregate: over ensemble members, as the re-ranker does.
    Raises ConfigError for anything negative.
    """

    rank_drop: float = 0.05
    min_rank: float = 0.1
    calibration_rise: float = 0.1
    max_calibration: float = 0.5
    spread_rise: float = 2.0
    max_spread: float = 1.0
    max_abstention: float = 0.05
    min_std: float = 0.2
    std_floor: float = 0.002
    chance: float = 1.64
    min_episodes: float = 10
    aggregate: str = "min"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "aggregate":
                if value not in AGGREGATES:
                    raise ConfigError(mismatch("check limits", name, AGGREGATES, repr(value)))
            elif not (np.isfinite(value) and value >= 0):
                raise ConfigError(mismatch("check limits", name, "a finite number >= 0", value))


@dataclass(frozen=True)
class Check:
    """One figure of the new critic. serving: the same of the serving one, None without one.

    value: None where it is undefined, which does not pass. note: what the figure cannot say itself.
    """

    name: str
    value: float | None
    direction: Direction
    limit: float
    serving: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.direction == "at least" else self.value <= self.limit

    @property
    def line(self) -> str:
        """What was expected and found, one line."""
        found = self.note if self.value is None and self.note else _figure(self.value)
        serving = "" if self.serving is None else f" (serving: {_figure(self.serving)})"
        return f"{self.name}: expected {self.direction} {_figure(self.limit)}, found {found}{serving}"


@dataclass(frozen=True)
class CheckReport:
    """version, against: content hashes of the new and the serving critic; against is "" without one.

    probe, held_out: digests of what was asked; held_out is "" where there was nothing but the probe.
    """

    version: str
    against: str
    probe: str
    held_out: str
    checks: tuple[Check, ...]
    limits: CheckLimits = field(default_factory=CheckLimits)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """One line a failed check."""
        return [check.line for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {"format": _FORMAT, **asdict(self), "checks": checks, "passed": self.passed}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CheckReport:
        """Raises CheckpointError for anything that `to_json` cannot have made."""
        if content.get("format") != _FORMAT:
            raise CheckpointError(mismatch("check report", "format", _FORMAT, content.get("format")))
        try:
            names = ("version", "against", "probe", "held_out")
            checks = tuple(
                Check(**{name: value for name, value in check.items() if name != "passed"})
                for check in content["checks"]
            )
            facts = {name: content[name] for name in names}
            return cls(**facts, checks=checks, limits=CheckLimits(**content["limits"]))
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"check report: damaged: {error}") from error


def check_version(
    candidate: BatchScorer,
    serving: BatchScorer | None,
    probe: Probe,
    held_out: Probe | None = None,
    limits: CheckLimits | None = None,
) -> CheckReport:
    """Score the probe, and fresher held-out chunks where there are any, with both critics and compare.

    A candidate that cannot score them, or not with finite numbers, fails in that one check. Raises
    ValueguideError when the serving critic cannot score them.
    """
    limits = limits or CheckLimits()
    sets = {"probe": probe} | ({} if held_out is None else {"held_out": held_out})
    old = {name: None if serving is None else _usable(serving, asked, limits) for name, asked in sets.items()}
    against = "" if serving is None else serving.version
    digests = probe.digest, "" if held_out is None else held_out.digest
    try:
        new = {name: ask(candidate, asked, limits.aggregate) for name, asked in sets.items()}
    except ValueguideError as error:
        failed = Check("scores", None, "at most", 0.0, note=str(error))
        return CheckReport(candidate.version, against, *digests, (failed,), limits)
    bad = sum(answers.not_finite for answers in new.values())
    checks = [Check("not finite", float(bad), "at most", 0.0)]
    if not bad:
        for name, asked in reversed(sets.items()):
            checks += _agreement(name, asked, new[name], old[name], limits)
        checks += _certainty(probe, new["probe"], old["probe"], limits)
    return CheckReport(candidate.version, against, *digests, tuple(checks), limits)


def review(
    versions: CriticVersions,
    number: int,
    load: Callable[[Path], BatchScorer],
    probe: Probe,
    held_out: Probe | None = None,
    limits: CheckLimits | None = None,
) -> CheckReport:
    """`check_version` of a published version against the one that serves now; the report is kept with it.

    load: such as `LearnedCritic.load`. Raises what it raises, and what `check_version` raises.
    """
    versions.verify(number)
    serving = versions.load(load)
    candidate = load(versions.folder(number))
    report = check_version(candidate, serving and serving[1], probe, held_out, limits)
    versions.save_report(number, report.to_json())
    return report


def promote_checked(
    versions: CriticVersions, number: int, report: CheckReport, reason: str = ""
) -> VersionState:
    """Promote a version whose report passed, if it is of this version against the one that serves now.

    Raises CheckpointError with all that failed, in one line, or when the report is of something else.
    """
    serving = versions.state().serving
    if not is_current(report, versions, number):
        found = f"{report.version} against {report.against or 'none'}"
        wanted = " against ".join(name or "none" for name in _contents(versions, number))
        raise CheckpointError(mismatch(f"version {number}", "check of", wanted, found, "Check it again"))
    if not report.passed:
        raise CheckpointError(f"version {number}: it failed its check: {'; '.join(report.failures)}")
    return versions.promote(number, reason, over=serving)


def is_current(report: CheckReport, versions: CriticVersions, number: int) -> bool:
    """Whether the report is of this version against the one that serves now."""
    return (report.version, report.against) == _contents(versions, number)


def _contents(versions: CriticVersions, number: int) -> tuple[str, str]:
    """Content hashes of a version and of the serving one, "" without one."""
    serving = versions.state().serving
    against = "" if serving is None else str(versions.verify(serving)["version"])
    return str(versions.verify(number)["version"]), against


def _usable(serving: BatchScorer, asked: Probe, limits: CheckLimits) -> Answers | None:
    """None when its scores are no numbers: then it is no measure for others."""
    answers = ask(serving, asked, limits.aggregate)
    return None if answers.not_finite else answers


def _agreement(
    name: str, asked: Probe, new: Answers, old: Answers | None, limits: CheckLimits
) -> list[Check]:
    """With the returns: rank correlation and calibration error."""
    least, most = limits.min_rank, limits.max_calibration * float(np.ptp(asked.returns))
    if old is not None:
        of_rank, of_error = (limits.chance * float(np.nan_to_num(e)) for e in chance(asked, new, old))
        if np.isfinite(old.rank):
            least = max(old.rank - max(limits.rank_drop, of_rank), min(least, old.rank))
        allowed = old.calibration + max(limits.calibration_rise * old.calibration, of_error)
        most = min(allowed, max(most, old.calibration))
    same = "returns that are all equal" if np.ptp(asked.returns) == 0 else "scores that are all equal"
    before = (None, None) if old is None else (_defined(old.rank), old.calibration)
    return [
        Check(f"{name} episodes", float(len(np.unique(asked.episode))), "at least", limits.min_episodes),
        Check(f"{name} rank", _defined(new.rank), "at least", least, before[0], same),
        Check(f"{name} calibration", new.calibration, "at most", most, before[1]),
    ]


def _certainty(asked: Probe, new: Answers, old: Answers | None, limits: CheckLimits) -> list[Check]:
    """How far the members agree, and whether the action matters to them."""
    scale = float(asked.returns.std())
    spread, std, share = limits.max_spread * scale, limits.std_floor * scale, limits.max_abstention
    if old is not None:
        spread = min(max(limits.spread_rise * old.spread, 0.1 * scale), max(spread, old.spread))
        std = max(std, limits.min_std * old.action_std)
        share = max(share, old.abstention or 0.0)
    serving = (old.spread, old.action_std, old.abstention) if old else (None, None, None)
    checks = [
        Check("spread", new.spread, "at most", spread, serving[0]),
        Check("action std", new.action_std, "at least", std, serving[1]),
    ]
    if new.abstention is not None:
        checks.append(Check("abstention", new.abstention, "at most", share, serving[2]))
    return checks


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
