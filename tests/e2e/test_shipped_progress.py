"""The small model that ships: the default, asked about new episodes by its own processor and `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valueguide.cli.main import main
from valueguide.vlm.small_vlm import verify_small_vlm


def _run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert not stop.value.code


def test_progress_of_a_success_and_of_missed_grasps(tmp_path: Path) -> None:
    collect = ["collect", "--suite", "wxai", "--workers", 1, "--out", tmp_path / "episodes"]
    tasks = ["--tasks", "pick_can,open_drawer", "--episodes", 1]
    _run(*collect, *tasks, "--skill", 1.0, "--seed", 90000)
    _run(*collect, *tasks, "--flaw", "grasp", "--seed", 90100)
    kept = ["--cache", tmp_path / "cache", "--out", tmp_path / "rows.jsonl", "--parquet", ""]
    _run("progress", "score", "--dataset", tmp_path / "episodes", "--shuffles", 1, "--device", "cpu", *kept)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 5 and all(row["parse_rate"] == 1.0 for row in rows)
    real = {(row["task_name"], row["kind"]): row for row in rows if row["variant"] == "real"}
    for task in ("pick_can", "open_drawer"):
        done, missed = real[task, "success"], real[task, "grasp"]
        assert done["final"] > 0.8 > 0.5 > missed["final"] and done["voc"] > 0.7
    still = [row for row in rows if row["variant"] in ("first_frame", "blank")]
    assert all(max(v for v in row["progress"] if v is not None) < 0.3 for row in still)
    turned = [row["voc"] for row in rows if row["variant"] == "reversed" and row["kind"] == "success"]
    assert max(turned) < -0.7


def test_the_shipped_model_is_whole() -> None:
    from valueguide.cli.common import shipped

    manifest = verify_small_vlm(Path(shipped("wxai", "progress")))
    assert manifest["facts"]["parameters"] < 4e6 and "simulation" in manifest["facts"]["what"]
