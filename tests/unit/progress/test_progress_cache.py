"""The cache of answers: one key for one question, whole files only, a cut-off run goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valueguide.progress.cache import AnswerCache, request_key
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.prompt import Wording, build_request
from valueguide.progress.request import Clip, Reply, Request, RequestFailed, Sampling
from valueguide.testing.fake_progress import FakeProgressBackend, brightness_clip

CLIP = brightness_clip([3, 10, 35, 70])
REQUEST = build_request(CLIP, 0, Wording())
IDENTITY = {"model": "a", "revision": "1"}


def _changed() -> dict[str, tuple[Request, dict[str, str]]]:
    frames = CLIP.frames.copy()
    frames[2, 5, 7, 2] += 1  # one channel of one pixel
    pixel = build_request(Clip(frames, CLIP.task, CLIP.positions), 0, Wording())
    prompt = REQUEST.prompt
    return {
        "model": (REQUEST, {"model": "b", "revision": "1"}),
        "revision": (REQUEST, {"model": "a", "revision": "2"}),
        "pixel": (replace(pixel, order=REQUEST.order), IDENTITY),
        "task": (build_request(replace(CLIP, task="pull it"), 0, Wording()), IDENTITY),
        "seed": (replace(REQUEST, seed=1), IDENTITY),
        "order": (replace(REQUEST, order=REQUEST.order[::-1].copy()), IDENTITY),
        "attempt": (replace(REQUEST, attempt=1), IDENTITY),
        "temperature": (replace(REQUEST, sampling=Sampling(temperature=0.5)), IDENTITY),
        "top_p": (replace(REQUEST, sampling=Sampling(top_p=0.5)), IDENTITY),
        "max_tokens": (replace(REQUEST, sampling=Sampling(max_tokens=5)), IDENTITY),
        "version": (replace(REQUEST, prompt=replace(prompt, version="x")), IDENTITY),
        "continuation": (replace(REQUEST, prompt=replace(prompt, continuation="x")), IDENTITY),
        "correction": (replace(REQUEST, prompt=prompt.with_correction("x")), IDENTITY),
    }


@pytest.mark.parametrize("what", _changed())
def test_everything_that_matters_is_in_the_key(what: str) -> None:
    assert request_key(*_changed()[what]) != request_key(REQUEST, IDENTITY)


def test_the_key_is_stable() -> None:
    assert request_key(build_request(CLIP, 0, Wording()), dict(IDENTITY)) == request_key(REQUEST, IDENTITY)
    swapped = replace(REQUEST.prompt, parts=tuple(reversed(REQUEST.prompt.parts)))
    assert request_key(replace(REQUEST, prompt=swapped), IDENTITY) != request_key(REQUEST, IDENTITY)


def test_answers_come_back_marked(tmp_path: Path) -> None:
    cache, reply = AnswerCache(tmp_path), Reply("text ü", "stop", None, 3, None, 0.5)
    assert cache.get("ab" * 32) is None
    cache.put("ab" * 32, reply)
    assert cache.get("ab" * 32) == replace(reply, cached=True)
    assert AnswerCache(None).get("ab" * 32) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "edited", "other", "list", "binary"])
def test_a_damaged_entry_is_ignored_and_written_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimator = GvlEstimator(FakeProgressBackend(), AskSettings(shuffles=1), cache=AnswerCache(tmp_path))
    estimator.estimate(CLIP)
    (path,) = tmp_path.rglob("*.json")
    good = path.read_bytes()
    entry = json.loads(good)
    entry["reply"]["text"] = entry["reply"]["text"].replace("70", "71")
    path.write_bytes(
        {
            "empty": b"",
            "cut": good[:-20],
            "edited": json.dumps(entry).encode(),
            "other": good.replace(path.stem.encode(), b"00" * 32),
            "list": b"[]",
            "binary": b"\xff\x00",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = estimator.estimate(CLIP)
    assert found.values[1:] * 100 == pytest.approx([10, 35, 70]) and str(path) in caplog.text
    assert json.loads(path.read_bytes()) == json.loads(good)
    assert estimator.estimate(CLIP).shuffles[0].replies[0].cached


def test_a_second_run_asks_nothing_and_a_failure_is_not_kept(tmp_path: Path) -> None:
    def down(number: int, request: Request) -> None:
        if number == 1:
            raise RequestFailed("cut off")

    backend = FakeProgressBackend(down)
    estimator = GvlEstimator(backend, AskSettings(), cache=AnswerCache(tmp_path))
    assert estimator.estimate(CLIP).status == "failed"
    again = estimator.estimate(CLIP)
    assert again.status == "ok" and len(backend.requests) == 4  # three, then the one that had failed
    assert [s.replies[0].cached for s in again.shuffles] == [True, False, True]
    assert estimator.estimate(CLIP).status == "ok" and len(backend.requests) == 4
    assert np.array_equal(again.values, estimator.estimate(CLIP).values, equal_nan=True)


def test_refused_answers_are_remembered_too(tmp_path: Path) -> None:
    """A rerun must not turn a malformed answer into another draw until it fits."""
    backend = FakeProgressBackend(lambda n, r: "?")
    estimator = GvlEstimator(backend, AskSettings(shuffles=1, reasks=1), cache=AnswerCache(tmp_path))
    assert estimator.estimate(CLIP).status == estimator.estimate(CLIP).status == "malformed"
    assert len(backend.requests) == 2


def test_threads_ask_the_same_question_once(tmp_path: Path) -> None:
    backend = FakeProgressBackend(lambda n, r: time.sleep(0.05))
    estimator = GvlEstimator(backend, AskSettings(shuffles=1), cache=AnswerCache(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(estimator.estimate, [CLIP] * 8))
    assert len(backend.requests) == 1 and all(f.status == "ok" for f in found)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


_KILLED = """
import os, sys
from pathlib import Path
from valueguide.progress.cache import AnswerCache
from valueguide.progress.request import Reply
cache = AnswerCache(Path(sys.argv[1]))
cache.put("aa" * 32, Reply("first"))
replace = os.replace
os.replace = lambda *a: os.kill(os.getpid(), 9)
cache.put("bb" * 32, Reply("second"))
"""


@pytest.mark.faults
def test_a_kill_between_writing_and_renaming_leaves_no_entry(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    cache = AnswerCache(tmp_path)
    first = cache.get("aa" * 32)
    assert first is not None and first.text == "first" and cache.get("bb" * 32) is None
    cache.put("bb" * 32, Reply("second"))
    assert cache.get("bb" * 32) == Reply("second", cached=True)
