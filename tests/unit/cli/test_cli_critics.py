"""`valueguide critics` on the shipped critic: what is refused, what is forced, what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from valueguide.cli.common import shipped
from valueguide.cli.main import main
from valueguide.critics.checkpoint import LoadedCritic, save_critic
from valueguide.critics.config import TrainConfig
from valueguide.critics.warm_start import trainer_from
from valueguide.online import checks
from valueguide.online.probe import PROBE
from valueguide.online.replay import ReplayWriter
from valueguide.online.segments import Segment
from valueguide.online.versions import CriticVersions

CRITIC = Path(shipped("wxai-state", "critic"))


def segment(number: int, task: str) -> Segment:
    """A finished rollout of 12 random steps for the shipped critic."""
    rng = np.random.default_rng(number)
    steps = 12
    return Segment(
        state=rng.normal(scale=0.1, size=(steps + 1, 6)).astype(np.float32),
        environment_state=rng.normal(scale=0.1, size=(steps + 1, 51)).astype(np.float32),
        action=rng.normal(scale=0.01, size=(steps, 5)).astype(np.float32),
        chunk_id=np.arange(steps) // 4,
        chunk_step=np.arange(steps) % 4,
        planned=rng.normal(scale=0.3, size=(3, 4, 5)).astype(np.float32),
        planned_start=np.array([0, 4, 8]),
        source="policy",
        end="success" if number % 2 else "failure",
        store="rollout",
        task=task,
        episode=f"day1:{number}",
        episode_steps=steps,
        episode_success=bool(number % 2),
        episode_terminated=True,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two replays, and versions 1 and 2 (shipped), and 3, which says 0 whatever it is asked."""
    root = tmp_path_factory.mktemp("critics")
    loaded = LoadedCritic(CRITIC)
    for name, first in (("old", 0), ("new", 100)):
        with ReplayWriter(root / name) as writer:
            for number in range(first, first + 12):
                writer.append(segment(number, loaded.instructions[number % 4]))
    versions = CriticVersions(root / "versions")
    versions.publish(CRITIC)
    versions.publish(CRITIC)
    trainer = trainer_from(loaded, TrainConfig("aloe", 0.98))
    with torch.no_grad():
        for weights in trainer.target.parameters():
            weights.zero_()
    with versions.draft() as draft:
        save_critic(draft, trainer, loaded.instructions, {"gamma": 0.98})
        versions.publish(draft)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """A copy for one test; what it changes is not seen by others."""
    shutil.copytree(published, tmp_path / "r")
    return tmp_path / "r"


def critics(root: Path, what: str, *arguments: str) -> int:
    device = ["--device", "cpu"] if what in ("check", "promote") else []
    with pytest.raises(SystemExit) as stop:
        main(["critics", what, str(root / "versions"), *arguments, *device])
    return int(stop.value.code or 0)


def result(root: Path, what: str, *arguments: str) -> dict[str, Any]:
    assert critics(root, what, *arguments, "--json", str(root / "result.json")) == 0
    return json.loads((root / "result.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], root: Path, what: str, *arguments: str) -> str:
    capsys.readouterr()
    assert critics(root, what, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def started(root: Path) -> None:
    """The probe is stored and version 1 serves."""
    result(root, "check", "1", "--probe-from", str(root / "old"))
    result(root, "promote", "1", "--force", "--reason", "the shipped one")


def test_a_version_is_checked_promoted_and_rolled_back(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(root)
    report = result(root, "check", "2", "--held-out", str(root / "new"))
    assert report["passed"] and report["number"] == 2
    names = [check["name"] for check in report["checks"]]
    assert "held_out rank" in names and "probe rank" in names and "abstention" in names
    state = result(root, "promote", "2", "--reason", "as good")
    assert (state["serving"], state["earlier"]) == (2, [1])
    assert result(root, "shadow", "3")["shadow"] == 3
    listed = result(root, "list")
    assert [(row["number"], row["role"]) for row in listed["versions"]] == [
        (1, "previous"),
        (2, "serving"),
        (3, "shadow"),
    ]
    assert result(root, "shadow", "--off")["shadow"] is None
    state = result(root, "rollback", "--reason", "it shakes")
    assert state["serving"] == 1 and state["history"][-1]["reason"] == "it shakes"
    capsys.readouterr()
    result(root, "list")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["number", "version", "step", "published", "role", "check"]
    assert shown[2].split()[0] == "2" and shown[2].split()[-2:] == ["withdrawn", "passed"]
    assert shown[3].split()[0] == "3" and shown[3].split()[-1] == "-"
    assert "promote by force to 1 from none: the shipped one" in shown[4]
    assert "rollback to 1 from 2: it shakes" in shown[6]


def test_a_version_that_fails_is_refused_unless_forced_with_a_reason(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(root)
    capsys.readouterr()
    report = result(root, "check", "3")
    shown = capsys.readouterr().out
    assert not report["passed"] and "FAILED  action std: expected at least" in shown
    assert shown.splitlines()[-1].endswith(" failed")
    line = refusal(capsys, root, "promote", "3")
    assert line.startswith("error: version 3: it failed its check: ") and "action std: expected" in line
    assert line.endswith("--force with --reason promotes it all the same")
    line = refusal(capsys, root, "promote", "3", "--force")
    assert line == "error: promote --force: --reason: expected one for the history, found none"
    assert result(root, "list")["serving"] == 1
    state = result(root, "promote", "3", "--force", "--reason", "for a demonstration")
    assert state["serving"] == 3 and state["history"][-1]["forced"]


def test_a_kept_report_serves_only_what_it_is_about(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(root)
    result(root, "check", "2")
    reviews: list[int] = []
    review = checks.review

    def counted(versions: CriticVersions, number: int, *rest: Any) -> checks.CheckReport:
        reviews.append(number)
        return review(versions, number, *rest)

    monkeypatch.setattr(checks, "review", counted)
    result(root, "promote", "2")
    assert reviews == []  # checked a moment ago
    result(root, "rollback")
    result(root, "promote", "2", "--force", "--reason", "again")
    result(root, "promote", "1")  # checked when nothing served
    assert reviews == [1]
    result(root, "check", "2", "--limit", "rank_drop=0.3")
    result(root, "promote", "2")  # checked with looser limits
    assert reviews == [1, 2, 2]
    result(root, "check", "1")
    result(root, "promote", "1", "--held-out", str(root / "new"))
    assert reviews == [1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("promote", ["1"], "probe: expected a stored one or --probe-from, found neither"),
        ("check", ["9"], "version 9: expected a published one, found 1, 2, 3"),
        ("check", ["1", "--limit", "speed=1"], "--limit: name: expected rank_drop, min_rank"),
        ("check", ["1", "--limit", "rank_drop=x"], "--limit rank_drop: value: expected a number, found 'x'"),
        ("check", ["1", "--limit", "rank_drop=-1"], "check limits: rank_drop: expected a finite number >= 0"),
        (
            "check",
            ["1", "--probe-from", "nowhere"],
            "nowhere: folder: expected a replay or a LeRobotDataset v3",
        ),
        ("shadow", ["1", "--off"], "shadow: version: expected N or --off, found 1 and --off"),
        ("rollback", [], "no earlier version to roll back to from None"),
    ],
)
def test_what_does_not_fit_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], what: str, arguments: list[str], message: str
) -> None:
    if "--limit" in arguments:
        result(root, "check", "1", "--probe-from", str(root / "old"))
    assert message in refusal(capsys, root, what, *arguments)
    assert CriticVersions(root / "versions").state().history == ()


def test_the_probe_is_stored_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result(root, "check", "--probe-from", str(root / "old"), "--states", "10", "--k", "3")
    kept = (root / "versions" / PROBE).read_bytes()
    line = refusal(capsys, root, "check", "1", "--probe-from", str(root / "new"))
    assert "Versions are comparable only on the same; remove the file to begin anew" in line
    assert (root / "versions" / PROBE).read_bytes() == kept


def test_a_folder_without_versions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "folder: expected critic versions, found none" in refusal(capsys, tmp_path, "list")
    (tmp_path / "versions").mkdir()
    assert "versions: expected 1 or more, found none" in refusal(capsys, tmp_path, "shadow")


def test_a_damaged_report_is_listed_as_such(root: Path) -> None:
    versions = CriticVersions(root / "versions")
    versions.save_report(1, {"format": 7})
    assert "format: expected 1, found 7" in result(root, "list")["versions"][0]["check"]
