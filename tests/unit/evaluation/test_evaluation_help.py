"""What a detector would have been given is logged as it was; finished episodes are kept and continued."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluation_makers as makers
import numpy as np
import pytest

from valueguide.errors import ConfigError
from valueguide.evaluation.arms import ArmSettings, sampling_seed
from valueguide.evaluation.help import CALIBRATION, TEST, HelpPlan, labelled, watch_episodes
from valueguide.evaluation.rollout import rollout
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakeNanCritic, FakePolicy

PLAN = HelpPlan("fake", ("reach", "touch"), 2, 100, 200, ArmSettings("", "c", k=3))


def _watch(
    plan: HelpPlan, out: Path, workers: int = 1, arms: Any = makers.FakeArms
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    return watch_episodes(plan, makers.fake_suite, out, workers, seen.append, arms), seen


class NanArms(makers.FakeArms):
    def build(self, arm: str) -> Steerer:
        steerer = super().build(arm)
        return Steerer(steerer.policy, FakeNanCritic(), SteeringConfig(k=1, execute=4))


def test_both_sets_have_their_own_seeds_and_every_task(tmp_path: Path) -> None:
    rows, seen = _watch(PLAN, tmp_path)
    assert rows == seen
    assert [(row["set"], row["task"], row["seed"]) for row in rows[:4]] == [
        (CALIBRATION, "reach", 100),
        (TEST, "reach", 200),
        (CALIBRATION, "touch", 100),
        (TEST, "touch", 200),
    ]
    assert [row["seed"] for row in rows if row["set"] == TEST] == [200, 200, 201, 201]


def test_value_and_progress_are_those_at_the_decision(tmp_path: Path) -> None:
    rows, _ = _watch(PLAN, tmp_path)
    row = rows[3]
    env, lowest, progress = makers.fake_suite("fake").make("touch"), [], []
    steerer = Steerer(FakePolicy(noise=0.2), FakeCritic(), SteeringConfig(k=3, execute=4))

    def watch(observation: Any, candidates: Any, decision: Any) -> None:
        lowest.append(float(decision.scores.q[:, decision.index].min()))
        position, goal = observation.state
        progress.append(max(0.0, 1.0 - 2.0 * abs(float(position) - float(goal))))

    noise = sampling_seed(200, "touch", ("reach", "touch"))
    episode = rollout(env, steerer, 200, 20, sampling_seed=noise, watch=watch)
    assert row["value"] == lowest
    assert row["progress"] == pytest.approx(progress, abs=1e-6)
    assert row["at"] == [4 * i for i in range(len(lowest))]
    assert (row["steps"], row["success"]) == (len(episode.steps), episode.success)
    assert row["instruction"] == "touch the goal"


def test_a_value_that_is_not_finite_is_none(tmp_path: Path) -> None:
    rows, _ = _watch(replace(PLAN, episodes=1), tmp_path, arms=NanArms)
    assert all(value is None for row in rows for value in row["value"])
    assert all(np.isfinite(p) for row in rows for p in row["progress"])


def test_finished_episodes_are_kept_and_more_may_be_asked_for(tmp_path: Path) -> None:
    first, _ = _watch(PLAN, tmp_path)
    log = tmp_path / "episodes.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:5]) + lines[5][:20])  # killed in the middle of a line
    more, seen = _watch(replace(PLAN, episodes=3), tmp_path)
    assert seen[:5] == first[:5] and more[:8] == first and len(more) == 12
    assert len(log.read_text().splitlines()) == 12
    whole, _ = _watch(replace(PLAN, episodes=3), tmp_path / "anew", workers=2)
    assert whole == more


def test_another_plan_or_policy_is_refused(tmp_path: Path) -> None:
    _watch(PLAN, tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        _watch(replace(PLAN, test_seed=300), tmp_path)
    with pytest.raises(ConfigError, match="expected one policy and critic"):
        _watch(replace(PLAN, episodes=3), tmp_path, arms=makers.RetrainedArms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "help: episodes: expected 1 or more, found 0"),
        ({"test_seed": -1}, "help: test_seed"),
        ({"test_seed": 101}, "seeds: expected no seed in both sets"),
        ({"calibration_seed": 201}, "seeds: expected no seed in both sets"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAN, **changes)  # type: ignore[arg-type]
    replace(PLAN, test_seed=102)  # next to each other is apart


def test_episodes_are_labelled_by_set(tmp_path: Path) -> None:
    rows, _ = _watch(PLAN, tmp_path)
    known, unseen = labelled(rows, CALIBRATION), labelled(rows, TEST)
    assert len(known) == len(unseen) == 4
    assert [e.success for e in unseen] == [row["success"] for row in rows if row["set"] == TEST]
    assert json.loads((tmp_path / "plan.json").read_text())["settings"].get("device") is None
