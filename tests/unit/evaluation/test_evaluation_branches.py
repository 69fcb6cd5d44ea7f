"""Every candidate of a state is run from that very state; finished states are kept and serve any critic."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluation_makers as makers
import numpy as np
import pytest

from valueguide.errors import CheckpointError, ConfigError
from valueguide.evaluation.arms import sampling_seed
from valueguide.evaluation.branches import BranchPlan, BranchPoint, BranchWorker, measure, score
from valueguide.testing.fakes import FakeCritic, FakeReachEnv
from valueguide.types import Candidates, Observation

PLAN = BranchPlan("fake", "p1", ("reach", "touch"), states=6, k=5, rollouts=2, seed=100, gamma=0.9)


def _measure(
    plan: BranchPlan, out: Path, workers: int = 1, policy: Any = makers.fake_policy
) -> tuple[list[BranchPoint], list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    points = measure(plan, makers.restorable_suite, out, workers, seen.append, policy)
    return points, seen


def _equal(a: list[BranchPoint], b: list[BranchPoint]) -> None:
    assert [(p.task, p.number) for p in a] == [(p.task, p.number) for p in b]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.candidates, other.candidates)
        np.testing.assert_array_equal(one.success, other.success)
        np.testing.assert_array_equal(one.returns, other.returns)
        np.testing.assert_array_equal(one.observation.state, other.observation.state)


def test_states_take_turns_over_the_tasks(tmp_path: Path) -> None:
    points, seen = _measure(replace(PLAN, states=5), tmp_path)
    assert [(p.task, p.number) for p in points] == [
        ("reach", 0),
        ("touch", 0),
        ("reach", 1),
        ("touch", 1),
        ("reach", 2),
    ]
    assert [row["seed"] for row in seen] == [100, 100, 101, 101, 102]
    for point in points:
        assert point.candidates.shape == (5, 4, 1) and point.candidates.dtype == np.float32
        assert point.success.shape == point.returns.shape == (5, 2)
        assert point.observation.task == f"{point.task} the goal"
        assert point.observation.images["front"].shape == (8, 8, 3)


def test_the_truth_is_what_happens_from_that_state(tmp_path: Path) -> None:
    points, seen = _measure(PLAN, tmp_path)
    assert len({tuple(p.success.ravel()) for p in points}) > 1  # the policy's noise makes a difference
    for point, row in zip(points, seen, strict=True):
        noise = sampling_seed(row["seed"], point.task, PLAN.tasks)
        position, goal = point.observation.state
        for k in range(5):
            for r in range(2):
                again = int(np.random.default_rng([noise, row["decision"], r]).integers(2**31))
                won, steps = _by_hand(
                    float(position), float(goal), point.candidates[k], again, 20 - 4 * row["decision"]
                )
                assert point.success[k, r] == won
                # -1 a step, 0 in the last three of a success; -1/(1-0.9) is what is never done.
                paid = -sum(0.9**t for t in range(max(steps - 3, 0) if won else steps))
                rest = 0.0 if won else -10.0 * 0.9**steps
                assert point.returns[k, r] == pytest.approx(paid + rest, abs=1e-4)


def _by_hand(position: float, goal: float, chunk: Any, noise: int, left: int) -> tuple[bool, int]:
    """The point on the line, step by step: the candidate's 4 steps, then the base policy's own."""
    policy, steps, replan = makers.fake_policy("p", makers.restorable_suite("fake"), "cpu"), 0, 0
    env = FakeReachEnv()
    while True:
        env._position, env._goal = position, goal
        if replan:
            seed = int(np.random.default_rng([noise, replan]).integers(2**31))
            policy.reset()
            policy.observed.append(_seen(position, goal))
            chunk = policy.sample(1, seed).actions[0]
        replan += 1
        for action in chunk:
            position += float(np.clip(action[0], np.float32(-0.1), np.float32(0.1)))
            steps += 1
            if abs(position - goal) < 0.05:
                return True, steps
            if steps == left:
                return False, steps


def _seen(position: float, goal: float) -> Observation:
    return Observation({}, np.array([position, goal], np.float32), "")


def test_processes_change_nothing(tmp_path: Path) -> None:
    _equal(_measure(PLAN, tmp_path / "one")[0], _measure(PLAN, tmp_path / "two", workers=2)[0])


def test_the_first_candidate_is_what_the_base_policy_did(tmp_path: Path) -> None:
    # With one candidate or eight, the walk there and candidate 0 are the same.
    few, many = (_measure(replace(PLAN, k=k), tmp_path / str(k))[0] for k in (2, 8))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a.observation.state, b.observation.state)
        np.testing.assert_array_equal(a.candidates[0], b.candidates[0])
        np.testing.assert_array_equal(a.returns[0], b.returns[0])


def _still(path: str, suite: Any, device: str) -> Any:
    policy = makers.fake_policy(path, suite, device)
    policy.sample = lambda k, seed: Candidates(np.zeros((k, 4, 1), np.float32))  # type: ignore[method-assign]
    return policy


def test_every_decision_is_as_likely_and_has_the_time_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    step = FakeReachEnv.step

    def counted(self: FakeReachEnv, action: Any) -> Any:
        taken[-1] += 1
        return step(self, action)

    monkeypatch.setattr(FakeReachEnv, "step", counted)
    plan = replace(PLAN, tasks=("reach",), states=200, k=2, rollouts=1)
    (tmp_path / "states").mkdir()
    worker = BranchWorker(plan, makers.restorable_suite, tmp_path, _still)
    rows = [taken.append(0) or worker(job) for job in plan.jobs()]  # type: ignore[func-returns-value]
    assert {row["decisions"] for row in rows} == {5}  # 20 steps, four a decision
    counts = Counter(row["decision"] for row in rows)
    assert set(counts) == set(range(5)) and min(counts.values()) > 20
    assert taken == [20 + 2 * (20 - 4 * row["decision"]) for row in rows]


def test_an_interrupted_measurement_goes_on_and_a_longer_one_adds(tmp_path: Path) -> None:
    whole, _ = _measure(PLAN, tmp_path / "whole")
    _measure(replace(PLAN, states=3), tmp_path / "part")
    log = tmp_path / "part" / "states.jsonl"
    log.write_text(log.read_text() + '{"task": "touch", "num')  # killed while it wrote
    made: list[str] = []

    def counting(*arguments: Any) -> Any:
        made.append("policy")
        return makers.fake_policy(*arguments)

    points, seen = _measure(PLAN, tmp_path / "part", policy=counting)
    _equal(points, whole)
    assert len(seen) == 6 and len(log.read_text().splitlines()) == 6
    again, _ = _measure(PLAN, tmp_path / "part", policy=counting)
    _equal(again, whole)
    assert made == ["policy"]  # the second time there is nothing to simulate


def test_another_plan_or_policy_is_refused(tmp_path: Path) -> None:
    _measure(replace(PLAN, states=2), tmp_path)
    for change in ({"k": 6}, {"rollouts": 1}, {"seed": 1}, {"gamma": 0.5}, {"policy": "p2"}):
        with pytest.raises(ConfigError, match=f"other settings \\({next(iter(change))}\\)"):
            _measure(replace(PLAN, **change), tmp_path)
    with pytest.raises(ConfigError, match="holds states of policy p1"):
        _measure(PLAN, tmp_path, policy=makers.retrained_policy)
    assert json.loads((tmp_path / "plan.json").read_text())["k"] == 5


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite: expected one whose states can be restored, found fake"):
        measure(PLAN, makers.fake_suite, tmp_path / "a", 1, make_policy=makers.fake_policy)
    with pytest.raises(CheckpointError, match="history: expected 1 observation, all a state has, found 2"):
        _measure(replace(PLAN, policy="history"), tmp_path / "b")


@pytest.mark.parametrize("change", [{"k": 1}, {"states": 0}, {"rollouts": 0}, {"seed": -1}, {"execute": 0}])
def test_plans_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"ranking: {next(iter(change))}: expected"):
        replace(PLAN, **change)


def test_a_critic_scores_what_was_kept(tmp_path: Path) -> None:
    points, _ = _measure(PLAN, tmp_path)
    critic = FakeCritic(disagreement=0.5)
    values = score(critic, points)
    assert values.shape == (6, 5)
    ends = points[2].observation.state[0] + points[2].candidates[:, :, 0].sum(axis=1)
    lowest = -np.abs(ends - points[2].observation.state[1]) - 0.5
    np.testing.assert_allclose(values[2], lowest, rtol=1e-5)
    np.testing.assert_allclose(score(critic, points, "mean"), values + 0.25, rtol=1e-5)
