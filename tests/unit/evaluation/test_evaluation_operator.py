"""Episodes with a human: who commands each step, where a chunk is cut, and what is logged of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from valueguide.evaluation.rollout import rollout
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy, FakeReachEnv
from valueguide.types import Candidates, Episode, Float32


class Timed:
    """Commands the steps in `steps`, with a constant action."""

    def __init__(self, steps: set[int], action: float = 0.02) -> None:
        self._steps, self._action = steps, action
        self.log: list[Any] = []

    def begin(self, env: Any, seed: int) -> None:
        self.log.append(("begin", seed, env.seeds[-1]))

    def wants_control(self, info: dict[str, Any], step: int) -> bool:
        self.log.append((step, round(info["progress"], 3)))
        return step in self._steps

    def action(self) -> Float32:
        self.log.append("action")
        return np.array([self._action], np.float32)

    def release(self) -> None:
        self.log.append("release")

    def facts(self) -> dict[str, Any]:
        return {"interventions": len(self._steps)}


def _still(history: int = 1) -> FakePolicy:
    policy = FakePolicy(history=history)
    sampled = policy.sampled

    def sample(k: int, seed: int) -> Candidates:
        sampled.append((k, seed))
        return Candidates(np.zeros((k, 4, 1), np.float32))

    policy.sample = sample  # type: ignore[method-assign]
    return policy


def _run(
    operator: Timed | None, policy: FakePolicy | None = None, limit: int = 12, **options: Any
) -> Episode:
    steerer = Steerer(policy or _still(), None, SteeringConfig(k=1, execute=4))
    return rollout(FakeReachEnv(max_steps=100), steerer, 3, limit, operator=operator, **options)


def _who(episode: Episode) -> str:
    return "".join(step.source[0] for step in episode.steps)


def _towards_goal() -> float:
    env = FakeReachEnv()
    env.reset(seed=3)
    return float(np.sign(env._goal - env._position))


def test_a_takeover_cuts_the_chunk_and_the_hand_back_plans_anew() -> None:
    episode = _run(Timed({2, 3, 4, 9}))
    assert _who(episode) == "pphhhpppphpp"
    assert [s.chunk_id for s in episode.steps] == [0, 0, -1, -1, -1, 1, 1, 1, 1, -1, 2, 2]
    assert [s.chunk_step for s in episode.steps] == [0, 1, 0, 0, 0, 0, 1, 2, 3, 0, 0, 1]
    # What ran of each plan: two of the first four steps; the second ran whole; the time limit cut the third.
    assert [s.executed_length for s in episode.steps] == [2, 2, 1, 1, 1, 4, 4, 4, 4, 1, 2, 2]
    planned = [s.chunk_step == 0 and s.chunk_id >= 0 for s in episode.steps]
    assert [s.decision is not None for s in episode.steps] == planned
    assert (episode.metadata["takeovers"], episode.metadata["human_steps"]) == (2, 4)
    assert episode.metadata["decisions"] == 3 and episode.metadata["interventions"] == 4


def test_a_humans_step_is_logged_as_such_and_within_the_motors_limits() -> None:
    episode = _run(Timed({1}, action=7.0))
    step = episode.steps[1]
    assert (step.source, step.intervention, step.policy_version, step.critic_version) == (
        "human",
        True,
        "",
        "",
    )
    assert step.candidates is None and step.decision is None and step.planned_chunk is None
    assert step.action == np.float32([0.1]) and step.action.dtype == np.float32
    policys = episode.steps[0]
    assert (policys.source, policys.intervention, policys.policy_version) == ("policy", False, "fake-policy")


def test_the_operator_is_asked_once_before_every_step() -> None:
    operator = Timed({0, 5}, action=0.1 * _towards_goal())
    episode = _run(operator, limit=7)
    asked = [entry[0] for entry in operator.log if isinstance(entry, tuple) and entry[0] != "begin"]
    assert asked == list(range(7)) and _who(episode) == "hpppphp"
    assert operator.log[0] == ("begin", 3, 3)  # the environment has been reset by then
    assert operator.log[-1] == "release" and operator.log.count("action") == 2
    # What it is told is the state before the step.
    told = {entry[0]: entry[1] for entry in operator.log if isinstance(entry, tuple)}
    assert told[0] == 0.0 < told[1] == told[5] < told[6]


def test_an_episode_may_end_in_a_humans_hands() -> None:
    episode = _run(Timed(set(range(3, 99)), action=0.1 * _towards_goal()), limit=30)
    last = episode.steps[-1]
    assert (last.source, last.success, last.terminated, last.truncated) == ("human", True, True, False)
    assert episode.success and _who(episode) == "ppp" + "h" * (len(episode.steps) - 3)
    assert [s.executed_length for s in episode.steps[:3]] == [3, 3, 3]
    cut = _run(Timed(set(range(3, 99)), action=0.0), limit=6).steps[-1]
    assert (cut.source, cut.terminated, cut.truncated) == ("human", False, True)


def test_a_policy_with_history_sees_the_humans_steps_too_each_once() -> None:
    policy = _still(history=2)
    episode = _run(Timed({2, 3}), policy, limit=9)
    assert [o.stamp_ns for o in policy.observed] == [round(i * 1e8) for i in range(len(episode.steps))]


def test_pictures_of_a_humans_steps_are_kept_when_recording() -> None:
    episode = _run(Timed({2, 3}), record_images=True)
    assert all("front" in step.observation.images for step in episode.steps)
    positions = [float(step.observation.state[0]) for step in episode.steps]
    assert positions[4] == pytest.approx(positions[2] + 0.04)


def test_who_never_takes_over_changes_nothing() -> None:
    def run(operator: Timed | None) -> Episode:
        steerer = Steerer(FakePolicy(noise=0.05), FakeCritic(), SteeringConfig(k=8, execute=4))
        return rollout(FakeReachEnv(), steerer, 3, 20, sampling_seed=5, operator=operator)

    watched, alone = run(Timed(set())), run(None)
    np.testing.assert_array_equal([s.action for s in watched.steps], [s.action for s in alone.steps])
    assert [s.executed_length for s in watched.steps] == [s.executed_length for s in alone.steps]
    assert "takeovers" not in alone.metadata and watched.metadata["takeovers"] == 0


def test_the_policys_noise_goes_on_counting_decisions_across_a_takeover() -> None:
    policy, other = _still(), _still()
    _run(Timed({2, 3}), policy, sampling_seed=5)
    _run(None, other, sampling_seed=5)
    assert policy.sampled == other.sampled[: len(policy.sampled)]
