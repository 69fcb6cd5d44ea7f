"""`valueguide bench link` for real: the shipped models behind `valueguide serve`, and the server killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]
pytest.importorskip("torch")


def _bench(folder: Path, *arguments: str) -> dict[str, Any]:
    target = folder / "link.json"
    options = ["--episodes", "1", "--tasks", "close_drawer", "--k", "2", "--out", str(folder / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "link", "--seed", "700", *options, *arguments, "--json", str(target)])
    assert stop.value.code == 0
    return dict(json.loads(target.read_text()))


def test_a_killed_server_leaves_the_arm_holding_and_the_episode_goes_on_or_ends_as_truncated(
    tmp_path: Path,
) -> None:
    # A busy machine may take minutes to start another server, and is slow to answer. Neither is tested.
    patient = ("--timeout-ms", "4000", "--lost-s", "240")
    found = _bench(tmp_path, "--conditions", "in_process,serve,killed", *patient)["conditions"]
    assert found["serve"]["same_actions"]["count"] == 1
    killed = found["killed"]
    assert killed["killed"] == killed["resumed"]["count"] == killed["held_in_time"]["count"] == 1


def test_without_another_server_the_episode_ends_as_truncated(tmp_path: Path) -> None:
    gone = _bench(tmp_path, "--conditions", "gone", "--timeout-ms", "4000", "--lost-s", "2")["conditions"][
        "gone"
    ]
    assert gone["killed"] == gone["truncated"] == 1 and gone["resumed"]["count"] == 0
    assert gone["held_in_time"]["count"] == 1
    row = json.loads((tmp_path / "out" / "episodes.jsonl").read_text())
    assert row["failure"] == "link_lost" and row["truncated"] and not row["success"]
