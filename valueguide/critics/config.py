"""What a critic looks at and how it is built and trained. Plain dataclasses, stored as config.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field

from valueguide.errors import ConfigError, mismatch

ENCODERS = ("resnet34_film", "small_film_cnn", "state", "frozen_clip")
ALGORITHMS = ("calql", "iql", "aloe", "distill")
SAMPLERS = ("actor", "proposals")
BACKUPS = ("policy", "best_of_n")
#: Fewer HL-Gauss bins leave no room for the padding at both ends of the support.
MIN_BINS = 8


@dataclass(frozen=True)
class CriticSpec:
    """The inputs: what the robot offers and what is executed.

    executed_length: E, steps of a chunk that are executed and scored. action_names: one per action
    dimension. state_dim: length of the proprioception. environment_state_dim: length of privileged
    state, 0 without. cameras: name -> (height, width), in the order they are encoded. state_names: one
    per number of the proprioception, or empty where the dataset does not name them.
    """

    executed_length: int
    action_names: tuple[str, ...]
    state_dim: int
    environment_state_dim: int = 0
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    state_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.executed_length < 1:
            raise ConfigError(mismatch("critic", "executed steps", "1 or more", self.executed_length))
        if self.state_names and len(self.state_names) != self.state_dim:
            raise ConfigError(mismatch("critic", "state names", f"{self.state_dim}", len(self.state_names)))

    @property
    def action_dim(self) -> int:
        return len(self.action_names)


@dataclass(frozen=True)
class NetworkConfig:
    """encoder: one of ENCODERS. use_state: concatenate normalised proprioception.

    members: M, ensemble size. hidden: width of the two hidden layers of each member.
    own_encoders: an encoder for each member; with a shared one, as in V-GPS, members agree almost always.
    shared_output: one output layer for all members, as in V-GPS. layer_norm: after each hidden layer.
    bins: 0 for a scalar head; otherwise the number of HL-Gauss bins over value_range.
    language_dim: length of the sentence embedding. feature_dim: length of cached vision features
    (frozen_clip only). dropout: while training, in the trunk of `state` and `frozen_clip` and in the
    hidden layers; small datasets are otherwise learned by heart, episode by episode.
    """

    encoder: str = "state"
    use_state: bool = True
    members: int = 2
    hidden: int = 256
    own_encoders: bool = False
    shared_output: bool = True
    layer_norm: bool = False
    bins: int = 0
    value_range: tuple[float, float] = (-50.0, 0.0)
    language_dim: int = 384
    feature_dim: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ConfigError(mismatch("critic", "encoder", ENCODERS, repr(self.encoder)))
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(mismatch("critic", "dropout", "0 to below 1", self.dropout))
        if self.members < 1:
            raise ConfigError(mismatch("critic", "members", "1 or more", self.members))
        if self.bins and self.bins < MIN_BINS:
            raise ConfigError(mismatch("critic", "bins", f"0 (scalar) or {MIN_BINS} or more", self.bins))
        if not self.value_range[0] < self.value_range[1]:
            raise ConfigError(mismatch("critic", "value_range", "(low, high)", self.value_range))


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters; the defaults are V-GPS's (see docs/critics.md for their sources).

    algo: one of ALGORITHMS; "distill" is trained by `distill.CriticDistiller`.
    conservative_weight: alpha of Cal-QL. sampler: where its policy chunks come from: a SAC actor trained
    along, or `proposals` of the policy that will be steered, handed to every update. policy_samples:
    chunks drawn from pi(s) and from pi(s') each (of the actor), and as many uniform ones. expectile: of
    the IQL value loss. backup: how ALOE values the policy's chunks at s': by their mean (the policy
    alone) or their maximum (the guided policy). negative_share: fraction of each batch whose instruction
    is swapped for another one, with the failure value as target.
    """

    algo: str = "iql"
    gamma: float = 0.98
    critic_rate: float = 3e-4
    actor_rate: float = 1e-4
    temperature_rate: float = 3e-4
    warmup_steps: int = 2000
    polyak: float = 0.005
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    conservative_weight: float = 5.0
    sampler: str = "actor"
    policy_samples: int = 4
    expectile: float = 0.7
    backup: str = "policy"
    negative_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise ConfigError(mismatch("critic", "algo", ALGORITHMS, repr(self.algo)))
        if self.sampler not in SAMPLERS:
            raise ConfigError(mismatch("critic", "sampler", SAMPLERS, repr(self.sampler)))
        if self.backup not in BACKUPS:
            raise ConfigError(mismatch("critic", "backup", BACKUPS, repr(self.backup)))
        for name in ("gamma", "expectile"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(mismatch("critic", name, "between 0 and 1", getattr(self, name)))
        if not 0.0 < self.polyak <= 1.0:
            raise ConfigError(mismatch("critic", "polyak", "above 0, at most 1", self.polyak))
        if not 0.0 <= self.negative_share <= 1.0:
            raise ConfigError(mismatch("critic", "negative_share", "0 to 1", self.negative_share))
        if self.policy_samples < 1:
            raise ConfigError(mismatch("critic", "policy_samples", "1 or more", self.policy_samples))

    @property
    def failure_value(self) -> float:
        """The value of never succeeding: the sum of -1 for ever, -1 / (1 - gamma)."""
        return -1.0 / (1.0 - self.gamma)
