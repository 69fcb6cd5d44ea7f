"""`HelpWatch`: what a running graph says, into one `HelpDetector`: which step, how old, whose value.

Messages come when they come: a decision belongs to the step at which its chunk was asked for, an estimate of
progress is as old as the newest picture that it was made from, and what was planned or seen before an episode
began or a human took over does not count. Pure: no clock, no ROS; stamps are nanoseconds of one clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from valueguide.execution.help import HelpAnswer, HelpDetector, HelpSettings, pessimistic_value
from valueguide.types import Decision

#: Status of an estimate of progress that counts; every other one says why there is none.
USABLE = "ok"
#: Chunks that may be asked for before the decision about an earlier one is heard of.
_REMEMBERED = 8


@dataclass(frozen=True)
class HelpRequest:
    """The operator is wanted. step: control steps that had run when the decision was asked for.

    value: pessimistic, discounted return. progress: 0 … 1. Either is NaN where the rule does without it.
    """

    step: int
    reason: str
    value: float
    progress: float


class HelpWatch:
    """Judges the episode that runs, if any. `asked`: requests in it. `last`: the last answer, None before."""

    def __init__(self, settings: HelpSettings) -> None:
        self.settings = settings
        self._detector: HelpDetector | None = None
        self._steps: OrderedDict[int, int] = OrderedDict()
        self._progress: tuple[float, int] | None = None
        self._began_ns = 0
        self.asked = 0
        self.last: HelpAnswer | None = None

    def begin(self, task: str, now_ns: int) -> None:
        """An episode begins. task: name or instruction."""
        self._detector = HelpDetector(self.settings, task)
        self._steps.clear()
        self._progress, self._began_ns = None, now_ns
        self.asked, self.last = 0, None

    def end(self) -> None:
        """The episode is over: nothing is asked for until the next one."""
        self._detector = None

    def planning(self, request_id: int, step: int) -> None:
        """A chunk is asked for. step: control steps that had run when the observation for it was taken."""
        self._steps[request_id] = step
        while len(self._steps) > _REMEMBERED:
            self._steps.popitem(last=False)

    def on_progress(self, value: float, status: str, stamp_ns: int) -> None:
        """An estimate. stamp_ns: of its newest picture. One that is not usable clears the one before."""
        usable = status == USABLE and stamp_ns >= self._began_ns
        self._progress = (value, stamp_ns) if usable else None

    def on_decision(
        self, request_id: int, decision: Decision, critic_version: str, now_ns: int
    ) -> HelpRequest | None:
        """The decision about a chunk. None: no reason to ask, or the chunk was not asked for here."""
        step = self._steps.pop(request_id, None)
        if self._detector is None or step is None:
            return None
        value = pessimistic_value(decision)
        progress, stamp_ns = self._progress or (None, now_ns)
        age_s = (now_ns - stamp_ns) / 1e9
        # A picture from the future: the clock was set back since, and nothing tells how old it is.
        known_age = age_s if age_s >= -self.settings.stale_s else None
        self.last = self._detector.update(step, value, progress, known_age, critic_version)
        if not self.last.ask:
            return None
        self.asked += 1
        unknown = math.nan
        return HelpRequest(
            step,
            self.last.reason,
            unknown if value is None else value,
            unknown if progress is None else progress,
        )

    def taken_over(self) -> None:
        """A human commands: decisions still under way are about a plan that will not run."""
        self._steps.clear()

    def handed_back(self, step: int) -> None:
        """The policy goes on after `step` control steps."""
        if self._detector is not None:
            self._detector.handed_back(step)
