"""A whole dataset through an endpoint that does everything wrong: no wrong number, everything finished."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.progress.batch import Job, run_jobs
from valueguide.progress.cache import AnswerCache
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.http import Patience
from valueguide.progress.openai import OpenAiBackend
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Answer, RequestFailed
from valueguide.progress.rows import RowFile
from valueguide.testing.fake_openai_server import FAULTS, FakeOpenAiServer
from valueguide.testing.fake_progress import brightness_clip

EPISODES = 24
#: A refused key and a redirect end a run at once, which has its own tests.
PASSING = tuple(fault for fault in FAULTS if fault not in ("401", "redirect"))


def _percentages(number: int) -> list[int]:
    return np.random.default_rng(number).permutation(101)[:6].tolist()


def _score(
    server: FakeOpenAiServer, folder: Path, answer: Answer, tries: int = 2, timeout_s: float = 0.4
) -> list[dict[str, Any]]:
    """One run over all episodes, as `valueguide progress` makes it; its rows, on disk."""
    backend = OpenAiBackend(
        server.url, "m", schema="off", concurrency=4, patience=Patience(timeout_s, tries, 0.01, 0.02)
    )
    settings = AskSettings(shuffles=2, reasks=1, wording=Wording(answer))
    estimator = GvlEstimator(backend, settings, cache=AnswerCache(folder / "cache"))
    jobs = [
        Job((number, "front", "real"), lambda number=number: brightness_clip(_percentages(number)))
        for number in range(EPISODES)
    ]
    rows = RowFile(folder / "rows.jsonl", estimator.describe())
    try:
        with contextlib.suppress(RequestFailed):  # it gives up when nothing works; what there is, is kept
            run_jobs(jobs, estimator, rows, backend.concurrency, lambda row: None)
    finally:
        rows.close()
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def _check(rows: list[dict[str, Any]]) -> None:
    """Whatever is said is right, and what a row says of itself fits."""
    for row in rows:
        truth = [None, *(value / 100 for value in _percentages(row["episode"])[1:])]
        assert row["progress"] == pytest.approx(truth) if row["status"] in ("ok", "partial") else True
        for shuffle in row["shuffles"]:
            wanted = truth if shuffle["status"] == "ok" else [None] * 6
            assert shuffle["progress"] == pytest.approx(wanted), (row["episode"], shuffle)
        good = sum(shuffle["status"] == "ok" for shuffle in row["shuffles"])
        failed = sum(shuffle["status"] == "failed" for shuffle in row["shuffles"])
        assert (row["status"] == "ok") == (good == 2) and (row["status"] == "failed") == (failed > 0)


@pytest.mark.faults
@pytest.mark.parametrize("seed, answer", [(0, "json"), (1, "lines")])
def test_no_wrong_number_and_everything_finished(seed: int, answer: Answer, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    faults = rng.permutation([*PASSING * 5, *[""] * 30]).tolist()
    with FakeOpenAiServer(faults, hang_s=0.8) as server:
        for _ in range(20):
            rows = _score(server, tmp_path, answer)
            _check(rows)
            if not server.faults and all(row["status"] != "failed" for row in rows):
                break
    assert [row["episode"] for row in rows] == list(range(EPISODES))
    finished = [row for row in rows if row["status"] in ("ok", "partial")]
    assert len(finished) >= EPISODES - 4  # the rest got two answers in a row that were cut short or refused
    assert {row["status"] for row in rows} <= {"ok", "partial", "malformed"}


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["garbage", "hang", "429", "500", "cut", "reordered"])
def test_one_kind_of_fault_for_every_third_request(fault: str, tmp_path: Path) -> None:
    """Retries get past each of them in one run; reordered frames are put right."""
    with FakeOpenAiServer([fault, "", ""] * 16, hang_s=0.8) as server:
        # More tries than there are faults: in whatever order threads ask, none meets nothing but faults. Only
        # a hang needs a short deadline; a busy machine is not one.
        rows = _score(server, tmp_path, "json", tries=20, timeout_s=0.4 if fault == "hang" else 20.0)
    _check(rows)
    assert [row["status"] for row in rows] == ["ok"] * EPISODES
