"""How good requests for help are, held against how the same episodes ended without help. Pure functions.

An episode is flagged when help would have been asked for at least once; positive is a true failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from valueguide.evaluation.statistics import bootstrap_mean, paired_difference, share
from valueguide.execution.help_calibration import LabelledEpisode

#: The control steps, rising, at which a rule would have asked for help in an episode.
Asker = Callable[[LabelledEpisode], list[int]]
_DRAWS = 10_000


def judge(
    episodes: Sequence[LabelledEpisode], asked: Sequence[Sequence[int]], useful_steps: int
) -> dict[str, Any]:
    """Figures of one rule. asked: for each episode, the control steps of its requests, rising.

    {"episodes", "failures"; "precision": flagged episodes that fail; "recall": failures that are flagged;
    "recall_in_time": failures flagged `useful_steps` before their end or sooner; "false_alarm_rate":
    successes that are flagged, each {"count", "of", "value", "ci95" (Wilson)};
    "false_alarms_per_success": requests in a successful episode {"value", "ci95" (bootstrap over episodes)};
    "lead_steps": control steps from the first request to the end of flagged failures {"median", "ci95"
    (bootstrap of the median), "iqr", "n"}}. What has no cases has value and interval None.
    """
    pairs = list(zip(episodes, asked, strict=True))
    lead = [episode.steps - steps[0] for episode, steps in pairs if steps and not episode.success]
    failures = sum(not episode.success for episode, _ in pairs)
    alarms = [len(steps) for episode, steps in pairs if episode.success]
    flagged = sum(bool(steps) for _, steps in pairs)
    return {
        "episodes": len(pairs),
        "failures": failures,
        "precision": share(len(lead), flagged),
        "recall": share(len(lead), failures),
        "recall_in_time": share(sum(steps >= useful_steps for steps in lead), failures),
        "false_alarm_rate": share(sum(count > 0 for count in alarms), len(alarms)),
        "false_alarms_per_success": _mean(alarms),
        "lead_steps": _lead(lead),
    }


def compare(
    episodes: Sequence[LabelledEpisode], first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """How much more often the second rule is right than the first: it flags a failure, or spares a success.

    See `statistics.paired_difference`.
    """
    right = [
        {
            (e.task, i): bool(steps) != e.success
            for i, (e, steps) in enumerate(zip(episodes, asked, strict=True))
        }
        for asked in (first, second)
    ]
    return paired_difference(right[0], right[1])


def clock(known: Sequence[LabelledEpisode], budget: float, cooldown_steps: int) -> Asker:
    """Asks by time alone: what critic and progress must beat.

    It asks from the earliest control step on that at most `budget` of the successful `known` episodes reach
    with a decision, and again every `cooldown_steps`.
    """
    good = [episode for episode in known if episode.success]
    last = [max(episode.at, default=-1) for episode in good]
    steps = sorted({step for episode in known for step in episode.at})
    limit = next((s for s in steps if sum(end >= s for end in last) <= budget * len(good)), math.inf)

    def asked(episode: LabelledEpisode) -> list[int]:
        found: list[int] = []
        for step in episode.at:
            if step >= limit and (not found or step - found[-1] >= cooldown_steps):
                found.append(step)
        return found

    return asked


def report(
    rules: Mapping[str, Asker], episodes: Sequence[LabelledEpisode], useful_steps: int, main: str = "both"
) -> dict[str, Any]:
    """{"rules": {rule: see `judge`}, "paired": {"<other>_vs_<main>": see `compare`}}."""
    asked = {rule: [asks(episode) for episode in episodes] for rule, asks in rules.items()}
    return {
        "rules": {rule: judge(episodes, found, useful_steps) for rule, found in asked.items()},
        "paired": {
            f"{rule}_vs_{main}": compare(episodes, found, asked[main])
            for rule, found in asked.items()
            if rule != main
        },
    }


def _mean(values: Sequence[int]) -> dict[str, Any]:
    if not values:
        return {"value": None, "ci95": None}
    mean, low, high = bootstrap_mean({"": [float(value) for value in values]})
    return {"value": mean, "ci95": [low, high]}


def _lead(steps: Sequence[int], seed: int = 0) -> dict[str, Any]:
    if not steps:
        return {"median": None, "ci95": None, "iqr": None, "n": 0}
    found = np.array(steps, float)
    drawn = found[np.random.default_rng(seed).integers(len(found), size=(_DRAWS, len(found)))]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    quarters = np.quantile(found, [0.25, 0.75])
    return {
        "median": float(np.median(found)),
        "ci95": [float(low), float(high)],
        "iqr": [float(quarter) for quarter in quarters],
        "n": len(found),
    }
