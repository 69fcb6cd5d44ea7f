"""One episode: replans, what is logged at which step, the ends, and rendering only where it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from valueguide.errors import DataError
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.suite import to_observation
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy, FakeRaisingCritic, FakeReachEnv
from valueguide.types import Candidates, Decision, Episode, Observation


def _steerer(
    k: int = 8, execute: int = 4, history: int = 1, critic: Any = None, noise: float = 0.0
) -> Steerer:
    return Steerer(FakePolicy(history=history, noise=noise), critic, SteeringConfig(k=k, execute=execute))


def _run(steerer: Steerer, env: FakeReachEnv | None = None, **options: Any) -> Episode:
    return rollout(env or FakeReachEnv(), steerer, 3, 20, **options)


def test_a_success_ends_the_chunk_early_and_terminates() -> None:
    # The goal is 0.5 away and the policy moves 0.1 a step: within 0.05 after 5 steps, one into chunk 1.
    episode = _run(_steerer())
    assert [s.chunk_id for s in episode.steps] == [0, 0, 0, 0, 1]
    assert [s.chunk_step for s in episode.steps] == [0, 1, 2, 3, 0]
    assert [s.executed_length for s in episode.steps] == [4, 4, 4, 4, 1]
    last = episode.steps[-1]
    assert (last.success, last.terminated, last.truncated, last.reward) == (True, True, False, 1.0)
    assert not any(s.terminated or s.truncated or s.success for s in episode.steps[:-1])
    assert episode.success and episode.task == "reach the goal"
    position, goal = episode.final_observation.state
    assert abs(position - goal) < 0.05  # the state after the last action, not the one before it


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    away = FakePolicy(noise=0.0)
    away.sample = lambda k, seed: Candidates(np.zeros((k, 4, 1), np.float32))  # type: ignore[method-assign]
    steerer = Steerer(away, None, SteeringConfig(k=1, execute=4))
    for env_limit, limit in ((100, 10), (10, 100)):
        last = rollout(FakeReachEnv(max_steps=env_limit), steerer, 3, limit).steps[-1]
        assert (last.terminated, last.truncated, last.success) == (False, True, False)
    assert len(rollout(FakeReachEnv(max_steps=100), steerer, 3, 10).steps) == 10


def test_leaving_the_field_is_a_failure_that_terminates() -> None:
    policy = FakePolicy()
    policy.sample = lambda k, seed: Candidates(np.full((k, 4, 1), 9.0, np.float32))  # type: ignore[method-assign]
    env = FakeReachEnv(max_steps=100)
    env._succeeded = lambda: False  # type: ignore[method-assign]
    episode = rollout(env, Steerer(policy, None, SteeringConfig(k=1)), 3, 100)
    last = episode.steps[-1]
    assert (last.terminated, last.truncated, last.success) == (True, False, False)
    assert episode.metadata["failure"] == "out_of_reach"
    # What is logged is what the motors were sent: within their limits.
    assert {s.action[0] for s in episode.steps} == {np.float32(0.1)}
    assert all(s.planned_chunk is not None and s.planned_chunk[0, 0] == 9.0 for s in episode.steps)


def test_candidates_and_decision_are_logged_at_replans_only() -> None:
    episode = _run(_steerer(critic=FakeCritic(), noise=0.05))
    for step in episode.steps:
        replan = step.chunk_step == 0
        assert (step.candidates is not None) == replan == (step.decision is not None)
        if step.candidates is not None and step.decision is not None:
            chosen = step.candidates.actions[step.decision.index]
            np.testing.assert_array_equal(step.planned_chunk, chosen)
            assert step.candidates.k == 8 and step.decision.reason == "argmax"
        assert (step.policy_version, step.critic_version) == ("fake-policy", "fake-critic")
    decisions = sum(s.chunk_step == 0 for s in episode.steps)
    assert episode.metadata["decisions"] == decisions
    assert episode.metadata["reasons"] == {"argmax": decisions}
    assert len(episode.metadata["policy_s"]) == len(episode.metadata["critic_s"]) == decisions


def test_a_policy_without_history_sees_and_renders_replans_only() -> None:
    env, steerer = FakeReachEnv(), _steerer()
    episode = _run(steerer, env)
    policy = steerer.policy
    assert isinstance(policy, FakePolicy)
    assert len(policy.observed) == 2 and all("front" in o.images for o in policy.observed)
    # One picture for each of two replans; none is thrown away.
    assert env.rendered == 2 and len(episode.steps) == 5
    # The picture at a replan is the current one, not the last that happened to be drawn.
    position = float(episode.steps[4].observation.state[0])
    assert episode.steps[4].observation.images["front"][0, 0, 0] == int(128 + 60 * position)


def test_a_policy_with_history_sees_every_step_once() -> None:
    steerer = _steerer(history=2)
    episode = _run(steerer)
    policy = steerer.policy
    assert isinstance(policy, FakePolicy)
    stamps = [o.stamp_ns for o in policy.observed]
    assert stamps == [round(i * 1e8) for i in range(len(episode.steps))]  # 10 Hz
    assert all("front" in o.images for o in policy.observed)


def test_record_images_keeps_every_picture() -> None:
    episode = _run(_steerer(), record_images=True)
    assert all("front" in s.observation.images for s in episode.steps)
    assert "front" in episode.final_observation.images


def test_two_arms_get_the_same_proposals_in_the_same_state_and_new_ones_at_each_decision() -> None:
    alone, guided = _steerer(k=1, noise=0.1), _steerer(k=8, noise=0.1, critic=FakeCritic())
    base, other = (_run(s, sampling_seed=5) for s in (alone, guided))
    first, second = base.steps[0].candidates, other.steps[0].candidates
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.actions[0], second.actions[0])
    policy = guided.policy
    assert isinstance(policy, FakePolicy)
    seeds = [seed for _, seed in policy.sampled]
    assert len(set(seeds)) == len(seeds) > 1
    again = _run(_steerer(k=8, noise=0.1, critic=FakeCritic()), sampling_seed=5)
    np.testing.assert_array_equal([s.action for s in again.steps], [s.action for s in other.steps])
    different = _run(_steerer(k=8, noise=0.1, critic=FakeCritic()), sampling_seed=6)
    third = different.steps[0].candidates
    assert third is not None and not np.array_equal(third.actions, second.actions)


def test_the_watcher_sees_every_decision() -> None:
    seen: list[tuple[Observation, Candidates, Decision]] = []
    episode = _run(_steerer(), watch=lambda *facts: seen.append(facts))
    assert len(seen) == episode.metadata["decisions"]
    assert seen[1][0].stamp_ns == episode.steps[4].observation.stamp_ns


def test_an_unknown_instruction_is_not_swallowed() -> None:
    with pytest.raises(DataError, match="known instruction, found 'reach the goal'"):
        _run(_steerer(critic=FakeRaisingCritic()))


def test_observations_are_converted_with_simulated_time() -> None:
    raw = {"agent_pos": np.array([1.0, 2.0]), "environment_state": np.array([3.0])}
    observation = to_observation(raw, "go", step=3, fps=20)
    assert observation.stamp_ns == 150_000_000 and observation.images == {} and observation.task == "go"
    assert observation.state.dtype == np.float32
    assert observation.environment_state is not None and observation.environment_state.dtype == np.float32
