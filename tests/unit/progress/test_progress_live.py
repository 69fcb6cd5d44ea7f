"""The estimator of a running episode: what it says is what an offline estimate says, and it never blocks."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.frames import sample_positions
from valueguide.progress.live import LiveEstimate, LiveProgress, Prefix
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Clip, Estimate
from valueguide.testing.fake_progress import FakeProgressBackend
from valueguide.testing.waiting import until

_until = partial(until, wait_s=20.0, look_s=0.005)

SETTINGS = AskSettings(shuffles=3, reasks=0)


def _frame(level: int) -> np.ndarray:
    return np.full((6, 8, 3), level, np.uint8)


def _answer(live: LiveProgress) -> LiveEstimate:
    assert live.ask()
    _until(lambda: not live.waiting_s, "answer")
    return _until(lambda: live.latest, "estimate")


def test_every_prefix_has_the_value_of_the_offline_estimate() -> None:
    """A backend whose values depend on every picture and on their order: 40 frames, asked about at each."""

    def context(number: int, request: Any) -> str:
        levels = [int(p.flat[0]) for p in request.prompt.pictures]
        values = [(7 * level + i * sum(levels)) % 101 for i, level in enumerate(levels[1:], 1)]
        return "\n".join(f"Frame {i}: {value}%" for i, value in enumerate(values, 1))

    settings = AskSettings(shuffles=3, reasks=0, wording=Wording("lines"))
    offline = GvlEstimator(FakeProgressBackend(context), settings)
    levels = np.random.default_rng(0).integers(0, 256, 40)
    live = LiveProgress(lambda: GvlEstimator(FakeProgressBackend(context), settings), frames=6, keep=64)
    live.begin(3, "push it")
    for count, level in enumerate(levels, 1):
        live.push(_frame(level), 1000 * count)
        if count < 2:
            assert not live.ask()
            continue
        found = _answer(live)
        at = sample_positions(count, 6)
        clip = Clip(np.stack([_frame(levels[i]) for i in at]), "push it", at)
        wanted = offline.estimate(clip)
        assert found.positions.tolist() == at.tolist() and found.stamp_ns == 1000 * count
        assert found.value == wanted.final and found.episode == 3 and found.status == "ok"
        assert found.confidence == pytest.approx(1.0 - float(wanted.spread[-1]))


@settings(deadline=None)  # a busy machine is not an error
@given(st.integers(2, 700), st.integers(3, 12), st.integers(12, 40))
def test_a_prefix_is_bounded_and_spread_over_all_of_it(count: int, frames: int, keep: int) -> None:
    prefix = Prefix(keep)
    for i in range(count):
        prefix.push(np.full((1, 1, 3), i % 251, np.uint8), i)
        assert len(prefix._held) <= keep
    clip = prefix.clip("t", frames)
    assert clip.positions[0] == 0 and clip.positions[-1] == count - 1
    assert clip.frames[:, 0, 0, 0].tolist() == [i % 251 for i in clip.positions]
    assert len(clip.frames) == min(frames, len(prefix._held) + (prefix._held[-1][0] != count - 1))
    if count <= keep:
        assert clip.positions.tolist() == sample_positions(count, frames).tolist()
    else:  # no gap is larger than twice the even one and a kept frame's distance
        assert np.diff(clip.positions).max() <= 2 * count / (len(clip.frames) - 1) + 2 * count / keep


class _Stuck:
    """An estimator that hangs until it is released."""

    def __init__(self) -> None:
        self.release, self.asked = threading.Event(), 0
        self.inner = GvlEstimator(FakeProgressBackend(), SETTINGS)

    def estimate(self, clip: Clip) -> Estimate:
        self.asked += 1
        self.release.wait(30)
        return self.inner.estimate(clip)

    def describe(self) -> dict[str, object]:
        return {}


def test_a_stuck_answer_blocks_nothing_and_counts_for_its_own_episode_only() -> None:
    stuck = _Stuck()
    live = LiveProgress(lambda: stuck, frames=4)
    live.begin(1, "push it")
    for i in range(5):
        live.push(_frame(10 * i), i)
    start = time.monotonic()
    assert live.ask()
    for i in range(5, 200):
        live.push(_frame(i), i)
        assert not live.ask() and live.latest is None  # one question at a time
    assert time.monotonic() - start < 5.0 and live.waiting_s > 0
    live.begin(2, "pull it")
    for i in range(3):
        live.push(_frame(20 * i), 1000 + i)
    stuck.release.set()
    _until(lambda: not live.waiting_s, "end of the question")
    assert live.latest is None and stuck.asked == 1  # that answer was about episode 1
    assert _answer(live).value == pytest.approx(0.4) and live.latest.episode == 2


def test_what_cannot_be_used_is_told_and_never_a_number() -> None:
    backend = FakeProgressBackend(lambda number, request: "progress is good" if number < 3 else None)
    live = LiveProgress(lambda: GvlEstimator(backend, SETTINGS), frames=4)
    live.begin(1, "push it")
    for i in range(3):
        live.push(_frame(10 * i), i)
    found = _answer(live)
    assert found.status == "malformed" and np.isnan(found.value) and np.isnan(found.confidence)
    assert found.detail
    assert not live.ask()  # nothing new to ask about
    live.push(_frame(50), 3)
    assert live.ask()
    _until(lambda: live.latest.status == "ok", "good answer")
    assert live.latest.value == pytest.approx(0.5) and live.latest.confidence == 1.0


def test_an_estimator_that_is_not_there_yet_is_tried_again() -> None:
    made: list[int] = []

    def make() -> GvlEstimator:
        made.append(1)
        if len(made) == 1:
            raise CheckpointError("models/none: not there")
        if len(made) == 2:
            raise RuntimeError("surprise")
        return GvlEstimator(FakeProgressBackend(), SETTINGS)

    live = LiveProgress(make, frames=4)
    live.begin(1, "push it")
    for words in ("models/none: not there", "RuntimeError: surprise"):
        for _ in range(2):
            live.push(_frame(30), 0)
        assert live.ask()
        _until(lambda: not live.waiting_s, "end")
        assert live.trouble == words and live.latest is None
    live.push(_frame(70), 9)
    assert _answer(live).value == pytest.approx(0.7) and live.trouble == "" and len(made) == 3


def test_wrong_settings_and_pictures() -> None:
    with pytest.raises(ConfigError, match="frames, keep"):
        LiveProgress(lambda: _Stuck(), frames=2)
    live = LiveProgress(lambda: _Stuck(), frames=4, longest_edge=4)
    live.begin(1, "t")
    live.push(_frame(1), 0)
    with pytest.raises(DataError, match="picture"):
        live.push(np.zeros((8, 8, 3), np.uint8), 1)
