"""From a clip to progress: ask, parse, ask again, and combine several shuffles.

GvlEstimator asks about shuffled frames and reads values from text; TokenProbability asks how probable it
is, after each prefix of the same frames, that the task is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.progress.cache import AnswerCache, request_key
from valueguide.progress.frames import frames_digest
from valueguide.progress.parse import MalformedAnswer, parse_answer
from valueguide.progress.prompt import Wording, build_prefix_request, build_request, correction
from valueguide.progress.request import (
    Clip,
    Estimate,
    Example,
    ProgressBackend,
    Reply,
    Request,
    RequestFailed,
    Sampling,
    Shuffle,
    Status,
)
from valueguide.progress.voc import value_order_correlation


class Estimator(Protocol):
    """Clip to estimate. Safe to call from several threads."""

    def estimate(self, clip: Clip) -> Estimate:
        """Raises ConfigError when the backend can never answer."""

    def describe(self) -> dict[str, object]:
        """All settings that the estimate depends on, JSON-serialisable."""


@dataclass(frozen=True)
class AskSettings:
    """shuffles: questions about each clip, with seeds seed, seed + 1, …; reasks: how often a question is
    asked again after an answer that cannot be used."""

    shuffles: int = 3
    seed: int = 0
    reasks: int = 2
    wording: Wording = field(default_factory=Wording)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.shuffles < 1 or self.seed < 0 or self.reasks < 0:
            found = f"{self.shuffles}, {self.seed}, {self.reasks}"
            raise ConfigError(mismatch("progress", "shuffles, seed, reasks", ">= 1, >= 0, >= 0", found))


class GvlEstimator:
    """GVL (arXiv 2411.04549) on one backend.

    examples: in-context episodes, shown in every question.
    """

    def __init__(
        self,
        backend: ProgressBackend,
        settings: AskSettings,
        examples: Sequence[Example] = (),
        cache: AnswerCache | None = None,
    ) -> None:
        _must_answer(backend, settings.wording.answer)
        self._backend, self._settings = backend, settings
        self._examples, self._cache = tuple(examples), cache or AnswerCache(None)

    def estimate(self, clip: Clip) -> Estimate:
        seeds = range(self._settings.seed, self._settings.seed + self._settings.shuffles)
        return combine(clip, [self._shuffle(clip, seed) for seed in seeds])

    def describe(self) -> dict[str, object]:
        settings = self._settings
        examples = [
            {
                "task": e.task,
                "kind": e.kind,
                "frames": frames_digest(e.frames),
                "progress": e.progress.tolist(),
            }
            for e in self._examples
        ]
        return {
            "estimator": "gvl",
            "backend": self._backend.identity(),
            "shuffles": settings.shuffles,
            "seed": settings.seed,
            "reasks": settings.reasks,
            "prompt": settings.wording.version,
            "sampling": vars(settings.sampling),
            "examples": examples,
        }

    def _shuffle(self, clip: Clip, seed: int) -> Shuffle:
        settings = self._settings
        first = build_request(clip, seed, settings.wording, self._examples, settings.sampling)
        values = np.full(len(clip.frames), np.nan, np.float32)
        reasons: list[str] = []
        replies: list[Reply] = []
        status: Status = "malformed"
        request = first
        for attempt in range(settings.reasks + 1):
            if reasons:
                prompt = first.prompt.with_correction(correction(reasons[-1]))
                request = replace(first, prompt=prompt, attempt=attempt)
            try:
                replies.append(ask_cached(self._backend, self._cache, request))
                percent = parse_answer(
                    replies[-1].text, clip.asked, settings.wording.answer, replies[-1].finish
                )
            except MalformedAnswer as error:
                reasons.append(str(error))
            except RequestFailed as error:
                reasons.append(str(error))
                status = "failed"
                break
            else:
                values[request.order] = percent / 100.0
                status = "ok"
                break
        return Shuffle(seed, first.order, values, status, tuple(reasons), tuple(replies))


class TokenProbability:
    """TOPReward (arXiv 2602.19313) on one backend: the probability of "True" after each prefix of frames.

    Values are probabilities as they are. They are not stretched to [0, 1] within an episode, which would
    let every failure end at 1. Longer prefixes tend to raise them whatever the pictures show: read them
    beside the control with a repeated first frame.
    """

    def __init__(self, backend: ProgressBackend, cache: AnswerCache | None = None) -> None:
        _must_answer(backend, "token")
        self._backend, self._cache = backend, cache or AnswerCache(None)

    def estimate(self, clip: Clip) -> Estimate:
        logs = np.full(len(clip.frames), np.nan, np.float32)
        order = np.arange(1, len(clip.frames), dtype=np.int64)
        replies: list[Reply] = []
        reasons: list[str] = []
        for last in order:
            try:
                replies.append(ask_cached(self._backend, self._cache, build_prefix_request(clip, int(last))))
            except RequestFailed as error:
                reasons.append(f"prefix up to frame {last}: {error}")
                continue
            if replies[-1].log_probability is not None:
                logs[last] = replies[-1].log_probability
        values = np.exp(logs)
        status: Status = "failed" if reasons else "ok"
        shuffle = Shuffle(0, order, values, status, tuple(reasons), tuple(replies))
        return replace(combine(clip, [shuffle]), log_probability=logs, voc=value_order_correlation(logs))

    def describe(self) -> dict[str, object]:
        return {"estimator": "token_probability", "backend": self._backend.identity()}


def ask_cached(backend: ProgressBackend, cache: AnswerCache, request: Request) -> Reply:
    """The stored answer to exactly this request, or the backend's, stored. Failures are not stored."""
    key = request_key(request, backend.identity())
    with cache.alone(key):
        reply = cache.get(key)
        if reply is None:
            reply = backend.ask(request)
            cache.put(key, reply)
    return reply


def combine(clip: Clip, shuffles: Sequence[Shuffle]) -> Estimate:
    """The median of the known values of each frame, and how good it is. No value, no median: NaN."""
    values = np.stack([shuffle.values for shuffle in shuffles])
    median = np.full(len(clip.frames), np.nan, np.float32)
    spread = median.copy()
    for i, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        if len(known):
            median[i] = np.median(known)
        if len(known) > 1:
            spread[i] = known.max() - known.min()
    good = sum(shuffle.status == "ok" for shuffle in shuffles)
    failed = sum(shuffle.status == "failed" for shuffle in shuffles)
    answered = len(shuffles) - failed
    return Estimate(
        values=median,
        spread=spread,
        positions=clip.positions,
        voc=value_order_correlation(median),
        status=_status(good, failed, len(shuffles)),
        parse_rate=good / answered if answered else None,
        shuffles=tuple(shuffles),
    )


def _status(good: int, failed: int, all_: int) -> Status:
    if failed:
        return "failed"
    return "ok" if good == all_ else ("partial" if good else "malformed")


def _must_answer(backend: ProgressBackend, answer: str) -> None:
    if answer not in backend.answers:
        raise ConfigError(mismatch("backend", "answers", " or ".join(backend.answers), answer))
