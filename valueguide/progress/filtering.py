"""Which episodes of a dataset are worth keeping, by their progress, and why each of the others is not.

Nothing is kept for lack of knowledge: an episode without a usable estimate is dropped by every rule that
looks at scores. The control arm draws as many episodes at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.progress.rows import Row
from valueguide.progress.success import Detector, undecided

MEASURES = ("final", "voc")


@dataclass(frozen=True)
class Candidate:
    """An episode that may be kept. row: its scores, None where it has none."""

    episode: int
    task: str
    row: Row | None


@dataclass(frozen=True)
class Choice:
    """kept: episode numbers, ascending. dropped: episode number -> reason."""

    kept: list[int]
    dropped: dict[int, str]


def keep_top(candidates: Sequence[Candidate], share: float, by: str, per_task: bool) -> Choice:
    """The `share` with the highest value of `by` (one of MEASURES); ties by the other, then the earlier one.

    The share is of all candidates, with or without scores, rounded to whole episodes; of each task if
    `per_task`. Constant values have no VOC and rank behind all that have one.
    """
    _check_share(share)
    other = MEASURES[1 - MEASURES.index(_measure(by))]
    dropped: dict[int, str] = {}
    kept: list[int] = []
    for group in _groups(candidates, per_task):
        good = [c for c in group if not _unusable(c)]
        good.sort(key=lambda c: (-_value(c, by), -_value(c, other), c.episode))
        count = _count(share, len(group))
        kept += [c.episode for c in good[:count]]
        dropped |= {c.episode: _unusable(c) for c in group if _unusable(c)}
        for rank, candidate in enumerate(good[count:], start=count + 1):
            dropped[candidate.episode] = (
                f"{by} {_value(candidate, by):.3f} is number {rank}, {count} of {len(group)} are kept"
            )
    return Choice(sorted(kept), dict(sorted(dropped.items())))


def keep_above(candidates: Sequence[Candidate], least: float, by: str) -> Choice:
    """Those whose value of `by` is `least` or more."""
    _measure(by)
    return _split(
        candidates,
        lambda c: "" if _value(c, by) >= least else f"{by} {_value(c, by):.3f} is below {least:g}",
    )


def keep_detected(candidates: Sequence[Candidate], detector: Detector) -> Choice:
    """Those that the detector calls a success."""
    least = detector.thresholds[detector.rule]

    def reason(candidate: Candidate) -> str:
        score = detector.score(candidate.row) if candidate.row else None
        return "" if score is not None and score >= least else f"failure: {score} is below {least:g}"

    return _split(candidates, reason)


def keep_random(candidates: Sequence[Candidate], counts: Mapping[str, int], seed: int) -> Choice:
    """counts[task] episodes of each task, or counts[""] of all, drawn with `seed`, scores or not."""
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for group in _groups(candidates, "" not in counts):
        count = counts.get("" if "" in counts else group[0].task, 0)
        if not 0 <= count <= len(group):
            raise ConfigError(mismatch("random", "episodes", f"at most {len(group)}", count))
        kept |= {group[i].episode for i in rng.permutation(len(group))[:count]}
    dropped = {c.episode: "not drawn" for c in candidates if c.episode not in kept}
    return Choice(sorted(kept), dropped)


def counts_of(candidates: Sequence[Candidate], share: float, per_task: bool) -> dict[str, int]:
    """How many `keep_top` keeps of each task, or under "" of all, when every episode is usable."""
    _check_share(share)
    groups = _groups(candidates, per_task)
    return {(group[0].task if per_task else ""): _count(share, len(group)) for group in groups}


def _split(candidates: Sequence[Candidate], reason: Callable[[Candidate], str]) -> Choice:
    reasons = {c.episode: _unusable(c) or reason(c) for c in candidates}
    kept = sorted(episode for episode, text in reasons.items() if not text)
    return Choice(kept, {episode: text for episode, text in sorted(reasons.items()) if text})


def _groups(candidates: Sequence[Candidate], per_task: bool) -> list[list[Candidate]]:
    if not per_task:
        return [list(candidates)]
    tasks = dict.fromkeys(c.task for c in candidates)
    return [[c for c in candidates if c.task == task] for task in tasks]


def _unusable(candidate: Candidate) -> str:
    return "no scores" if candidate.row is None else undecided(candidate.row)


def _value(candidate: Candidate, by: str) -> float:
    value = candidate.row[by] if candidate.row else None
    return -np.inf if value is None else float(value)


def _measure(by: str) -> str:
    if by not in MEASURES:
        raise ConfigError(mismatch("--by", "value", " or ".join(MEASURES), repr(by)))
    return by


def _count(share: float, of: int) -> int:
    return int(np.floor(share * of + 0.5))


def _check_share(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ConfigError(mismatch("share", "value", "above 0, at most 1", share))
