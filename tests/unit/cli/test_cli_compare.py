"""`valueguide compare` on evaluations written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli.main import main

Write = Callable[..., Path]


@pytest.fixture
def evaluation(tmp_path: Path) -> Write:
    def write(name: str, outcomes: dict[str, str], seed: int = 5, end: str = "") -> Path:
        """outcomes: task -> "+-+", a sign for each episode. Of the other arm, every episode succeeds."""
        folder = tmp_path / name
        folder.mkdir()
        plan = {"suite": "wxai-state", "seed": seed, "wording": "train", "visuals": "train"}
        (folder / "plan.json").write_text(json.dumps(plan))
        rows = [
            {"arm": arm, "task": task, "episode": i, "success": arm == "guided" or sign == "+"}
            for task, signs in outcomes.items()
            for i, sign in enumerate(signs)
            for arm in ("base", "guided")
        ]
        (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
        return folder

    return write


def _compare(*runs: str, arm: str = "base") -> int:
    with pytest.raises(SystemExit) as stop:
        main(
            ["compare", *(part for run in runs for part in ("--run", run)), "--arm", arm, "--json", "c.json"]
        )
    return int(stop.value.code or 0)


def test_means_over_tasks_and_training_seeds_by_hand(
    evaluation: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    a = evaluation("a", {"lift": "++--", "push": "++"})
    first = evaluation("b0", {"lift": "+---", "push": "--"}, end='{"half a li')
    second = evaluation("b1", {"lift": "----", "push": "+-"})
    assert _compare(f"best={a}", f"all={first}", f"all={second}") == 0
    found: dict[str, Any] = json.loads((tmp_path / "c.json").read_text())
    assert found["final"]["best"]["mean"] == 0.75  # of 1/2 and 1, whatever their numbers of episodes
    assert found["final"]["all"]["seeds"] == [0.125, 0.25] and found["final"]["all"]["n"] == 12
    # Lift: best 2/4 against (1/2 + 0 + 0 + 0) / 4; push: 1 against (1/2 + 0) / 2.
    pair = found["paired"]["best - all"]
    assert pair["delta"] == pytest.approx(((0.5 - 0.125) + (1 - 0.25)) / 2) and pair["n"] == 6
    assert pair["ci95"][0] <= pair["delta"] <= pair["ci95"][1]
    assert "best - all" in capsys.readouterr().out
    assert _compare(f"best={a}", f"all={first}", arm="guided") == 0
    assert json.loads((tmp_path / "c.json").read_text())["paired"]["best - all"]["delta"] == 0


@pytest.mark.parametrize(
    "other, arm, words",
    [
        ({"seed": 6}, "base", ("seed", "5 as in the first", "found 6")),
        ({"outcomes": {"pull": "+"}}, "base", ("episodes of a and b", "in common")),
        ({}, "medoid", ("--arm", "base, guided", "medoid")),
    ],
)
def test_what_does_not_compare_is_refused(
    evaluation: Write,
    capsys: pytest.CaptureFixture[str],
    other: dict[str, Any],
    arm: str,
    words: tuple[str, ...],
) -> None:
    a = evaluation("a", {"lift": "+-"})
    b = evaluation("b", **{"outcomes": {"lift": "+-"}, **other})
    assert _compare(f"a={a}", f"b={b}", arm=arm) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words) and len(told.splitlines()) == 1


@pytest.mark.parametrize("run", ["here", "=x", "x=", "x=/nowhere"])
def test_what_is_no_evaluation_is_refused(capsys: pytest.CaptureFixture[str], run: str) -> None:
    assert _compare(run) == 2
    assert "expected" in capsys.readouterr().err
