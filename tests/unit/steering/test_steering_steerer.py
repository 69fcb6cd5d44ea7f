"""`Steerer`: one sampling, one encoding, one scoring; the output is one proposal, unmodified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.interfaces import Critic, Policy
from valueguide.steering.select import MedoidSelector, RandomSelector
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fake_tables import FakeTableCritic, FakeTablePolicy
from valueguide.testing.fakes import FakeClock, FakeCritic, FakeNanCritic, FakePolicy, FakeRaisingCritic
from valueguide.types import Float32, Observation

_few = settings(max_examples=40, deadline=None)


def _config(k: int, **changes: object) -> SteeringConfig:
    return SteeringConfig(k=k, execute=2, **changes)  # type: ignore[arg-type]


def _observation(stamp_ns: int = 0) -> Observation:
    return Observation({}, np.array([0.0, 1.0], np.float32), "reach the goal", stamp_ns)


def _chunks(k: int, seed: int = 0) -> Float32:
    """(k, 4, 2), all different."""
    return np.random.default_rng([9, seed]).normal(size=(k, 4, 2)).astype(np.float32)


def test_fakes_keep_the_contracts() -> None:
    assert isinstance(FakeTablePolicy(_chunks(1)), Policy)
    assert isinstance(FakeTableCritic([[0.0]]), Critic)


@_few
@given(
    k=st.integers(1, 8),
    beta=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["critic", "shadow", "nan", "alone", "random", "medoid"]),
)
def test_the_output_is_always_one_proposal_unmodified(k: int, beta: float, seed: int, kind: str) -> None:
    q = np.random.default_rng(seed).normal(size=(3, k)).astype(np.float32)
    if kind == "nan":
        q[1, k // 2] = np.nan
    policy = FakeTablePolicy(_chunks(k, seed))
    critic = FakeTableCritic(q) if kind in ("critic", "shadow", "nan") else None
    selector = {"random": RandomSelector(), "medoid": MedoidSelector(np.ones(2, np.float32))}.get(kind)
    steerer = Steerer(policy, critic, _config(k, beta=beta, shadow=kind == "shadow"), selector)
    steerer.observe(_observation(stamp_ns=42))
    chunk, candidates, decision = steerer.plan(seed)
    untouched = _chunks(k, seed)
    np.testing.assert_array_equal(candidates.actions, untouched)
    np.testing.assert_array_equal(chunk.actions, untouched[decision.index])
    assert chunk.actions.dtype == np.float32 and chunk.actions.shape == (4, 2)
    assert chunk.executed_length == 2 and chunk.stamp_ns == 42
    if kind in ("shadow", "nan", "alone"):
        assert decision.index == 0


def test_the_critic_sees_the_latest_observation_once_and_every_candidate() -> None:
    policy, critic = FakeTablePolicy(_chunks(5)), FakeTableCritic(np.zeros((2, 5)))
    steerer = Steerer(policy, critic, _config(5))
    for stamp in (1, 2, 3):
        steerer.observe(_observation(stamp))
    _, candidates, _ = steerer.plan(0)
    assert [o.stamp_ns for o in policy.observed] == [1, 2, 3]  # the policy keeps the history it needs
    assert critic.encoded == 1  # not once a candidate
    assert [o.stamp_ns for o in critic.features] == [3]
    np.testing.assert_array_equal(critic.scored[0], candidates.actions)


def test_the_best_scored_chunk_runs() -> None:
    actions = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    steerer = Steerer(
        FakeTablePolicy(actions), FakeTableCritic([[0.0, 0.5, 2.0], [0.0, 1.0, 1.5]]), _config(3)
    )
    steerer.observe(_observation())
    chunk, _, decision = steerer.plan(0)
    assert (decision.index, decision.reason) == (2, "argmax")
    np.testing.assert_array_equal(chunk.actions, actions[2])


def test_without_critic_it_is_the_policy_alone() -> None:
    steerer = Steerer(FakePolicy(), None, _config(1))
    steerer.observe(_observation())
    chunk, _, decision = steerer.plan(5)
    assert (decision.index, decision.reason) == (0, "no_critic")
    unguided = FakePolicy()
    unguided.observe(_observation())
    np.testing.assert_array_equal(chunk.actions, unguided.sample(1, 5).actions[0])


def test_shadow_runs_the_same_episode_as_the_policy_alone() -> None:
    alone = Steerer(FakePolicy(), None, _config(4))
    shadow = Steerer(
        FakePolicy(), FakeTableCritic([[0.0, 1.0, 2.0, 3.0]], action_dim=1), _config(4, shadow=True)
    )
    for seed in range(5):
        alone.observe(_observation())
        shadow.observe(_observation())
        chunk, _, decision = shadow.plan(seed)
        np.testing.assert_array_equal(chunk.actions, alone.plan(seed)[0].actions)
        assert (decision.reason, decision.preferred) == ("shadow", 3)


def test_draws_use_and_log_the_seed_of_the_plan() -> None:
    steerer = Steerer(
        FakeTablePolicy(_chunks(4)), FakeTableCritic([[0.0, 0.1, 0.2, 0.3]]), _config(4, beta=1.0)
    )
    steerer.observe(_observation())
    decisions = [steerer.plan(seed)[2] for seed in range(40)]
    assert [d.seed for d in decisions] == list(range(40))
    assert {d.index for d in decisions} == {0, 1, 2, 3}


# --- time, by an injected clock --------------------------------------------------------------------


def _timed(policy_s: float, critic_s: float, deadline_s: float) -> Steerer:
    clock = FakeClock()
    policy = FakeTablePolicy(_chunks(2), clock, policy_s)
    critic = FakeTableCritic([[0.0, 1.0]], clock=clock, takes_s=critic_s)
    steerer = Steerer(policy, critic, _config(2, deadline_s=deadline_s), clock=clock)
    steerer.observe(_observation())
    return steerer


def test_the_deadline_counts_from_the_start_of_sampling() -> None:
    """Neither part is late by itself; together they are."""
    assert _timed(0.25, 0.25, deadline_s=0.5).plan(0)[2].reason == "argmax"
    late = _timed(0.25, 0.25, deadline_s=0.375).plan(0)[2]
    assert (late.index, late.reason, late.preferred) == (0, "deadline", 1)
    assert late.latency_s == 0.5


def test_scoring_is_skipped_when_sampling_alone_was_late() -> None:
    steerer = _timed(0.5, 0.25, deadline_s=0.375)
    decision = steerer.plan(0)[2]
    assert (decision.index, decision.reason, decision.preferred) == (0, "deadline", -1)
    assert decision.latency_s == 0.5 and steerer.critic.encoded == 0  # type: ignore[union-attr]


def test_timing_names_the_shares() -> None:
    steerer = _timed(0.5, 0.125, deadline_s=10.0)
    steerer.plan(0)
    timing = steerer.timing
    assert (timing.policy_s, timing.critic_s, timing.total_s) == (0.5, 0.125, 0.625)


# --- episodes --------------------------------------------------------------------------------------


def test_reset_starts_an_episode_afresh() -> None:
    policy = FakePolicy()
    steerer = Steerer(policy, None, _config(2))
    steerer.observe(_observation())
    assert [steerer.plan(seed)[0].chunk_id for seed in range(3)] == [0, 1, 2]
    steerer.reset()
    assert policy.resets == 1
    with pytest.raises(ConfigError, match="observation since the last reset"):
        steerer.plan(0)  # the last episode's picture must not start this one
    steerer.observe(_observation())
    assert steerer.plan(0)[0].chunk_id == 0


def test_an_error_of_the_critic_is_not_hidden() -> None:
    """An instruction that the critic does not know is for a person to mend, not to be ridden over."""
    steerer = Steerer(FakePolicy(), FakeRaisingCritic(executed_length=2), _config(2))
    steerer.observe(_observation())
    with pytest.raises(DataError, match="instruction"):
        steerer.plan(0)


def test_what_was_proposed_can_be_chosen_from_again_by_another_critic() -> None:
    policy = FakeTablePolicy(_chunks(3))
    steerer = Steerer(policy, FakeRaisingCritic(executed_length=2, action_dim=2), _config(3))
    steerer.observe(_observation())
    candidates = steerer.propose(5)
    with pytest.raises(DataError, match="instruction"):
        steerer.choose(candidates, 5)
    steerer.critic = FakeTableCritic([[0.0, 2.0, 1.0]])
    chunk, decision = steerer.choose(candidates, 5)
    assert decision.index == 1 and chunk.chunk_id == 0 and policy.sampled == [(3, 5)]
    np.testing.assert_array_equal(chunk.actions, candidates.actions[1])


def test_one_nan_of_one_member_leaves_the_policy_alone() -> None:
    steerer = Steerer(FakePolicy(), FakeNanCritic(executed_length=2), _config(4))
    steerer.observe(_observation())
    _, _, decision = steerer.plan(0)
    assert (decision.index, decision.reason) == (0, "non_finite")


def test_scores_for_another_number_of_candidates_are_refused() -> None:
    """Each column belongs to a candidate: with another number of them, the index means nothing."""
    steerer = Steerer(FakeTablePolicy(_chunks(2)), FakeTableCritic([[0.0]]), _config(2))
    steerer.observe(_observation())
    with pytest.raises(ConfigError, match=r"scores: expected \(members, 2 candidates\), found \(1, 1\)"):
        steerer.plan(0)


# --- settings that cannot work ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, "k: expected 1"),
        ({"execute": 0}, "execute"),
        ({"aggregate": "max"}, "aggregate.*'max'"),
        ({"beta": -0.1}, "beta.*-0.1"),
        ({"beta": float("nan")}, "beta.*nan"),
        ({"deadline_s": 0.0}, "deadline_s.*found 0.0"),
        ({"deadline_s": float("nan")}, "deadline_s.*nan"),
        ({"spread_limit": -1.0}, "spread_limit.*found -1.0"),
    ],
)
def test_config_out_of_range_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SteeringConfig(**changes)


def test_parts_that_do_not_fit_are_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="horizon 4"):
        Steerer(FakePolicy(horizon=4), None, SteeringConfig(k=1, execute=5))
    with pytest.raises(ConfigError, match="expected 3, the steps that the critic scores, found 2"):
        Steerer(FakePolicy(), FakeCritic(executed_length=3), _config(1))
    with pytest.raises(ConfigError, match="action size: expected the policy's 1, found 7"):
        Steerer(FakePolicy(), FakeCritic(executed_length=2, action_dim=7), _config(1))
