"""Fits `HelpSettings` to labelled episodes within a budget of false alarms, and keeps them as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.disk import flush
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.execution.help import ANY_TASK, Curve, HelpDetector, HelpSettings, Reference, Rule

FORMAT = "valueguide-help-1"
#: A curve needs this many successful episodes at a step.
_ENOUGH = 3
#: Shares of the successful episodes' decisions that a limit leaves above it.
_QUANTILES = (0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.98, 1.0)
_STALLS = (12, 20, 32, None)
_SMALLEST_SCALE = 1e-3


@dataclass(frozen=True)
class LabelledEpisode:
    """One episode whose end is known and in which nobody helped.

    steps: its length. at: the control step of each decision, rising. value, progress: one a decision; None
    where missing.
    """

    task: str
    success: bool
    steps: int
    at: Sequence[int]
    value: Sequence[float | None]
    progress: Sequence[float | None]
    instruction: str = ""

    def __post_init__(self) -> None:
        if not len(self.at) == len(self.value) == len(self.progress):
            found = f"{len(self.at)} steps, {len(self.value)} values, {len(self.progress)} of progress"
            raise DataError(mismatch(f"episode of {self.task}", "decisions", "one of each", found))


def requests(settings: HelpSettings, episode: LabelledEpisode) -> list[int]:
    """The control steps at which help would have been asked for."""
    return list(_requests(settings, episode))


def _requests(settings: HelpSettings, episode: LabelledEpisode) -> Iterator[int]:
    detector = HelpDetector(settings, episode.task)
    rows = zip(episode.at, episode.value, episode.progress, strict=True)
    return (step for step, value, progress in rows if detector.update(step, value, progress).ask)


def calibrate(
    episodes: Sequence[LabelledEpisode],
    budget: float = 0.1,
    start: HelpSettings | None = None,
    by_task: bool = True,
    useful_steps: int = 20,
) -> HelpSettings:
    """The settings that catch most failures while at most `budget` of the successful episodes see a request.

    Margins and stall_steps are searched; start gives the rest. Caught is a failure whose first request comes
    `useful_steps` control steps before its end; among equals more steps left on average, then fewer
    successful episodes disturbed, win. by_task: each task with at least three successful episodes is held
    against its own, the others against all together.

    Raises ConfigError for a budget outside 0 … 1, DataError without three successful episodes and a failure.
    """
    if not 0.0 <= budget <= 1.0:
        raise ConfigError(mismatch("help", "false-alarm budget", "0 to 1", budget))
    good, bad = [e for e in episodes if e.success], [e for e in episodes if not e.success]
    if len(good) < _ENOUGH or not bad:
        wanted, found = f"{_ENOUGH} successful and 1 failed", f"{len(good)} and {len(bad)}"
        raise DataError(mismatch("help", "labelled episodes", wanted, found))
    base = dataclasses.replace(
        start or HelpSettings(),
        references=_references(good, by_task),
        instructions={e.instruction: e.task for e in episodes if e.instruction},
    )
    best, best_score = None, (-1.0, -1.0, -1.0)
    for settings in _choices(base, good):
        alarms = _disturbed(settings, good, budget * len(good))
        if alarms is None:
            continue
        left = [_steps_left(settings, episode) for episode in bad]
        score = (float(sum(x >= useful_steps for x in left)), sum(left) / len(left), -alarms / len(good))
        if best is None or score > best_score:
            best, best_score = settings, score
    assert best is not None  # the widest margins ask in no successful episode
    return best


def _disturbed(settings: HelpSettings, good: Sequence[LabelledEpisode], most: float) -> int | None:
    """Episodes with a request, or None when there are more than `most`."""
    count = 0
    for episode in good:
        count += next(_requests(settings, episode), None) is not None
        if count > most:
            return None
    return count


def _steps_left(settings: HelpSettings, episode: LabelledEpisode) -> int:
    """Control steps from the first request to the end; 0 without a request."""
    return episode.steps - next(_requests(settings, episode), episode.steps)


def _choices(base: HelpSettings, good: Sequence[LabelledEpisode]) -> Iterator[HelpSettings]:
    """What is tried, the most cautious first."""
    values = _margins(base, good, "value") if base.rule != "progress" else [base.value_margin]
    progress = _margins(base, good, "progress") if base.rule != "value" else [base.progress_margin]
    stalls = tuple(reversed(_STALLS)) if base.rule != "value" else (base.stall_steps,)
    for value, margin, stall in product(values, progress, stalls):
        yield dataclasses.replace(base, value_margin=value, progress_margin=margin, stall_steps=stall)


def _margins(base: HelpSettings, good: Sequence[LabelledEpisode], kind: str) -> list[float]:
    """Distances below the reference, in scales, of the successful episodes' own decisions; widest first."""
    below = []
    for episode in good:
        reference = base.reference(episode.task)
        assert reference is not None
        curve: Curve = getattr(reference, kind)
        below += [(curve.at(step) - x) / curve.scale for step, x in _known(episode, kind)]
    found = np.quantile(below, _QUANTILES)
    found[-1] += 1e-6  # rounding must not put the most extreme success below its own limit
    return sorted({float(margin) for margin in found}, reverse=True)


def _references(good: Sequence[LabelledEpisode], by_task: bool) -> dict[str, Reference]:
    groups = {ANY_TASK: list(good)}
    if by_task:
        for episode in good:
            groups.setdefault(episode.task, []).append(episode)
    fitted = {task: _reference(group) for task, group in groups.items() if len(group) >= _ENOUGH}
    found = {task: reference for task, reference in fitted.items() if reference is not None}
    if ANY_TASK not in found:
        wanted = f"{_ENOUGH} successful episodes with value and progress at the same step"
        raise DataError(mismatch("help", "labelled episodes", wanted, "fewer"))
    return found


def _reference(group: Sequence[LabelledEpisode]) -> Reference | None:
    value, progress = (_curve(group, kind) for kind in ("value", "progress"))
    return Reference(value, progress) if value and progress else None


def _curve(group: Sequence[LabelledEpisode], kind: str) -> Curve | None:
    """The median at each step that enough episodes reached; None without one.

    Beyond the last such step it stays constant: the few successes that take longer say too little.
    """
    seen: dict[int, list[float]] = {}
    for episode in group:
        for step, x in _known(episode, kind):
            seen.setdefault(step, []).append(x)
    steps = sorted(step for step, found in seen.items() if len(found) >= _ENOUGH)
    if not steps:
        return None
    medians = [float(np.median(seen[step])) for step in steps]
    away = [abs(x - m) for step, m in zip(steps, medians, strict=True) for x in seen[step]]
    return Curve(tuple(steps), tuple(medians), max(float(np.mean(away)), _SMALLEST_SCALE))


def _known(episode: LabelledEpisode, kind: str) -> list[tuple[int, float]]:
    found = zip(episode.at, getattr(episode, kind), strict=True)
    return [(step, float(x)) for step, x in found if x is not None and math.isfinite(x)]


def save_help(settings: HelpSettings, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write settings as JSON, visible only when whole. facts: what to keep about the calibration."""
    content = {"format": FORMAT, **dataclasses.asdict(settings), "facts": dict(facts or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    flush(part)
    os.replace(part, path)


def load_help(path: Path) -> HelpSettings:
    """Settings that `save_help` wrote. Raises ConfigError naming what is missing or wrong."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigError(mismatch(str(path), "format", FORMAT, found))
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path}: {what}") from error


def _parse(content: dict[str, Any]) -> HelpSettings:
    stall, rule = content["stall_steps"], content["rule"]
    typed_rule: Rule = rule if isinstance(rule, str) else ""  # type: ignore[assignment]  # "" is refused
    return HelpSettings(
        rule=typed_rule,
        value_margin=float(content["value_margin"]),
        progress_margin=float(content["progress_margin"]),
        stall_steps=None if stall is None else int(stall),
        stall_gain=float(content["stall_gain"]),
        decisions=int(content["decisions"]),
        cooldown_steps=int(content["cooldown_steps"]),
        stale_s=float(content["stale_s"]),
        references={
            task: Reference(_parse_curve(found["value"]), _parse_curve(found["progress"]))
            for task, found in content["references"].items()
        },
        instructions={str(text): str(task) for text, task in content["instructions"].items()},
        critic_version=str(content["critic_version"]),
    )


def _parse_curve(found: dict[str, Any]) -> Curve:
    steps, median = (int(x) for x in found["steps"]), (float(x) for x in found["median"])
    return Curve(tuple(steps), tuple(median), float(found["scale"]))
