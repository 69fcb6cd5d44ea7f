"""`valueguide progress score` on a recorded dataset, against a server on a real socket."""

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
from valueguide.progress.columns import KINDS, read_progress
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.types import Episode, Observation, Step

LENGTHS = (5, 7, 6)
TASKS = ("push it", "pull it", "push it")


def _observation(level: int, task: str) -> Observation:
    image = np.full((16, 24, 3), level, np.uint8)
    return Observation({"front": image, "side": 100 - image}, np.zeros(1, np.float32), task)


def _episode(length: int, task: str, success: bool) -> Episode:
    """Brightness is the step times 10; the last one, after the last action, is the length times 10."""
    steps = [
        Step(
            _observation(10 * i, task),
            np.zeros(1, np.float32),
            success=success and i == length - 1,
            terminated=i == length - 1,
        )
        for i in range(length)
    ]
    return Episode(steps, _observation(10 * length, task), task)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("progress") / "data"
    spec = DatasetSpec(fps=10, cameras={"front": (16, 24), "side": (16, 24)}, state=("x",), action=("dx",))
    with EpisodeWriter(root, spec) as writer:
        for i, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
            writer.save(_episode(length, task, success=i != 2))
    return root


def _main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["progress", "score", *map(str, arguments)])
    return int(stop.value.code or 0)


def _options(server: FakeOpenAiServer, dataset: Path, tmp_path: Path) -> list[object]:
    return [
        "--dataset", dataset, "--backend", "openai", "--url", server.url, "--model", "m", "--frames", 4,
        "--shuffles", 2, "--cache", tmp_path / "cache", "--out", tmp_path / "o.jsonl", "--tries", 1,
        "--json", tmp_path / "o.json",
    ]  # fmt: skip


def _rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]


def _real(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(tmp_path) if row["variant"] == "real"]


def test_every_episode_gets_its_true_progress(dataset: Path, tmp_path: Path) -> None:
    with FakeOpenAiServer() as server:
        assert _main(*_options(server, dataset, tmp_path)) == 0
    rows = _real(tmp_path)
    assert [(row["episode"], row["camera"]) for row in rows] == [(i, "front") for i in range(3)]
    assert rows[0]["frames"] == [0, 2, 3, 5] and rows[0]["time_s"] == [0.0, 0.2, 0.3, 0.5]
    assert rows[0]["progress"] == [None, 0.2, 0.3, 0.5]
    assert [row["final"] for row in rows] == [0.5, 0.7, 0.6]
    assert [row["success"] for row in rows] == [True, True, False] and [row["task"] for row in rows] == list(
        TASKS
    )
    found = json.loads((tmp_path / "o.json").read_text())
    real = found["variants"]["real"]
    assert (real["mean_voc"], real["parse_rate"], real["clips"]) == (1.0, 1.0, 3)
    assert found["tokens"]["input"] + 100 * found["tokens"]["cached"] == 3 * 5 * 2 * 100
    assert found["settings"]["backend"]["schema"] == "ignored"


def test_a_second_run_asks_only_what_is_new(dataset: Path, tmp_path: Path) -> None:
    with FakeOpenAiServer() as server:
        options = _options(server, dataset, tmp_path)
        assert _main(*options, "--episodes", "0-1") == 0
        asked = len(server.bodies)
        assert _main(*options, "--episodes", "0-1") == 0
        assert len(server.bodies) == asked + 1  # the test of the schema
        assert _main(*options, "--camera", "front", "--camera", "side") == 0
        assert len(_rows(tmp_path)) == 2 * 3 * 5
        (tmp_path / "o.jsonl").unlink()
        asked = len(server.bodies)
        assert _main(*options) == 0 and len(server.bodies) == asked + 1  # all from the cache
        assert json.loads((tmp_path / "o.json").read_text())["tokens"]["cached"] == 3 * 5 * 2


def test_a_server_that_fails_leaves_rows_and_status_2(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAiServer(["", "500"]) as server:
        options = [*_options(server, dataset, tmp_path), "--concurrency", 1]
        assert _main(*options) == 2
        assert "1 of 15 clips without an answer" in capsys.readouterr().err
        assert [row["status"] for row in _real(tmp_path)] == ["failed", "ok", "ok"]
        assert np.isnan(read_progress(EpisodeDataset.open(dataset)).value[: LENGTHS[0]]).all()
        assert _main(*options) == 0
    assert [row["final"] for row in _real(tmp_path)] == [0.5, 0.7, 0.6]


def test_controls_and_examples(dataset: Path, tmp_path: Path) -> None:
    with FakeOpenAiServer() as server:
        options = [*_options(server, dataset, tmp_path), "--episodes", "0,2"]
        assert _main(*options, "--examples", dataset, "--example-episodes", "1") == 0
    vocs = {row["variant"]: row["voc"] for row in _rows(tmp_path) if row["episode"] == 0}
    assert vocs == {
        "real": 1.0,
        "first_frame": None,
        "blank": None,
        "wrong_instruction": 1.0,
        "reversed": -1.0,
    }
    wrong = next(row for row in _rows(tmp_path) if row["variant"] == "wrong_instruction")
    assert wrong["task"] == "pull it"
    texts = [part["text"] for part in server.bodies[1]["messages"][0]["content"] if part["type"] == "text"]
    shown = sorted(
        int(t.split(": ")[1].rstrip(".")) for t in texts if t.startswith("Task completion percentage")
    )
    assert shown == [0, 14, 29, 43, 57, 71, 86, 100]


def test_controls_of_a_seeded_sample_never_of_none(dataset: Path, tmp_path: Path) -> None:
    def controlled(seed: int) -> set[int]:
        (tmp_path / "o.jsonl").unlink(missing_ok=True)
        assert _main(*_options(server, dataset, tmp_path), "--control-episodes", 1, "--seed", seed) == 0
        rows = _rows(tmp_path)
        assert len(_real(tmp_path)) == 3 and len(rows) == 3 + 4
        return {row["episode"] for row in rows if row["variant"] != "real"}

    with FakeOpenAiServer() as server:
        assert controlled(0) == controlled(0) and len({min(controlled(seed)) for seed in range(6)}) > 1


def test_progress_of_every_frame_lies_in_the_dataset(dataset: Path, tmp_path: Path) -> None:
    """Four frames of each episode are asked about: 0 (declared), and by hand 2, 3 and 5 of episode 0."""
    with FakeOpenAiServer() as server:
        assert _main(*_options(server, dataset, tmp_path)) == 0
    found = read_progress(EpisodeDataset.open(dataset))
    # Brightness is linear in time, so what lies between two estimates does too.
    assert np.allclose(found.value, np.concatenate([np.arange(n) / 10 for n in LENGTHS]), atol=1e-6)
    assert [KINDS[kind] for kind in found.kind[: LENGTHS[0]]] == [
        "declared", "between", "estimated", "estimated", "between"
    ]  # fmt: skip
    assert np.allclose(found.before_s[:5], [0.0, 0.0, 0.2, 0.3, 0.3])
    assert np.allclose(found.after_s[:5], [0.0, 0.2, 0.2, 0.3, 0.5])


def test_a_local_model_end_to_end(dataset: Path, tmp_path: Path) -> None:
    """Real classes with random weights: probabilities for every frame, no text that counts as an answer."""
    from valueguide.testing.tiny_vlms import build_tiny_vlm

    model = build_tiny_vlm("smolvlm", tmp_path / "model")
    common = ["--dataset", dataset, "--model", model, "--frames", 4, "--episodes", 0, "--device", "cpu"]
    kept = ["--cache", tmp_path / "cache", "--json", tmp_path / "o.json"]
    assert _main(*common, *kept, "--backend", "topreward", "--out", tmp_path / "o.jsonl") == 0
    (row,) = _real(tmp_path)
    assert row["status"] == "ok" and row["progress"][0] is None
    assert np.allclose(np.exp(row["log_probability"][1:]), row["progress"][1:], atol=1e-4)
    text = ["--shuffles", 1, "--reasks", 0, "--max-tokens", 8, "--out", tmp_path / "o2.jsonl"]
    assert _main(*common, *kept, *text) == 0
    real = json.loads((tmp_path / "o.json").read_text())["variants"]["real"]
    assert (real["malformed"], real["parse_rate"], real["mean_voc"]) == (1, 0.0, None)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--camera", "top"], "one of"),
        (["--control-episodes", "-1"], "--control-episodes"),
        (["--parquet", "/proc/none/p.parquet"], "/proc/none"),
        (["--episodes", "9"], "--episodes"),
        (["--episodes", "2-1"], "--episodes"),
        (["--episodes", "a"], "0-9,12"),
        (["--frames", "1"], "2 or more"),
        (["--shuffles", "0"], "shuffles"),
        (["--answer", "xml"], "json or lines"),
        (["--fields", "[1]"], "JSON object"),
        (["--key-env", "VG_ABSENT"], "VG_ABSENT"),
        (["--url", "host"], "address"),
        (["--schema", "on"], "honoured"),
        (["--examples", "DATA", "--example-episodes", "1"], "others than"),
        (["--examples", "DATA", "--example-episodes", "2", "--episodes", "0"], "a success"),
        (["--example-video", "a.mp4"], "--example-task"),
    ],
)
def test_wrong_options_are_said_in_one_line(
    options: list[str], words: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(dataset) if option == "DATA" else option for option in options]
    with FakeOpenAiServer() as server:
        assert _main(*_options(server, dataset, tmp_path), *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and words in error
