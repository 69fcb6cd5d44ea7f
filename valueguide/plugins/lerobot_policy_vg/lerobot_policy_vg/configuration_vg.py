"""Settings of the value-guided policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import LRSchedulerConfig, OptimizerConfig

from valueguide.errors import ConfigError, mismatch


@PreTrainedConfig.register_subclass("vg")
@dataclass
class VGConfig(PreTrainedConfig):
    """A frozen base policy proposes `k` chunks, the critic picks one, `executed_length` steps of it run.

    base_policy: folder or Hub id of a LeRobot policy; a relative folder may lie inside this policy's own.
    critic: critic folder; empty: the base policy alone (candidate 0).
    beta: 0 takes the best candidate, above 0 draws from softmax(Q / beta).
    executed_length: steps of a chunk that run before the next decision; 0: what the critic scores.
    aggregate: how ensemble members are combined ("min", "mean" or "lcb").
    seed: of all noise and draws. deadline_s: a decision that took longer falls back to candidate 0;
    0: no deadline.
    """

    base_policy: str = ""
    critic: str = ""
    k: int = 16
    beta: float = 0.0
    executed_length: int = 0
    aggregate: str = "min"
    seed: int = 0
    deadline_s: float = 0.0
    #: The base policy and the critic own their normalisation.
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, expected, ok in (
            ("k", "at least 1", self.k >= 1),
            ("beta", "0 or more", self.beta >= 0),
            ("executed_length", "0 or more", self.executed_length >= 0),
            ("seed", "0 or more", self.seed >= 0),
            ("deadline_s", "0 or more", self.deadline_s >= 0),
        ):
            if not ok:
                raise ConfigError(mismatch("policy vg", name, expected, getattr(self, name)))

    def validate_features(self) -> None:
        """Observations are checked by the base policy and the critic."""

    def get_optimizer_preset(self) -> OptimizerConfig:
        raise ConfigError(
            "policy vg: expected a policy to train, found a guided one. Train its base or critic"
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig | None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None
