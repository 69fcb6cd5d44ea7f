"""Plans: the same initial states for every arm, and nothing that is finished runs twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluation_makers as makers
import pytest

from valueguide.errors import ConfigError
from valueguide.evaluation.arms import ArmSettings, sampling_seed
from valueguide.evaluation.results import build_results
from valueguide.evaluation.runner import Plan, run_plan
from valueguide.testing.fakes import FakeReachEnv

PLAN = Plan("fake", ("reach", "touch"), ("base", "guided"), 3, 100, ArmSettings("p", "c", k=16))
Row = dict[str, Any]


def _run(plan: Plan, out: Path, workers: int = 1, arms: Any = makers.FakeArms) -> tuple[list[Row], list[Row]]:
    """All rows, and those in the order in which they were reported."""
    seen: list[Row] = []
    rows = run_plan(plan, makers.fake_suite, out, workers, seen.append, arms)
    return rows, seen


def _lines(out: Path) -> int:
    return len((out / "episodes.jsonl").read_text().splitlines())


def _facts(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def test_one_row_per_job_in_the_order_of_the_plan(tmp_path: Path) -> None:
    rows, seen = _run(PLAN, tmp_path)
    assert [(r["arm"], r["task"], r["episode"]) for r in rows] == PLAN.jobs()
    assert len(seen) == len(rows) == 12
    assert {r["seed"] for r in rows if r["episode"] == 2} == {102}
    assert json.loads((tmp_path / "plan.json").read_text()) == PLAN.to_json()


def test_processes_change_nothing_but_the_times(tmp_path: Path) -> None:
    alone, _ = _run(PLAN, tmp_path / "one")
    together, _ = _run(PLAN, tmp_path / "two", workers=2)
    assert _facts(alone) == _facts(together)


def test_every_arm_starts_from_the_same_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[str, float]] = []
    reset = FakeReachEnv.reset

    def spy(self: FakeReachEnv, *, seed: int | None = None) -> Any:
        out = reset(self, seed=seed)
        starts.append((self.task, self._position))
        return out

    monkeypatch.setattr(FakeReachEnv, "reset", spy)
    _run(PLAN, tmp_path)
    for first, second in zip(starts[::2], starts[1::2], strict=True):  # base, then guided
        assert first == second
    assert len(set(starts)) == 6


def test_noise_differs_between_tasks_and_episodes_and_not_between_arms() -> None:
    tasks = ("reach", "touch")
    seeds = {sampling_seed(seed, task, tasks) for seed in (1, 2) for task in tasks}
    assert len(seeds) == 4
    assert sampling_seed(1, "touch", tasks) == sampling_seed(1, "touch", tasks)


def test_a_good_critic_wins_and_the_results_say_so(tmp_path: Path) -> None:
    rows, _ = _run(replace(PLAN, episodes=40), tmp_path)
    results = build_results({"k": 16}, rows)
    assert results["paired"]["base_vs_guided"]["ci95"][0] > 0
    json.dumps(results, allow_nan=False)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, _ = _run(PLAN, tmp_path / "whole")

    def stop(row: Row) -> None:
        if row["episode"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(PLAN, makers.fake_suite, tmp_path / "cut", 1, stop, makers.FakeArms)
    path = tmp_path / "cut" / "episodes.jsonl"
    finished = _lines(tmp_path / "cut")
    assert 0 < finished < 12
    path.write_text(path.read_text() + '{"arm": "ba')  # killed while writing
    rows, _ = _run(PLAN, tmp_path / "cut")
    assert _facts(rows) == _facts(whole)
    assert _lines(tmp_path / "cut") == 12


def test_more_episodes_extend_a_run_and_fewer_select_from_it(tmp_path: Path) -> None:
    first, _ = _run(PLAN, tmp_path)
    times = [r["total_s"] for r in first]
    longer, _ = _run(replace(PLAN, episodes=4), tmp_path)
    assert _lines(tmp_path) == 16
    assert [r["total_s"] for r in longer[:12]] == times  # read, not run again
    fewer, _ = _run(replace(PLAN, episodes=1, arms=("guided",)), tmp_path)
    assert [(r["arm"], r["task"]) for r in fewer] == [("guided", "reach"), ("guided", "touch")]
    assert _lines(tmp_path) == 16


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 7}, "seed"),
        ({"wording": "held_out"}, "wording"),
        ({"settings": ArmSettings("p", "c", k=4)}, "settings"),
    ],
)
def test_other_settings_need_another_folder(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    _run(replace(PLAN, episodes=1), tmp_path)
    before = (tmp_path / "episodes.jsonl").read_text()
    with pytest.raises(ConfigError, match=rf"other settings \({word}\).*another --out"):
        _run(replace(PLAN, **change), tmp_path)
    assert (tmp_path / "episodes.jsonl").read_text() == before
    _run(replace(PLAN, episodes=1), tmp_path)  # the plan on disk is still the old one


def test_another_device_continues_an_evaluation(tmp_path: Path) -> None:
    first, _ = _run(PLAN, tmp_path)
    plan = (tmp_path / "plan.json").read_text()
    again, _ = _run(replace(PLAN, settings=replace(PLAN.settings, device="cuda")), tmp_path)
    assert again == first and _lines(tmp_path) == 12  # read, not run again
    assert (tmp_path / "plan.json").read_text() == plan and "cuda" not in plan


def test_settings_that_never_gave_an_episode_bind_nobody(tmp_path: Path) -> None:
    def refuse(name: str) -> Any:
        raise ConfigError("suite: expected wording train, found held_out")

    with pytest.raises(ConfigError, match="wording"):
        run_plan(replace(PLAN, wording="held_out"), refuse, tmp_path, 1)
    rows, _ = _run(PLAN, tmp_path)  # the corrected command may use the same folder
    assert len(rows) == 12


def test_a_checkpoint_that_changed_under_a_run_is_noticed(tmp_path: Path) -> None:
    _run(replace(PLAN, episodes=1), tmp_path)
    with pytest.raises(ConfigError, match="'fake-policy'.*'retrained'.*another --out"):
        _run(PLAN, tmp_path, arms=makers.RetrainedArms)
    assert _lines(tmp_path) == 4
