"""Bad input: one clear line, exit status 2, nothing lost. Through the installed entry point's function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valueguide.cli.main import main
from valueguide.testing.tiny_models import make_tiny_policy


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("error:")]
    assert stop.value.code == 2
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "--suite", "kitchen"), ("--suite", "wxai", "'kitchen'")),
        (("eval", "--suite", "wxai-state", "--tasks", "fold_shirt"), ("--tasks", "'fold_shirt'", "pick_can")),
        (("eval", "--suite", "wxai-state", "--arms", "best"), ("--arms", "guided", "'best'")),
        (("eval", "--suite", "wxai-state", "--k", "0"), ("--k", "1 or more", "found 0")),
        (("eval", "--suite", "wxai-state", "--policy", "/nowhere/at/all"), ("/nowhere/at/all",)),
        (
            ("train", "policy", "--dataset", "/nowhere", "--backbone", "/nowhere", "--out", "x"),
            ("--backbone",),
        ),
        (("train", "critic", "--dataset", "/nowhere", "--out", "x"), ("/nowhere", "not found")),
        (("collect", "--out", "x", "--skill", "2"), ("--skill", "found 2")),
        (("collect", "--out", "x", "--episodes", "0"), ("--episodes", "found 0")),
        (("collect", "--out", "x", "--flaw", "sneeze"), ("--flaw", "release", "'sneeze'")),
        (("collect", "--out", "x", "--flaw", "release"), ("--flaw release", "--tasks", "press_button")),
        (("collect", "--out", "x", "--flaw", "grasp", "--policy", "p"), ("--flaw", "--policy", "found p")),
        (("bench", "link", "--conditions", "lossy"), ("--conditions", "delayed", "lossy")),
        (("bench", "link", "--delay-ms", "-1"), ("--delay-ms", "0 or more", "-1")),
        (("bench", "link", "--stretch", "0.5"), ("--stretch", "1 or more", "0.5")),
        (("bench", "link", "--tasks", "fold_shirt"), ("--tasks", "'fold_shirt'")),
        (("fly",), ("demo", "'fly'")),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    line = _fails(capsys, *arguments)
    for word in words:
        assert word in line


def test_a_policy_with_other_cameras_and_actions_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_tiny_policy("multi_task_dit", tmp_path / "parts").save(tmp_path / "policy")
    line = _fails(capsys, "eval", "--suite", "wxai", "--policy", str(tmp_path / "policy"), "--arms", "base")
    assert "action size" in line and "found 4" in line


def test_an_empty_dataset_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    line = _fails(capsys, "train", "critic", "--dataset", str(tmp_path), "--out", str(tmp_path / "critic"))
    assert str(tmp_path) in line


def test_json_may_stand_anywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "demos"
    target = tmp_path / "result.json"
    arguments = ["--suite", "wxai-state", "--tasks", "press_button", "--episodes", "2", "--workers", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["collect", *arguments, "--out", str(out), "--json", str(target), "--seed", "3"])
    assert stop.value.code == 0
    result = json.loads(target.read_text())
    assert result["recorded"] == 2 and 0 <= result["successes"]["press_button"] <= 2
