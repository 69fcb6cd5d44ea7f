"""The figures of a counterfactual replay, worked out by hand, and the page that shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.cli.replay import table
from valueguide.evaluation.counterfactual import Log, LoggedDecision
from valueguide.evaluation.counterfactual_report import write_counterfactual_report
from valueguide.evaluation.counterfactual_results import CAVEAT, LOGGED, build_results
from valueguide.evaluation.statistics import wilson
from valueguide.types import Decision, Scores

_SETTINGS = {"dataset": "runs/<day>", "beta": 0.0, "aggregate": "min", "command": "valueguide replay"}
# (episode, the logged values, the index that ran, what the log's critic preferred, realised return)
_ROWS: list[tuple[int, list[float], int, int, float]] = [
    (0, [-9.0, -5.0, -7.0], 1, 1, -5.0),
    (0, [-4.0, -2.0, -3.0], 1, 1, -2.0),
    (1, [-30.0, -40.0, -20.0], 2, 2, -50.0),
    (1, [-30.0, -20.0, -40.0], 1, 1, -50.0),
    (2, [-6.0, -8.0, -7.0], 0, 0, -6.0),
    (3, [-25.0, -35.0, -45.0], 0, 0, -50.0),
    (4, [-1.0, -2.0, -3.0], 2, 0, -1.0),  # shadow: the preferred one did not run; then a human drove
]
_TASKS = ["a_b", "a_b", "c", "c", "c"]
_OUTCOMES = ["success", "failure", "success", "failure", "helped"]


def _decision(
    values: Sequence[float] | None, index: int, preferred: int = -1, reason: str = "argmax"
) -> Decision:
    if values is None:
        return Decision(index, "no_critic")
    row = np.array(values, np.float32)
    return Decision(index, reason, preferred, row, Scores(row[None]))


def _log(rows: Sequence[tuple[int, list[float], int, int, float]] = _ROWS) -> Log:
    entries = [
        LoggedDecision(episode, 0, np.zeros((3, 2, 1), np.float32), _decision(values, ran, preferred), "v1")
        for episode, values, ran, preferred, _ in rows
    ]
    return Log(entries, 2, _TASKS, _OUTCOMES, np.array([row[4] for row in rows]), {"no decision": 2})


def _best(rows: Sequence[Sequence[float] | None]) -> list[Decision]:
    return [_decision(v, 0 if v is None else int(np.argmax(v))) for v in rows]


#: Reverses the candidates' order in the first two decisions, agrees in the others.
_NEW = [[-1.0, -5.0, -3.0], [-2.0, -4.0, -3.0], *(row[1] for row in _ROWS[2:])]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valueguide.evaluation.resample._DRAWS", 50)


@pytest.fixture
def results() -> dict[str, Any]:
    logged = [entry.decision for entry in _log().decisions]
    made = {"new": _best(_NEW), LOGGED: _best([d.values.tolist() for d in logged if d.values is not None])}
    return build_results(_SETTINGS, _log(), made, {"new": "v2"})


def test_changes_are_counted_by_task_and_outcome(results: dict[str, Any]) -> None:
    changed = results["critics"]["new"]["changed"]
    low, high = wilson(3, 7)
    assert changed["all"] == {"n": 7, "successes": 3, "rate": 3 / 7, "wilson95": [low, high]}
    counts = {task: (cell["successes"], cell["n"]) for task, cell in changed["tasks"].items()}
    assert counts == {"a_b": (2, 4), "c": (1, 3)}
    counts = {kind: (cell["successes"], cell["n"]) for kind, cell in changed["outcomes"].items()}
    assert counts == {"success": (2, 3), "failure": (0, 3), "helped": (1, 1)}
    # Episode 0 changes at once; episode 4 too; the four decisions of the others stay on the path.
    assert changed["on_path"] == {"decisions": 6, "n": 7}
    # The shadow decision ran another one than was preferred; against the preference nothing changed there.
    against = results["critics"]["new"]["against_logged_critic"]
    assert (against["successes"], against["n"]) == (2, 7)
    assert results["critics"][LOGGED]["against_logged_critic"]["successes"] == 0
    assert results["critics"][LOGGED]["changed"]["all"]["successes"] == 1


def test_regret_is_what_the_new_critic_would_have_gained(results: dict[str, Any]) -> None:
    new = results["critics"]["new"]
    # Episode 0: -1 - -5 = 4, then -2 - -4 = 2; episode 4: -1 - -3 = 2; none elsewhere.
    assert new["regret"]["value"] == pytest.approx(8 / 7)
    assert [(row["episode"], row["changed"], row["first_change"]) for row in new["episodes"]] == [
        (0, 2, 0),
        (4, 1, 0),
        (1, 0, None),
        (2, 0, None),
        (3, 0, None),
    ]
    assert new["episodes"][0] == {
        "episode": 0, "task": "a_b", "outcome": "success", "decisions": 2, "changed": 2, "first_change": 0,
        "regret": 3.0,
    }  # fmt: skip


def test_values_are_those_of_what_ran_in_episodes_without_a_human(results: dict[str, Any]) -> None:
    outcome = results["critics"][LOGGED]["outcome"]
    # First values: successes -5 and -6, failures -20 and -25.
    assert outcome["auc"]["value"] == 1.0 and outcome["auc"]["episodes"] == 4
    assert outcome["mean_value"]["success"]["value"] == pytest.approx((-3.5 - 6) / 2)
    assert outcome["mean_value"]["failure"]["value"] == pytest.approx((-20 - 25) / 2)
    assert outcome["mean_value"]["difference"]["value"] == pytest.approx(17.75)
    # Values -5 -2 -20 -20 -6 -25 against returns -5 -2 -50 -50 -6 -50: ranks 5 6 2.5 2.5 4 1 and 5 6 2 2 4 2.
    assert outcome["spearman"]["value"] == pytest.approx(
        np.corrcoef([5, 6, 2.5, 2.5, 4, 1], [5, 6, 2, 2, 4, 2])[0, 1]
    )
    assert outcome["auc_within_tasks"]["tasks"] == {"a_b": 1.0, "c": 1.0}
    assert results["critics"][LOGGED]["first_values"] == {
        "success": [-5.0, -6.0], "failure": [-20.0, -25.0], "helped": [-3.0],
    }  # fmt: skip
    # The new critic holds the executed one of the first success for as good as before, the second for worse.
    versus = results["versus_logged"]
    assert set(versus) == {"new"} and versus["new"]["auc"]["value"] == 0.0
    new = results["critics"]["new"]["outcome"]["spearman"]["value"]
    assert versus["new"]["spearman"]["value"] == pytest.approx(new - outcome["spearman"]["value"])


def test_agreement_is_the_rank_correlation_of_one_decision(results: dict[str, Any]) -> None:
    agreement = results["critics"]["new"]["agreement"]
    # Two decisions reversed, five the same.
    assert agreement["value"] == pytest.approx((2 * -1 + 5 * 1) / 7) and agreement["decisions"] == 7
    assert results["critics"][LOGGED]["agreement"]["value"] == 1.0
    assert results["between"] == {}


def test_the_same_version_is_held_against_its_own_log() -> None:
    log = _log()
    rows = [np.array(row[1]) for row in _ROWS]
    rows[3] = rows[3] + 0.25
    found = build_results(_SETTINGS, log, {"again": _best(rows)}, {"again": "v1"})  # type: ignore[arg-type]
    assert found["critics"]["again"]["same_version"] == {"decisions": 7, "largest_difference": 0.25}
    other = build_results(_SETTINGS, log, {"again": _best(rows)}, {"again": "v9"})  # type: ignore[arg-type]
    assert other["critics"]["again"]["same_version"] is None and other["versus_logged"] == {}


def test_two_critics_are_compared_with_each_other() -> None:
    made = {"x": _best(_NEW), "y": _best([row[1] for row in _ROWS])}
    between = build_results(_SETTINGS, _log(), made, {})["between"]["x_vs_y"]
    assert (between["same"]["successes"], between["same"]["n"]) == (5, 7)
    assert between["rank"]["value"] == pytest.approx(3 / 7)


def test_scores_that_are_no_numbers_do_not_count() -> None:
    rows: list[Any] = [row[1] for row in _ROWS]
    rows[0], rows[1] = [float("nan"), -1.0, -1.0], None
    critic = build_results(_SETTINGS, _log(), {"new": _best(rows)}, {})["critics"]["new"]
    assert critic["rated"] == critic["changed"]["all"]["n"] == 5
    assert critic["reasons"] == {"argmax": 6, "no_critic": 1}
    assert {row["episode"] for row in critic["episodes"]} == {1, 2, 3, 4}
    assert critic["outcome"]["auc"]["episodes"] == 3


def test_critics_are_held_against_each_other_over_the_same_decisions() -> None:
    rows: list[Any] = [row[1] for row in _ROWS]
    made = {"new": _best(rows), LOGGED: _best([None, *rows[1:]])}
    versus = build_results(_SETTINGS, _log(), made, {})["versus_logged"]["new"]
    assert versus["spearman"]["value"] == 0.0 and versus["auc"] == {
        "value": 0.0,
        "ci95": [0.0, 0.0],
        "episodes": 4,
    }


def test_the_results_are_json_and_say_what_they_cannot_tell(results: dict[str, Any]) -> None:
    json.dumps(results, allow_nan=False)
    assert results["caveat"] == CAVEAT and "off the path" in CAVEAT
    assert results["log"] == {
        "episodes": 5, "decisions": 7, "tasks": {"a_b": 2, "c": 3},
        "outcomes": {"success": 2, "failure": 2, "helped": 1}, "episodes_with_decisions": 5, "k": [3, 3],
        "executed_length": 2, "reasons": {"argmax": 7}, "critic_versions": {"v1": 7},
        "skipped": {"no decision": 2},
    }  # fmt: skip


class _Balance(HTMLParser):
    """Fails on a tag that closes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in {"meta", "br", "path", "rect", "circle", "polygon", "polyline"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"meta", "br", "path", "rect", "circle", "polygon", "polyline"}:
            assert self.open.pop() == tag


def test_the_page_holds_the_figures_and_nothing_from_outside(tmp_path: Path, results: dict[str, Any]) -> None:
    results["critics"]["<new>"] = results["critics"].pop("new")
    results["versus_logged"]["<new>"] = results["versus_logged"].pop("new")
    results["critics"][LOGGED] = results["critics"].pop(LOGGED)
    write_counterfactual_report(tmp_path / "report.html", results, LOGGED)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;new&gt; would have chosen otherwise in 42.9% of 7 decisions" in text and "<new>" not in text
    for part in (
        CAVEAT,
        "runs/&lt;day&gt;",
        "42.9% <span>3/7</span>",
        "that a human helped",
        "6 <span>of 7</span>",
        "Episodes that changed most: &lt;new&gt;",
        "<td>3.000</td>",
        "argmax 7",
    ):
        assert part in text, part
    assert f"changed most: {LOGGED}" not in text
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script|<link', text)
    assert text.count("<circle") == 2 * 5  # an episode each, for both critics
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []


def test_a_page_of_the_log_alone_and_of_nothing(tmp_path: Path) -> None:
    alone = build_results(_SETTINGS | {"beta": 0.5}, _log(), {LOGGED: _best([row[1] for row in _ROWS])}, {})
    write_counterfactual_report(tmp_path / "a.html", alone, LOGGED)
    text = (tmp_path / "a.html").read_text()
    assert f"changed most: {LOGGED}" in text and "choices are drawn" in text
    nothing = build_results(_SETTINGS, _log(), {"none": _best([None] * 7)}, {})
    write_counterfactual_report(tmp_path / "b.html", nothing, LOGGED)
    assert "none scored nothing" in (tmp_path / "b.html").read_text()
    assert "undefined" in table(nothing)


def test_the_table_names_what_changed(results: dict[str, Any]) -> None:
    shown = table(results)
    assert shown.startswith(
        "7 decisions of 5 episodes (2 success, 2 failure, 1 helped)\nleft out: 2 replans with no"
    )
    assert re.search(r"changed, of all decisions +42\.9 % \(16 to 75\), 3/7", shown)
    assert re.search(r"auc, less the logged +\+0\.00", shown)
    assert re.search(r"\n +0  a_b +success +2 +2 +3\.000\n", shown)
    assert shown.endswith(CAVEAT)
