"""`valueguide progress train`, and what a dataset with several wordings of each task needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from valueguide.cli.main import main
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.types import Episode, Observation, Step

WORDINGS = (("push", "push it"), ("push", "shove it"), ("pull", "pull it"), ("pull", "tug it"))


def _observation(level: int, task: str) -> Observation:
    return Observation({"front": np.full((16, 16, 3), level, np.uint8)}, np.zeros(1, np.float32), task)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wordings") / "data"
    spec = DatasetSpec(fps=10, cameras={"front": (16, 16)}, state=("x",), action=("dx",))
    with EpisodeWriter(root, spec) as writer:
        for name, task in WORDINGS:
            steps = [Step(_observation(50 * i, task), np.zeros(1, np.float32)) for i in range(4)]
            facts = {"task_name": name, "progress": [0.0, 0.25, 0.5, 0.75, 1.0]}
            writer.save(Episode(steps, _observation(200, task), task, facts))
    return root


def _main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["progress", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_another_wording_is_no_wrong_instruction(dataset: Path) -> None:
    import argparse

    from valueguide.cli.progress_setup import _other_task
    from valueguide.data.reader import EpisodeDataset

    opened = EpisodeDataset.open(dataset)
    args = argparse.Namespace(wrong_instruction="")
    found = [_other_task(args, opened, task) for _, task in WORDINGS]
    assert found == ["pull it", "pull it", "push it", "push it"]


@pytest.mark.slow
def test_a_model_is_trained_and_answers(dataset: Path, tmp_path: Path) -> None:
    few = ["--sight-steps", 2, "--read-steps", 1, "--steps", 2]
    options = [*few, "--batch-size", 2, "--frames", "3-4", "--tower", "none"]
    out = ["--out", tmp_path / "model", "--json", tmp_path / "o.json"]
    assert _main("train", "--dataset", dataset, *options, *out) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["episodes"] == {"taught": 3, "held_out": 1}
    assert 0 <= result["quality"]["parse_rate"] <= 1
    asked = ["--frames", 4, "--shuffles", 1, "--reasks", 0, "--max-tokens", 8, "--device", "cpu"]
    kept = ["--cache", tmp_path / "cache", "--out", tmp_path / "o.jsonl", "--parquet", ""]
    assert _main("score", "--dataset", dataset, "--model", tmp_path / "model", *asked, *kept) == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 4 * 5


@pytest.mark.parametrize(
    "options, words",
    [
        (["--frames", "9"], "fewest-most"),
        (["--frames", "5-4"], "fewest-most"),
        (["--read-steps", "1"], "fewer than --steps 1"),
        (["--read-steps", "-1"], "0 or more"),
        (["--camera", "top"], "one of"),
        (["--related", "push,pull"], "unrelated"),
        (["--tower", "absent"], "expected a critic folder"),
    ],
)
def test_wrong_options_are_said_in_one_line(
    options: list[str], words: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--tower", "none"] if "--tower" not in options else []
    steps = ["--sight-steps", 1, "--read-steps", 0, "--steps", 1, "--frames", "3-4"]
    assert _main("train", "--dataset", dataset, "--out", tmp_path / "m", *steps, *fixed, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and words in error
