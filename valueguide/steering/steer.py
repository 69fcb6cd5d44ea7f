"""`Steerer`: sample K chunks, score them once, pick one. The loop that a robot or simulation calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.interfaces import Critic, Policy
from valueguide.steering.decide import AGGREGATES, check_beta, decide
from valueguide.steering.select import Selector
from valueguide.types import ActionChunk, Candidates, Decision, Observation


@dataclass(frozen=True)
class SteeringConfig:
    """k: candidates. beta: 0 for argmax. execute: E, steps run of the chosen chunk.

    aggregate: over ensemble members. deadline_s: from the start of sampling. spread_limit: None to
    trust every score. shadow: score and log, but run candidate 0.
    """

    k: int = 16
    beta: float = 0.0
    execute: int = 4
    aggregate: str = "min"
    deadline_s: float = float("inf")
    spread_limit: float | None = None
    shadow: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(mismatch("steering", "k", "1 or more candidates", self.k))
        if self.execute < 1:
            raise ConfigError(mismatch("steering", "execute", "1 or more steps", self.execute))
        check_beta(self.beta)
        if not self.deadline_s > 0:
            raise ConfigError(mismatch("steering", "deadline_s", "more than 0 seconds", self.deadline_s))
        if self.spread_limit is not None and not self.spread_limit >= 0:
            raise ConfigError(mismatch("steering", "spread_limit", "0 or more, or none", self.spread_limit))
        if self.aggregate not in AGGREGATES:
            raise ConfigError(mismatch("steering", "aggregate", AGGREGATES, repr(self.aggregate)))


@dataclass
class Timing:
    """Seconds of the last plan: policy (sampling), critic (encoding and scoring), total."""

    policy_s: float = 0.0
    critic_s: float = 0.0
    total_s: float = 0.0


@dataclass
class Steerer:
    """One policy, at most one critic, one way to choose. `selector` replaces the critic's choice.

    Without a critic and without a selector this is the policy alone.
    """

    policy: Policy
    critic: Critic | None
    config: SteeringConfig
    selector: Selector | None = None
    clock: Callable[[], float] = time.perf_counter
    timing: Timing = field(default_factory=Timing)
    _observation: Observation | None = None
    _chunks: int = 0
    #: When `propose` began and ended, on `clock`.
    _proposed: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.policy.horizon < self.config.execute:
            raise ConfigError(
                mismatch(
                    "steering",
                    "execute",
                    f"<= the policy's horizon {self.policy.horizon}",
                    self.config.execute,
                )
            )
        if self.critic is None:
            return
        if self.critic.executed_length != self.config.execute:
            raise ConfigError(
                mismatch(
                    "steering",
                    "execute",
                    f"{self.critic.executed_length}, the steps that the critic scores",
                    self.config.execute,
                )
            )
        if self.critic.action_dim != self.policy.action_dim:
            raise ConfigError(
                mismatch(
                    "critic", "action size", f"the policy's {self.policy.action_dim}", self.critic.action_dim
                )
            )

    def reset(self) -> None:
        """Start of an episode."""
        self.policy.reset()
        self._observation, self._chunks = None, 0

    def observe(self, observation: Observation) -> None:
        """One control step; the policy keeps what history it needs."""
        self.policy.observe(observation)
        self._observation = observation

    def plan(
        self, seed: int, adapt: Callable[[Candidates], Candidates] | None = None
    ) -> tuple[ActionChunk, Candidates, Decision]:
        """Propose, score and choose for the latest observation. seed: of the policy's noise and of draws.

        adapt: what is done to the candidates before they are scored, such as putting committed actions first.
        """
        candidates = self.propose(seed, adapt)
        chunk, decision = self.choose(candidates, seed)
        return chunk, candidates, decision

    def propose(self, seed: int, adapt: Callable[[Candidates], Candidates] | None = None) -> Candidates:
        """The first half of `plan`."""
        if self._observation is None:
            raise ConfigError("steering: expected an observation since the last reset, found none")
        start = self.clock()
        candidates = self.policy.sample(self.config.k, seed)
        if adapt is not None:
            candidates = adapt(candidates)
        self._proposed = (start, self.clock())
        return candidates

    def choose(self, candidates: Candidates, seed: int) -> tuple[ActionChunk, Decision]:
        """The second half of `plan`: score what `propose` gave last, and choose. May be called again, such as
        with another critic; the deadline counts from the beginning of `propose`."""
        if self._observation is None:
            raise ConfigError("steering: expected an observation since the last reset, found none")
        start, sampled = self._proposed
        decision = self._decide(candidates, seed, start)
        end = self.clock()
        self.timing = Timing(sampled - start, end - sampled, end - start)
        chunk = ActionChunk(
            actions=candidates.actions[decision.index],
            chunk_id=self._chunks,
            executed_length=self.config.execute,
            stamp_ns=self._observation.stamp_ns,
        )
        self._chunks += 1
        return chunk, decision

    def _decide(self, candidates: Candidates, seed: int, start: float) -> Decision:
        if self.selector is not None:
            index = self.selector(candidates, self.config.execute, seed)
            return Decision(index, self.selector.name, preferred=index, latency_s=self.clock() - start)
        if self.critic is None:
            return decide(None, elapsed_s=self.clock() - start)
        assert self._observation is not None
        return rerank(self.critic, self._observation, candidates, self.config, seed, start, self.clock)


def rerank(
    critic: Critic,
    observation: Observation,
    candidates: Candidates,
    config: SteeringConfig,
    seed: int,
    start: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Decision:
    """Score the candidates and choose one. start: when sampling began, on `clock`, for the deadline.

    Raises ConfigError when the critic returns scores for another number of candidates.
    """
    sampled_s = clock() - start
    if sampled_s > config.deadline_s:
        # Scoring could not change what runs, only make it later still.
        return Decision(0, "deadline", latency_s=sampled_s)
    features = critic.encode(observation)
    scores = critic.score(features, np.ascontiguousarray(candidates.actions))
    if scores.q.shape[1:] != (candidates.k,):
        raise ConfigError(
            mismatch("critic", "scores", f"(members, {candidates.k} candidates)", scores.q.shape)
        )
    return decide(
        scores,
        beta=config.beta,
        how=config.aggregate,
        seed=seed,
        elapsed_s=clock() - start,
        deadline_s=config.deadline_s,
        spread_limit=config.spread_limit,
        shadow=config.shadow,
    )
