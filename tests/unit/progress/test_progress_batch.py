"""Many clips: controls, rows on disk, runs that go on, and what is told about them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.errors import ConfigError, DataError
from valueguide.progress.batch import Job, run_jobs
from valueguide.progress.cache import AnswerCache
from valueguide.progress.controls import CONTROLS, REAL, control_clip
from valueguide.progress.estimate import AskSettings, GvlEstimator, TokenProbability
from valueguide.progress.request import Clip, Request, RequestFailed
from valueguide.progress.rows import Row, RowFile
from valueguide.progress.summary import Prices, summarise, table
from valueguide.testing.fake_progress import FakeProgressBackend, brightness_clip

CLIP = brightness_clip([3, 10, 35, 70])
PLAN = {"model": "a", "frames": 4}
ONE = AskSettings(shuffles=1, reasks=0)


def _jobs(count: int, clip: Clip = CLIP) -> list[Job]:
    return [Job((i, "front", REAL), lambda: clip, {"success": True}) for i in range(count)]


def _run(path: Path, jobs: list[Job], backend: FakeProgressBackend, workers: int = 2) -> list[Row]:
    rows = RowFile(path, PLAN)
    try:
        run_jobs(jobs, GvlEstimator(backend, ONE), rows, workers, lambda row: None)
    finally:
        rows.close()
    return list(rows.by_key().values())


def test_controls_by_hand() -> None:
    levels = {
        name: control_clip(CLIP, name, "pull it").frames[:, 0, 0, 0].tolist() for name in (REAL, *CONTROLS)
    }
    assert levels == {
        "real": [3, 10, 35, 70],
        "first_frame": [3, 3, 3, 3],
        "blank": [0, 0, 0, 0],
        "wrong_instruction": [3, 10, 35, 70],
        "reversed": [3, 70, 35, 10],
    }
    assert control_clip(CLIP, "wrong_instruction", "pull it").task == "pull it"
    assert all(control_clip(CLIP, n, "x").positions is CLIP.positions for n in CONTROLS)
    with pytest.raises(ConfigError, match="first_frame"):
        control_clip(CLIP, "upside_down", "")


def test_controls_tell_a_model_that_looks_from_one_that_counts() -> None:
    """Looking: brightness. Counting: more pictures in the prefix, more progress."""

    class Counting(FakeProgressBackend):
        def ask(self, request: Request) -> Any:
            reply = super().ask(request)
            return type(reply)(log_probability=-1.0 / len(request.prompt.pictures))

    looks = {
        n: GvlEstimator(FakeProgressBackend(), ONE).estimate(control_clip(CLIP, n, "t")).voc
        for n in (REAL, *CONTROLS)
    }
    assert looks == {
        REAL: 1.0,
        "first_frame": None,
        "blank": None,
        "wrong_instruction": 1.0,
        "reversed": -1.0,
    }
    counts = [
        TokenProbability(Counting()).estimate(control_clip(CLIP, n, "t")).voc for n in (REAL, *CONTROLS)
    ]
    assert counts == [1.0] * 5


def test_rows_hold_values_quality_and_facts(tmp_path: Path) -> None:
    (row,) = _run(tmp_path / "o.jsonl", _jobs(1), FakeProgressBackend())
    assert json.loads((tmp_path / "o.jsonl").read_text()) == row
    assert row["progress"] == [None, 0.1, 0.35, 0.7] and row["frames"] == [0, 10, 20, 30]
    assert (row["voc"], row["final"], row["parse_rate"], row["status"]) == (1.0, 0.7, 1.0, "ok")
    assert row["success"] is True and sorted(row["shuffles"][0]["order"]) == [1, 2, 3]
    assert row["tokens"] == {"input": 40, "output": 15, "answers": 1, "cached": 0, "unknown": 0}


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    def interrupt(number: int, request: Request) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "o.jsonl", _jobs(6), FakeProgressBackend(interrupt), workers=1)
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    backend = FakeProgressBackend()
    rows = _run(tmp_path / "o.jsonl", _jobs(6), backend)
    assert len(backend.requests) == 3 and [row["episode"] for row in rows] == list(range(6))


def test_a_line_that_a_kill_left_half_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    _run(path, _jobs(3), FakeProgressBackend())
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    backend = FakeProgressBackend()
    _run(path, _jobs(3), backend)
    assert len(backend.requests) == 1 and path.read_bytes() == whole


def test_failed_clips_are_made_again_and_malformed_ones_are_not(tmp_path: Path) -> None:
    def wrong(number: int, request: Request) -> str | None:
        if number == 0:
            raise RequestFailed("down")
        return "?" if number == 1 else None

    path = tmp_path / "o.jsonl"
    rows = _run(path, _jobs(3), FakeProgressBackend(wrong), workers=1)
    assert [row["status"] for row in rows] == ["failed", "malformed", "ok"]
    assert rows[0]["progress"] == rows[1]["progress"] == [None] * 4
    backend = FakeProgressBackend()
    rows = _run(path, _jobs(3), backend)
    assert [row["status"] for row in rows] == ["ok", "malformed", "ok"] and len(backend.requests) == 1
    assert len(path.read_text().splitlines()) == 3


def test_tokens_of_a_clip_made_again_are_not_forgotten(tmp_path: Path) -> None:
    def down(number: int, request: Request) -> None:
        if number == 1:
            raise RequestFailed("down")

    path, cache = tmp_path / "o.jsonl", AnswerCache(tmp_path / "cache")
    backend = FakeProgressBackend(down)
    for expected in (40, 80):  # one answer, then the other; the first now comes from the cache
        rows = RowFile(path, PLAN)
        run_jobs(
            _jobs(1), GvlEstimator(backend, AskSettings(shuffles=2), (), cache), rows, 1, lambda row: None
        )
        rows.close()
        (row,) = rows.by_key().values()
        assert row["tokens"]["input"] == expected
    assert row["status"] == "ok" and row["tokens"]["cached"] == 1


def test_rows_of_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    _run(tmp_path / "o.jsonl", _jobs(1), FakeProgressBackend())
    with pytest.raises(ConfigError, match="model"):
        RowFile(tmp_path / "o.jsonl", {**PLAN, "model": "b"})
    (tmp_path / "text.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="rows of"):
        RowFile(tmp_path / "text.jsonl", PLAN)


def test_a_damaged_picture_costs_one_clip(tmp_path: Path) -> None:
    def damaged() -> Clip:
        raise DataError("file-003.parquet: damaged")

    jobs = _jobs(3)
    jobs[1] = Job(jobs[1].key, damaged)
    rows = _run(tmp_path / "o.jsonl", jobs, FakeProgressBackend())
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert "damaged" in rows[1]["reasons"][0]


def test_a_dead_endpoint_ends_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    def down(number: int, request: Request) -> None:
        if number >= 2:
            raise RequestFailed("gone")

    backend = FakeProgressBackend(down)
    with pytest.raises(RequestFailed, match="8 failures in a row.*gone"):
        _run(tmp_path / "o.jsonl", _jobs(50), backend, workers=1)
    assert len(backend.requests) <= 12
    statuses = [json.loads(line)["status"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert statuses.count("ok") == 2


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path) -> None:
    def refused(number: int, request: Request) -> None:
        raise ConfigError("key refused")

    backend = FakeProgressBackend(refused)
    with pytest.raises(ConfigError, match="key refused"):
        _run(tmp_path / "o.jsonl", _jobs(50), backend, workers=1)
    assert len(backend.requests) == 1


def test_clips_are_asked_about_at_once_but_not_more_than_workers(tmp_path: Path) -> None:
    lock, state = threading.Lock(), {"open": 0, "most": 0}

    def slow(number: int, request: Request) -> None:
        with lock:
            state["open"] += 1
            state["most"] = max(state["most"], state["open"])
        time.sleep(0.02)
        with lock:
            state["open"] -= 1

    _run(tmp_path / "o.jsonl", _jobs(12), FakeProgressBackend(slow), workers=3)
    assert 2 <= state["most"] <= 3


def _row(variant: str, voc: float | None, status: str, final: float | None, shuffles: list[str]) -> Row:
    tokens = {"input": 1000, "output": 100, "answers": 1, "cached": 0, "unknown": 0}
    return {
        "variant": variant,
        "voc": voc,
        "status": status,
        "final": final,
        "shuffles": [{"status": s} for s in shuffles],
        "tokens": tokens,
    }


def test_summary_by_hand() -> None:
    rows = [
        _row(REAL, 0.8, "ok", 0.9, ["ok", "ok"]),
        _row(REAL, 0.4, "partial", 0.5, ["ok", "malformed"]),
        _row(REAL, None, "malformed", None, ["malformed", "malformed"]),
        _row(REAL, None, "ok", 0.1, ["ok", "ok"]),  # constant
        _row(REAL, None, "failed", None, ["failed", "failed"]),
        _row("blank", None, "ok", 0.0, ["ok", "ok"]),
    ]
    found = summarise(rows, Prices(2.0, 10.0))
    real = found["variants"][REAL]
    assert real["mean_voc"] == pytest.approx(0.6)
    assert real["mean_voc_malformed_minus_one"] == pytest.approx(0.2 / 3)
    assert real["mean_voc_rest_zero"] == pytest.approx(1.2 / 4)
    assert real["mean_final"] == pytest.approx(0.5) and real["parse_rate"] == pytest.approx(5 / 8)
    counted = [real[name] for name in ("clips", "undefined", "malformed", "failed")]
    assert counted == [5, 1, 1, 1]
    assert found["variants"]["blank"]["mean_voc"] is None and list(found["variants"]) == [REAL, "blank"]
    assert found["cost"] == pytest.approx((6000 * 2 + 600 * 10) / 1e6)
    assert "blank" in table(found) and "undefined" in table(found)
    assert np.isfinite(found["cost"])
