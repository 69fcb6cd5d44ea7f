"""Asking for help: the operator is requested when value and progress agree that the episode is failing.

The critic's pessimistic value and the progress of a running episode are compared with those of successful
episodes at the same step (`help_calibration` fits what they are compared with). Pure: no clock, no thread, no
ROS; steps and ages are passed in. Doubt never asks: a value or a progress that is missing, not finite or
stale ends the row of agreeing decisions, and the answer's reason says so.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Decision

Rule = Literal["both", "value", "progress"]
RULES: tuple[Rule, ...] = ("both", "value", "progress")
#: The reference of every task that has none of its own.
ANY_TASK = ""


@dataclass(frozen=True)
class Curve:
    """What successful episodes show over an episode, linear between `steps`, constant beyond their ends.

    steps: control steps since the episode began, rising. median: of the successful episodes there.
    scale: their mean absolute distance from it, in the same unit.
    """

    steps: tuple[int, ...]
    median: tuple[float, ...]
    scale: float

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or len(self.steps) != len(self.median) or not rising:
            raise ConfigError(mismatch("help", "curve", "rising steps with one median each", self.steps))
        if not all(math.isfinite(value) for value in (*self.median, *self.steps)):
            raise ConfigError(mismatch("help", "curve", "finite medians", self.median))
        if not 0 < self.scale < math.inf:
            raise ConfigError(mismatch("help", "curve scale", "finite and more than 0", self.scale))

    def at(self, step: float) -> float:
        """The median at a step."""
        right = bisect_right(self.steps, step)
        if right in (0, len(self.steps)):
            return self.median[max(right - 1, 0)]
        before, after = self.steps[right - 1], self.steps[right]
        part = (step - before) / (after - before)
        return (1 - part) * self.median[right - 1] + part * self.median[right]

    def limit(self, step: float, margin: float) -> float:
        """`margin` scales below the median at a step."""
        return self.at(step) - margin * self.scale


@dataclass(frozen=True)
class Reference:
    """value: discounted return as the critic predicts it. progress: 0 … 1."""

    value: Curve
    progress: Curve


@dataclass(frozen=True)
class HelpSettings:
    """When to ask.

    rule: which evidence must say that the episode is failing.
    value_margin: scales below the successful episodes' median at which a value is low.
    progress_margin: the same for progress. stall_steps: control steps without a gain of `stall_gain` (0 … 1)
    after which progress counts as not rising; None: never. Progress speaks for failure when it is low or
    does not rise.
    decisions: consecutive decisions that must agree. cooldown_steps: control steps after a request, or a
    hand-back, without another. stale_s: seconds beyond which progress is too old to count.
    references: task to what its successful episodes show; `ANY_TASK` serves the others. instructions: what
    tasks are called in natural language. critic_version: whose values the references are; "" for any.
    """

    rule: Rule = "both"
    value_margin: float = 1.0
    progress_margin: float = 1.0
    stall_steps: int | None = None
    stall_gain: float = 0.02
    decisions: int = 2
    cooldown_steps: int = 20
    stale_s: float = 0.5
    references: Mapping[str, Reference] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    critic_version: str = ""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(mismatch("help", "rule", " or ".join(RULES), repr(self.rule)))
        for name in ("value_margin", "progress_margin"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(mismatch("help", name, "a finite number of scales", getattr(self, name)))
        for name, least in (("stall_gain", 0.0), ("decisions", 1), ("cooldown_steps", 0), ("stale_s", 0.0)):
            if not getattr(self, name) >= least:
                raise ConfigError(mismatch("help", name, f"{least} or more", getattr(self, name)))
        if self.stall_steps is not None and self.stall_steps < 1:
            raise ConfigError(mismatch("help", "stall_steps", "1 or more, or none", self.stall_steps))

    def reference(self, task: str) -> Reference | None:
        """Of a task's name or instruction, else of all tasks together; None when not calibrated."""
        name = self.instructions.get(task, task)
        return self.references.get(name) or self.references.get(ANY_TASK)


@dataclass(frozen=True)
class HelpAnswer:
    """ask: request the operator now. agreeing: consecutive decisions, up to this one, that speak for failure.

    reason: why, or why not, for people.
    """

    ask: bool
    agreeing: int
    reason: str


def pessimistic_value(decision: Decision) -> float | None:
    """The least of the members' scores of the chunk that runs; None when it was not scored."""
    if decision.scores is None or not 0 <= decision.index < decision.scores.q.shape[1]:
        return None
    return float(decision.scores.q[:, decision.index].min())  # NaN stays NaN


class HelpDetector:
    """Judges one episode, decision by decision. Never raises, whatever it is given."""

    def __init__(self, settings: HelpSettings, task: str = ANY_TASK) -> None:
        self.settings = settings
        self.begin(task)

    def begin(self, task: str) -> None:
        """A new episode. task: its name or its instruction."""
        self._reference = self.settings.reference(task)
        self._asked_at: float | None = None
        self._version = ""
        self._forget()

    def handed_back(self, step: float) -> None:
        """A human gave the controls back at `step`: what was before is forgiven, the cool-down begins."""
        self._forget()
        self._asked_at = _number(step)

    def _forget(self) -> None:
        self._agreeing = 0
        self._best: float | None = None
        self._best_step = 0.0

    def update(
        self,
        step: float,
        value: float | None,
        progress: float | None,
        progress_age_s: float | None = 0.0,
        critic_version: str = "",
    ) -> HelpAnswer:
        """One decision. step: control steps since the episode began. value: see `pessimistic_value`.

        progress: 0 … 1, true or estimated. progress_age_s: seconds since what it was estimated from.
        critic_version: of the value; another critic's than calibrated counts as missing, and another's than
        that of the decision before begins a new row.
        """
        now, reference = _number(step), self._reference
        if critic_version != self._version:
            self._agreeing, self._version = 0, critic_version
        if reference is None or now is None:
            self._agreeing = 0
            return HelpAnswer(False, 0, "not calibrated" if reference is None else "step missing")
        rule, found = self.settings.rule, []
        if rule != "progress":
            found.append(self._judge_value(reference.value, now, value, critic_version))
        if rule != "value":
            found.append(self._judge_progress(reference.progress, now, progress, progress_age_s))
        self._agreeing = self._agreeing + 1 if all(failing for failing, _ in found) else 0
        return self._answer(now, " and ".join(words for _, words in found))

    def _judge_value(self, curve: Curve, step: float, value: float | None, version: str) -> tuple[bool, str]:
        wanted = self.settings.critic_version
        if version and wanted and version != wanted:
            return False, f"value of critic {version}, calibrated for {wanted}"
        found = _number(value)
        if found is None:
            return False, "value missing" if value is None else "value not finite"
        limit = curve.limit(step, self.settings.value_margin)
        low = found < limit
        return low, f"value {found:.3g} {'below' if low else 'not below'} {limit:.3g}"

    def _judge_progress(
        self, curve: Curve, step: float, progress: float | None, age_s: float | None
    ) -> tuple[bool, str]:
        settings, found, age = self.settings, _number(progress), _number(age_s)
        if found is None:
            return False, "progress missing" if progress is None else "progress not finite"
        if age is None or age > settings.stale_s:
            old = "of unknown age" if age is None else f"{age:.2g} s old"
            return False, f"progress stale ({old}, at most {settings.stale_s:g} s)"
        if self._best is None or found > self._best + settings.stall_gain:
            self._best, self._best_step = found, step
        limit = curve.limit(step, settings.progress_margin)
        if found < limit:
            return True, f"progress {found:.2f} below {limit:.2f}"
        still = step - self._best_step
        if settings.stall_steps is not None and still >= settings.stall_steps:
            return True, f"progress {found:.2f} not rising for {still:g} steps"
        return False, f"progress {found:.2f} not below {limit:.2f}"

    def _answer(self, step: float, evidence: str) -> HelpAnswer:
        agreeing, settings = self._agreeing, self.settings
        if agreeing < settings.decisions:
            seen = f" ({agreeing} of {settings.decisions} decisions)" if agreeing else ""
            return HelpAnswer(False, agreeing, evidence + seen)
        if self._asked_at is not None and step - self._asked_at < settings.cooldown_steps:
            waited = f" (cool-down: {step - self._asked_at:g} of {settings.cooldown_steps} steps)"
            return HelpAnswer(False, agreeing, evidence + waited)
        # The row goes on through the cool-down, so that a stricter limit never leads to more requests.
        self._asked_at = step
        return HelpAnswer(True, agreeing, f"{evidence}, for {agreeing} decisions")


def _number(value: float | None) -> float | None:
    """A finite float, else None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
