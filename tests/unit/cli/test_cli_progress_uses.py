"""`valueguide progress success` and `filter` after `score`, on recorded datasets and a server that sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.progress.columns import read_progress
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.types import Episode, Observation, Step

TASKS = ("push it", "pull it")
EACH = 12  # successes and failures of each task


def _levels(success: bool, number: int) -> list[int]:
    """Successes end bright. Failures rise as well, a third of them to the end: VOC alone is fooled."""
    top = 90 + number % 10 if success else 30 + number % 10
    return [0, top // 3, 2 * top // 3, top, top, top]


def _episode(levels: list[int], task: str, success: bool) -> Episode:
    seen = [
        Observation({"front": np.full((8, 8, 3), level, np.uint8)}, np.zeros(1, np.float32), task)
        for level in levels
    ]
    steps = [Step(o, np.zeros(1, np.float32)) for o in seen[:-1]]
    steps[-1].terminated, steps[-1].success = True, success
    return Episode(steps, seen[-1], task)


def _main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["progress", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset of 48 episodes, and its rows; the answer about episode 0 is unusable for good."""
    root = tmp_path_factory.mktemp("uses")
    spec = DatasetSpec(fps=10, cameras={"front": (8, 8)}, state=("x",), action=("dx",))
    with EpisodeWriter(root / "data", spec) as writer:
        for number in range(EACH):
            for task in TASKS:
                for success in (True, False):
                    writer.save(_episode(_levels(success, number), task, success))
    options = ["--frames", 4, "--shuffles", 1, "--control-episodes", 2, "--cache", "", "--reasks", 0]
    with FakeOpenAiServer(["", "length"]) as server:
        endpoint = ["--backend", "openai", "--url", server.url, "--model", "m", "--concurrency", 1]
        out = ["--out", root / "o.jsonl"]
        assert _main("score", "--dataset", root / "data", *endpoint, *options, *out) == 0
    return root / "data", root / "o.jsonl"


def test_success_is_calibrated_on_one_half_and_judged_on_the_other(
    scored: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "detector"
    assert _main("success", "--scores", scored[1], "--calibrate", scored[1], "--out", out, "--seed", 3) == 0
    found = json.loads((out / "success.json").read_text())
    judged = found["judged"]
    assert found["calibrated_on"]["episodes"] == 24 and judged["episodes"] == 24
    decided = judged["episodes"] - sum(judged["undecided"].values())
    for rule in ("final", "both"):
        accuracy = judged["rules"][rule]["accuracy"]
        assert (accuracy["count"], accuracy["of"]) == (decided, decided)
        assert judged["rules"][rule]["auc"]["value"] == 1.0
    paper = judged["rules"]["voc_paper"]  # every failure here rises too
    assert paper["recall"]["value"] == 1.0 and paper["false_alarms"]["value"] == 1.0
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2 and "Brier" in page and "AUC" in capsys.readouterr().out


def test_a_detector_is_used_on_others_and_says_nothing_of_what_it_cannot_see(
    scored: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main("success", "--scores", scored[1], "--calibrate", scored[1], "--out", tmp_path / "a") == 0
    detector = tmp_path / "a" / "detector.json"
    rows = [json.loads(line) for line in scored[1].read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "success": None}) + "\n" for row in rows))
    plan = json.loads(Path(f"{scored[1]}.plan.json").read_text())
    Path(f"{other}.plan.json").write_text(json.dumps({**plan, "dataset": "another"}))
    assert _main("success", "--scores", other, "--detector", detector, "--out", tmp_path / "b") == 0
    verdicts = [json.loads(line) for line in (tmp_path / "b" / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 4 * EACH and not (tmp_path / "b" / "report.html").exists()
    assert (verdicts[0]["verdict"], verdicts[0]["reason"]) == ("undecided", "malformed")
    said = [verdict["verdict"] for verdict in verdicts[1:]]
    assert said == ["failure", *["success", "failure"] * (2 * EACH - 1)]
    Path(f"{other}.plan.json").write_text(json.dumps({**plan, "frames": 9}))
    assert _main("success", "--scores", other, "--detector", detector, "--out", tmp_path / "c") == 2
    assert "other settings than the detector (frames)" in capsys.readouterr().err


def _report(out: Path) -> dict[str, Any]:
    return json.loads((out / "meta/valueguide/subset.json").read_text())


def test_the_better_half_and_a_control_of_the_same_size(
    scored: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = scored
    kept = ["--scores", rows, "--top", 0.5, "--per-task", "--out", tmp_path / "top"]
    assert _main("filter", "--dataset", data, *kept) == 0
    assert "recorded successes: 24 of 48 before, 23 of 24 now" in capsys.readouterr().out
    report = _report(tmp_path / "top")
    assert report["episodes"] == {"kept": 24, "dropped": 24} and report["frames"]["kept"] == 24 * 5
    assert report["dropped"][0]["reason"] == "malformed"
    assert report["dropped"][1]["reason"] == "final 0.300 is number 22, 12 of 24 are kept"
    source, new = EpisodeDataset.open(data), EpisodeDataset.open(tmp_path / "top")
    for entry in report["kept"]:
        episode = source.to_episode(entry["episode"])
        assert new.to_episode(entry["new_episode"]).final_observation.images["front"].tolist() == (
            episode.final_observation.images["front"].tolist()
        )
    old, carried = read_progress(source), read_progress(new)
    assert np.isnan(old.value[:5]).all() and len(carried.value) == 24 * 5
    first = report["kept"][0]["episode"]
    assert np.array_equal(carried.value[:5], old.value[5 * first : 5 * first + 5])
    control = ["--random", tmp_path / "top", "--per-task", "--seed", 1, "--out", tmp_path / "random"]
    assert _main("filter", "--dataset", data, *control) == 0
    drawn = _report(tmp_path / "random")
    assert [sum(e["task"] == task for e in drawn["kept"]) for task in TASKS] == [12, 12]
    assert {e["episode"] for e in drawn["kept"]} != {e["episode"] for e in report["kept"]}
    assert drawn["dropped"][0]["reason"] == "not drawn"


def test_above_and_detected_keep_what_they_say(scored: tuple[Path, Path], tmp_path: Path) -> None:
    data, rows = scored
    assert _main("success", "--scores", rows, "--calibrate", rows, "--out", tmp_path / "d") == 0
    detector = tmp_path / "d" / "detector.json"
    for name, rule in (("above", ["--above", 0.8]), ("detected", ["--detected", detector])):
        out = tmp_path / name
        assert _main("filter", "--dataset", data, "--scores", rows, *rule, "--out", out) == 0
        report = _report(out)
        assert [e["success"] for e in report["kept"]] == [True] * 23
        assert {e["reason"].split()[0] for e in report["dropped"]} == {
            "malformed", "final" if name == "above" else "failure:"
        }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["success", "--scores", "ROWS", "--calibrate", "ROWS", "--share", "1"], "--share"),
        (["success", "--scores", "ROWS", "--calibrate", "ROWS", "--rule", "hope"], "one of voc, final, both"),
        (["success", "--scores", "ROWS", "--calibrate", "ROWS", "--camera", "top"], "--camera"),
        (["success", "--scores", "NONE", "--calibrate", "ROWS"], "progress score"),
        (["success", "--scores", "ROWS", "--detector", "ROWS"], "JSON"),
        (["success", "--scores", "ROWS", "--calibrate", "ROWS", "--share", "0.1"], "5 or more of each"),
        (["filter", "--dataset", "DATA", "--top", "0.5"], "--scores"),
        (["filter", "--dataset", "DATA", "--scores", "ROWS", "--top", "1.5"], "share"),
        (["filter", "--dataset", "DATA", "--scores", "ROWS", "--above", "2"], "episodes to keep"),
        (["filter", "--dataset", "DATA", "--scores", "ROWS", "--above", "0", "--by", "luck"], "--by"),
        (["filter", "--dataset", "DATA", "--scores", "ROWS", "--above", "0", "--per-task"], "--per-task"),
        (["filter", "--dataset", "DATA", "--random", "NONE"], "a share, or the folder"),
    ],
)
def test_wrong_options_are_said_in_one_line(
    arguments: list[str],
    words: str,
    scored: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"DATA": scored[0], "ROWS": scored[1], "NONE": tmp_path / "none"}
    assert _main(*[known.get(a, a) for a in arguments], "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and words in error
    assert not (tmp_path / "out").exists()
