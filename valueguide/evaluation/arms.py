"""The arms of an evaluation: how each one proposes and chooses. Models are loaded once a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from valueguide.errors import CheckpointError, ConfigError, mismatch
from valueguide.evaluation.suite import Suite
from valueguide.interfaces import Critic, Policy
from valueguide.steering.select import MedoidSelector, RandomSelector, Selector
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.transport.remote_mapping import RobotFacts
from valueguide.transport.remote_policy import connect_policy, is_remote

#: base: the policy alone. guided: the critic's choice of K. random: any of the K. medoid: the most
#: typical of the K. qonly: uniformly random chunks, the critic's choice of K.
ARMS = ("base", "guided", "random", "medoid", "qonly")
_NEEDS_CRITIC = ("guided", "qonly")


@dataclass(frozen=True)
class ArmSettings:
    """What all arms share. critic may be empty when no arm needs one; policy when only qonly runs.

    device: the torch device on which policy and critic run.
    """

    policy: str
    critic: str
    k: int = 16
    beta: float = 0.0
    execute: int = 4
    aggregate: str = "min"
    use_spread_limit: bool = True
    device: str = "cpu"


def split_arm(arm: str) -> tuple[str, int | None]:
    """ "guided@4" -> ("guided", 4): an arm with its own K, for sweeps. Raises ConfigError when unknown."""
    name, _, k = arm.partition("@")
    if name not in ARMS or (k and not (k.isdigit() and int(k) > 0)):
        raise ConfigError(mismatch("--arms", "names", f"some of {', '.join(ARMS)} (or guided@K)", repr(arm)))
    return name, int(k) if k else None


class ArmFactory:
    """Builds steerers for one suite, sharing one loaded policy and critic."""

    def __init__(self, suite: Suite, settings: ArmSettings, arms: tuple[str, ...] = ARMS) -> None:
        """Loads what `arms` need. Raises CheckpointError or ConfigError when things do not fit together."""
        import torch

        # A sum's order depends on the number of threads, and the end of an episode on every bit of it.
        torch.set_num_threads(1)
        self.suite, self.settings = suite, settings
        names = {split_arm(arm)[0] for arm in arms}
        device = settings.device
        self._policy: Any = load_policy(settings.policy, suite, device) if names - {"qonly"} else None
        guided = names & set(_NEEDS_CRITIC)
        self._critic: Any = load_critic(settings.critic, suite, device) if guided else None

    def build(self, arm: str) -> Steerer:
        name, own_k = split_arm(arm)
        k = 1 if name == "base" else own_k or self.settings.k
        limit = self._critic.spread_limit if self._critic and self.settings.use_spread_limit else None
        config = SteeringConfig(
            k=k,
            beta=self.settings.beta,
            execute=self.settings.execute,
            aggregate=self.settings.aggregate,
            spread_limit=limit if name == "guided" else None,
        )
        critic: Critic | None = self._critic if name in _NEEDS_CRITIC else None
        selector: Selector | None = None
        if name == "random":
            selector = RandomSelector()
        elif name == "medoid":
            selector = MedoidSelector(np.float32(0.5) * (self.suite.action_high - self.suite.action_low))
        return Steerer(self._proposer(name), critic, config, selector)  # type: ignore[arg-type]

    def _proposer(self, name: str) -> Policy:
        if name != "qonly":
            return self._policy
        from valueguide.policies.scripted import UniformRandomPolicy

        return UniformRandomPolicy(self.suite.action_low, self.suite.action_high, self.settings.execute)


def load_policy(path: str, suite: Suite, device: str = "cpu") -> Any:
    """A LeRobot policy or a policy server. Raises CheckpointError, ConfigError for what does not fit."""
    if is_remote(path):
        return connect_policy(path, _facts(suite))
    from valueguide.policies.load import load_policy as load

    policy = load(path, device)
    where = f"policy {path}"
    if policy.action_dim != len(suite.action_names):
        raise CheckpointError(
            mismatch(where, "action size", f"{len(suite.action_names)} for {suite.name}", policy.action_dim)
        )
    for name, size in policy.cameras.items():
        if tuple(suite.cameras.get(name, ())) != tuple(size):
            raise CheckpointError(
                mismatch(where, f"camera {name!r}", f"one of {dict(suite.cameras)} of {suite.name}", size)
            )
    if policy.needs_environment_state and not suite.environment_state_names:
        raise CheckpointError(
            mismatch(where, "observation", f"what {suite.name} offers", "environment_state")
        )
    return policy


def _facts(suite: Suite) -> RobotFacts:
    return RobotFacts(
        action_names=suite.action_names,
        state_size=len(suite.state_names),
        cameras=suite.cameras,
        environment_state_size=len(suite.environment_state_names),
        rate_hz=suite.fps,
    )


def load_critic(path: str, suite: Suite, device: str = "cpu") -> Any:
    """A critic that fits the suite. Raises CheckpointError naming what does not."""
    from valueguide.critics.scorer import LearnedCritic

    critic = LearnedCritic.load(path, device)
    critic.check_compatible(
        action_names=suite.action_names, cameras=suite.cameras, state_dim=len(suite.state_names)
    )
    if critic.spec.environment_state_dim not in (0, len(suite.environment_state_names)):
        raise CheckpointError(
            mismatch(
                f"critic {path}",
                "environment state",
                f"{len(suite.environment_state_names)} values of {suite.name}",
                critic.spec.environment_state_dim,
            )
        )
    return critic


def sampling_seed(seed: int, task: str, tasks: tuple[str, ...]) -> int:
    """One number per (episode seed, task), the same for every arm."""
    return int(np.random.default_rng([seed, tasks.index(task)]).integers(2**31))
