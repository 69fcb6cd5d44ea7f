"""Figures on detected success, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.evaluation.success import judge, reliability, roc
from valueguide.evaluation.success_report import format_success, write_success_report
from valueguide.progress.rows import kind_of
from valueguide.progress.success import Detector

DETECTOR = Detector("final", {"voc": 0.5, "final": 0.6, "both": 0.5}, (-3.0, 0.0, 6.0))


def _row(final: float | None, success: bool, voc: float | None = 1.0, task: str = "push") -> dict[str, Any]:
    status = "malformed" if final is None else "ok"
    return {"episode": 0, "voc": voc, "final": final, "status": status, "success": success, "task": task}


ROWS = [
    _row(0.9, True),
    _row(0.8, True),
    _row(0.4, True, task="pull"),
    _row(0.7, False, task="pull"),
    _row(0.1, False),
    _row(None, True, None),
    _row(None, False, None),
    _row(None, False, None),
]


def test_figures_by_hand() -> None:
    found = judge(DETECTOR, ROWS)
    assert (found["episodes"], found["successes"]) == (8, 4)
    assert found["undecided"] == {"successes": 1, "failures": 2}
    final = found["rules"]["final"]
    counts = {name: (final[name]["count"], final[name]["of"]) for name in ("accuracy", "accuracy_of_all")}
    assert counts == {"accuracy": (3, 5), "accuracy_of_all": (3, 8)}
    assert (final["precision"]["value"], final["recall"]["value"]) == (2 / 3, 2 / 3)
    assert final["false_alarms"]["value"] == 0.5
    assert final["auc"]["value"] == pytest.approx(5 / 6)  # of six pairs, only 0.4 against 0.7 is wrong
    low, high = final["auc"]["ci95"]
    assert low < 5 / 6 <= high
    voc = found["rules"]["voc_paper"]  # everything is called a success
    assert (voc["accuracy"]["count"], voc["false_alarms"]["value"], voc["auc"]["value"]) == (3, 1.0, 0.5)
    tasks = {name: (cell["count"], cell["of"]) for name, cell in found["tasks"].items()}
    assert tasks == {"push": (3, 3), "pull": (0, 2)}


def test_by_how_episodes_ended_by_hand() -> None:
    kinds = ["success", "success", "success", "drop", "drop", "success", "drop", "drop"]
    rows = [{**row, "kind": kind} for row, kind in zip(ROWS, kinds, strict=True)]
    rows[0]["voc"] = None  # undefined: counts for the final value only
    found = judge(DETECTOR, rows)["kinds"]
    assert list(found) == ["drop", "success"]
    assert (found["drop"]["episodes"], found["success"]["episodes"]) == (4, 4)
    called = {
        name: (cell["called_success"]["count"], cell["called_success"]["of"]) for name, cell in found.items()
    }
    assert called == {"drop": (1, 2), "success": (2, 3)}
    assert found["drop"]["final"]["value"] == pytest.approx(0.4)
    assert found["success"]["final"]["value"] == pytest.approx(0.7)
    assert found["success"]["voc"]["episodes"] == 2 and found["drop"]["accuracy"]["value"] == 0.5
    assert "50.0 % (9 to 91)" in format_success(judge(DETECTOR, rows)).splitlines()[-2]
    assert judge(DETECTOR, ROWS)["kinds"] == {}


@pytest.mark.parametrize(
    "facts, success, kind",
    [
        ({"flaws": ["grasp"]}, True, "success"),
        ({"flaws": ["grasp", "short"], "failure": "gave_up"}, False, "grasp+short"),
        ({"flaws": [], "failure": "gave_up"}, False, "gave_up"),
        ({}, False, "failure"),
    ],
)
def test_how_an_episode_ended(facts: dict[str, Any], success: bool, kind: str) -> None:
    assert kind_of(facts, success) == kind


def test_roc_by_hand() -> None:
    scores, label = np.array([0.9, 0.8, 0.4, 0.7, 0.1]), np.array([1, 1, 1, 0, 0], bool)
    points = [(x, y) for x, y, _ in roc(scores, label)]
    assert (
        np.allclose(points, [(0, 0), (0, 1 / 3), (0, 2 / 3), (0.5, 2 / 3), (0.5, 1), (1, 1)])
        and roc(scores, label)[3][2] == 0.7
    )
    assert roc(scores, np.ones(5, bool)) == []


def test_reliability_by_hand() -> None:
    """Bins 0.2 to 0.3 (0 of 1 at 0.2) and 0.9 to 1 (2 of 3 at 0.9, 0.95 and 1)."""
    found = reliability(np.array([0.2, 0.9, 0.95, 1.0]), np.array([0, 1, 1, 0], bool))
    assert [(cell["low"], cell["high"]) for cell in found["bins"]] == [(0.2, 0.3), (0.9, 1.0)]
    assert found["bins"][1]["mean"] == pytest.approx(0.95) and found["bins"][1]["rate"]["count"] == 2
    assert found["ece"] == pytest.approx((0.2 + abs(2 - 2.85)) / 4)
    assert found["brier"] == pytest.approx((0.04 + 0.01 + 0.0025 + 1.0) / 4)
    assert reliability(np.zeros(0), np.zeros(0, bool)) == {"brier": None, "ece": None, "bins": []}


def test_the_page_and_the_table(tmp_path: Path) -> None:
    judged = judge(DETECTOR, ROWS)
    text = format_success(judged)
    assert text.splitlines()[0] == "8 labelled episodes (4 successes, 4 failures), 3 undecided"
    assert "60.0 % (23 to 88)" in text and "0.833" in text
    results = {"judged": judged, "rule": "final", "settings": {"frames": 15}}
    write_success_report(tmp_path / "report.html", results)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and "pull" in page and "false alarms" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_nothing_decided_has_no_figures(tmp_path: Path) -> None:
    judged = judge(DETECTOR, [_row(None, True, None), _row(None, False, None)])
    assert judged["rules"]["both"]["accuracy"]["value"] is None and judged["rules"]["both"]["roc"] == []
    write_success_report(tmp_path / "r.html", {"judged": judged, "rule": "both", "settings": {}})
    cells = format_success(judged).splitlines()[-1].split()  # of all, none is right
    assert cells[2:5] == ["-", "0.0", "%"] and cells[-3:] == ["-"] * 3
