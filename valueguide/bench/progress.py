"""What one shuffled request for a whole episode, and remembered answers, save against asking frame by frame.

All ways are asked about the same clips and their controls by the same model in the same run, a clip each in
turn, so that a machine whose speed drifts hits all alike. Read the ratios; seconds are this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.progress.cache import AnswerCache
from valueguide.progress.controls import CONTROLS, REAL, control_clip
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Clip, Estimate, ProgressBackend, Sampling
from valueguide.progress.rows import count_tokens

#: Way of asking -> (one request a frame, answers are remembered).
WAYS = {
    "one_call": (False, True),
    "one_call_per_frame": (True, True),
    "one_call_per_frame_uncached": (True, False),
}
_TASK, _OTHER_TASK = "put the carrot on the plate", "open the drawer"


@dataclass(frozen=True)
class ProgressBench:
    """clips: episodes of noise. frames: of each, the anchor included. pixels: their edge. shuffles, reasks:
    see `AskSettings`. tokens_a_frame: cut answers there; 0: the model ends them itself."""

    clips: int = 3
    frames: int = 8
    pixels: int = 96
    shuffles: int = 2
    reasks: int = 0
    tokens_a_frame: int = 0
    seed: int = 0


def measure(backend: ProgressBackend, settings: ProgressBench, folder: Path) -> dict[str, Any]:
    """{"settings", "ways": {way: figures}, "again": figures, "ratios"}; see `_figures`.

    again: `one_call` a second time, as a run that goes on where it was cut off. ratios: of each other way to
    `one_call`, in time and tokens, above 1 where `one_call` is better. folder: for the remembered answers.
    """
    caches = {way: AnswerCache(folder / way if kept else None) for way, (_, kept) in WAYS.items()}
    spent: dict[str, list[tuple[float, list[Estimate]]]] = {way: [] for way in WAYS}
    clips = _noise(settings)
    _ask(backend, settings, AnswerCache(None), clips[0], True)  # warm-up
    for clip in clips:
        for way, (single, _) in WAYS.items():
            spent[way].append(_timed(backend, settings, caches[way], clip, single))
    again = [_timed(backend, settings, caches["one_call"], clip, False) for clip in clips]
    ways = {way: _figures(runs) for way, runs in spent.items()}
    ours = ways["one_call"]
    return {
        "settings": asdict(settings) | {"model": backend.identity(), "variants": [REAL, *CONTROLS]},
        "ways": ways,
        "again": _figures(again),
        "ratios": {
            way: {name: found[name] / ours[name] for name in ("seconds_per_episode", "tokens_per_episode")}
            for way, found in ways.items()
            if way != "one_call"
        },
    }


def _timed(
    backend: ProgressBackend, settings: ProgressBench, cache: AnswerCache, clip: Clip, single: bool
) -> tuple[float, list[Estimate]]:
    start = time.perf_counter()
    estimates = list(_ask(backend, settings, cache, clip, single))
    return time.perf_counter() - start, estimates


def _ask(
    backend: ProgressBackend, settings: ProgressBench, cache: AnswerCache, clip: Clip, single: bool
) -> list[Estimate]:
    """The clip and its controls, whole or, for `single`, the anchor with one other frame at a time."""
    room = settings.tokens_a_frame * (1 if single else clip.asked)
    ask = AskSettings(
        settings.shuffles, settings.seed, settings.reasks, Wording("lines"), Sampling(max_tokens=room)
    )
    estimator = GvlEstimator(backend, ask, cache=cache)
    variants = (control_clip(clip, name, _OTHER_TASK) for name in (REAL, *CONTROLS))
    return [
        estimator.estimate(part)
        for variant in variants
        for part in (_pairs(variant) if single else (variant,))
    ]


def _pairs(clip: Clip) -> Iterator[Clip]:
    for i in range(1, len(clip.frames)):
        yield Clip(clip.frames[[0, i]], clip.task, clip.positions[[0, i]])


def _figures(runs: Sequence[tuple[float, list[Estimate]]]) -> dict[str, float]:
    """Of one way, controls included: seconds, tokens in and out, requests made and answers remembered, all
    for an episode; episodes a minute; and the share of answers that could be used."""
    estimates = [estimate for _, some in runs for estimate in some]
    replies = [reply for e in estimates for shuffle in e.shuffles for reply in shuffle.replies]
    counts, seconds = count_tokens(replies), sum(s for s, _ in runs)
    statuses = [shuffle.status == "ok" for e in estimates for shuffle in e.shuffles]
    return {
        "episodes_per_minute": 60.0 * len(runs) / seconds,
        "seconds_per_episode": seconds / len(runs),
        "input_tokens_per_episode": counts["input"] / len(runs),
        "output_tokens_per_episode": counts["output"] / len(runs),
        "tokens_per_episode": (counts["input"] + counts["output"]) / len(runs),
        "requests_per_episode": (counts["answers"] - counts["cached"]) / len(runs),
        "remembered_per_episode": counts["cached"] / len(runs),
        "usable": sum(statuses) / len(statuses),
    }


def _noise(settings: ProgressBench) -> list[Clip]:
    rng = np.random.default_rng(settings.seed)
    shape = (settings.frames, settings.pixels, settings.pixels, 3)
    return [
        Clip(rng.integers(0, 256, shape, dtype=np.uint8), _TASK, np.arange(settings.frames, dtype=np.int64))
        for _ in range(settings.clips)
    ]
