"""Episode rows to the results JSON."""

from __future__ import annotations

from typing import Any

import pytest

from valueguide.evaluation.results import build_results, format_table, worse_line


def _row(arm: str, task: str, episode: int, success: bool) -> dict[str, Any]:
    return {
        "arm": arm,
        "task": task,
        "episode": episode,
        "success": success,
        "any_time_success": success,
        "steps": 10,
        "policy_s": [0.010, 0.030],
        "critic_s": [0.001, 0.001],
        "total_s": [0.011, 0.031],
        "reasons": {"argmax": 2},
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    out = []
    for episode in range(12):
        for task in ("x", "y"):
            out.append(_row("base", task, episode, episode < 3))
            out.append(_row("guided", task, episode, episode < 3 or task == "x"))
            out.append(_row("guided@4", task, episode, episode < 6))
    return out


def test_rates_intervals_and_pairs(rows: list[dict[str, Any]]) -> None:
    results = build_results({"k": 16}, rows)
    base = results["arms"]["base"]
    assert base["tasks"]["x"] == {
        "n": 12,
        "successes": 3,
        "rate": 0.25,
        "wilson95": pytest.approx([0.089, 0.532], abs=1e-3),
    }
    assert base["mean"] == 0.25 and base["n"] == 24
    pair = results["paired"]["base_vs_guided"]
    assert pair["delta"] == pytest.approx(0.375) and pair["n"] == 24
    assert results["per_task"]["base_vs_guided"]["x"]["verdict"] == "better"
    assert results["per_task"]["base_vs_guided"]["y"]["verdict"] == "same"
    assert results["latency_ms"]["base"]["policy"]["p50"] == pytest.approx(20.0)
    assert results["reasons"]["guided"] == {"argmax": 48}
    # K = 1 is the policy alone, and the guided arm has the K of the settings.
    assert [(p["k"], p["mean"]) for p in results["k_sweep"]] == [(1, 0.25), (4, 0.5), (16, 0.625)]
    assert results["k_sweep"][1]["wilson95"] == results["arms"]["guided@4"]["wilson95"]
    assert "guided@4" not in "".join(results["paired"])


def test_the_table_names_everything(rows: list[dict[str, Any]]) -> None:
    text = format_table(build_results({}, rows))
    assert "base -> guided: +37.5 points" in text
    assert {"x", "y", "mean"} <= {line.split()[0] for line in text.splitlines() if line}


def test_tasks_that_got_worse_are_named(rows: list[dict[str, Any]]) -> None:
    assert worse_line(build_results({}, rows)) == "No task succeeds less often with guidance."
    for row in rows:
        if row["arm"] == "guided" and row["task"] == "y":
            row["success"] = row["episode"] < 1
    results = build_results({}, rows)
    assert worse_line(results) == "Less often with guidance: y (-17)."
    assert worse_line(results) in format_table(results)
    assert worse_line(build_results({}, [row for row in rows if row["arm"] == "base"])) == ""
