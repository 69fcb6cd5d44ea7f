"""What defines a run of `train online`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from valueguide.errors import ConfigError, mismatch
from valueguide.online.advantage import WeightSettings
from valueguide.online.replay_draw import DEFAULT_RATIOS, checked_ratios
from valueguide.online.segments import Store, TakeoverRule

#: aloe: chunked TD, re-ranking, advantage-weighted improvement. dagger: imitation of offline data and
#: corrections. awr: advantage-weighted regression on a Monte-Carlo value. none: no learning.
METHODS = ("aloe", "dagger", "awr", "none")
STARTS = ("base", "previous")


@dataclass(frozen=True)
class OnlineSettings:
    """What defines a run. episodes, evaluations, final: of each task, collected in an iteration, evaluated
    between iterations, and evaluated at the end.

    policy, critic: folders to start from; every method starts from this policy, `aloe` from this critic too.
    offline: dataset folders, of whose episodes the first `offline_episodes` of each task are in the replay.
    collect_seed, eval_seed, final_seed: first seeds; episode j of a round uses seed + j.
    critic_steps, policy_steps: gradient steps in an iteration; for `awr` the former are those of its value.
    start: each iteration's policy begins anew from the one that the run began with ("base"), or goes on from
    the last ("previous").
    proposals: chunks of the policy at each successor state. takeover: reward rule of `segment_transitions`.
    critic_shares, policy_shares: store -> share of a batch of the critic, and of policy improvement.
    weights: of policy improvement.
    """

    suite: str
    tasks: tuple[str, ...]
    method: str
    policy: str
    critic: str
    offline: tuple[str, ...] = ()
    offline_episodes: int = 60
    iterations: int = 4
    episodes: int = 20
    evaluations: int = 20
    final: int = 50
    collect_seed: int = 100_000
    eval_seed: int = 30_000
    final_seed: int = 40_000
    k: int = 16
    execute: int = 4
    gamma: float = 0.98
    critic_steps: int = 1500
    policy_steps: int = 1000
    learning_rate: float = 3e-4
    backup: str = "policy"
    start: str = "base"
    seed: int = 0
    proposals: int = 2
    critic_rate: float = 3e-4
    takeover: TakeoverRule = "failure"
    critic_shares: Mapping[Store, float] = field(default_factory=lambda: dict(DEFAULT_RATIOS))
    policy_shares: Mapping[Store, float] = field(default_factory=lambda: dict(DEFAULT_RATIOS))
    weights: WeightSettings = field(default_factory=WeightSettings)

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("start", STARTS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(mismatch("train online", name, allowed, repr(getattr(self, name))))
        for name in ("iterations", "episodes", "evaluations", "final", "critic_steps", "policy_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(mismatch("train online", name, "1 or more", getattr(self, name)))
        if not self.critic_rate > 0:
            raise ConfigError(mismatch("train online", "critic_rate", "above 0", self.critic_rate))
        for shares in (self.critic_shares, self.policy_shares):
            checked_ratios(shares)
        rounds = [("collection", self.collect_seed, (self.iterations + 1) * self.episodes),
                  ("evaluation", self.eval_seed, self.evaluations),
                  ("final evaluation", self.final_seed, self.final)]  # fmt: skip
        for name, first, count in rounds[1:]:
            low, high = self.collect_seed, self.collect_seed + rounds[0][2]
            if first < high and low < first + count:
                expected = f"seeds outside {low} to {high - 1}, which are collected from"
                raise ConfigError(mismatch("train online", f"{name} seeds", expected, first))

    @property
    def arms(self) -> tuple[str, ...]:
        """What is evaluated at the end: the policy alone and, where there is a critic for it, guided."""
        return ("base", "guided") if self.method in ("aloe", "none") else ("base",)

    @property
    def deployed(self) -> str:
        """The arm that works while the method learns."""
        return "guided" if self.method == "aloe" else "base"
