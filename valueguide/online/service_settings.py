"""What defines a learner process, and what a restart of it may change."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from valueguide.critics.config import TrainConfig
from valueguide.data.layout import read_json, write_json
from valueguide.errors import ConfigError, mismatch
from valueguide.online.checks import CheckLimits
from valueguide.online.learner import LearnerSettings, online_training

#: A restart in the same folder must share these, and the critic that learning started from.
FIXED = ("gamma", "critic_rate", "backup", "hold_out")
SETTINGS = "settings.json"


@dataclass(frozen=True)
class ServiceSettings:
    """out: folder of replay/, held_out/, training/ and versions/. policy, critic: folders to start from.

    datasets: folders that are recorded into; they need not exist yet. offline: imported once.
    updates_per_step: gradient steps for each control step that was taken into the replay. Learning starts
        after `min_steps` of these; max_steps: gradient steps in all, 0 for no end.
    save_every, publish_every: gradient steps. hold_out: every so manieth episode is not learned from.
    promote_after: episodes that a version is in shadow before it serves; None: the operator promotes.
    probe_from: replay or dataset that was not trained on, from which the probe is made; "": from the first
        `probe_episodes` held-out episodes. limits: of the checks. keep: versions, see `CriticVersions`.
    max_bytes: bound on the replay, and a `hold_out`th of it on the held-out episodes; 0 for none.
    gamma: None for that of the critic. critic_rate, backup: `TrainConfig`. device: of torch.
    """

    out: str
    policy: str
    critic: str
    datasets: tuple[str, ...]
    offline: tuple[str, ...] = ()
    updates_per_step: float = 0.5
    min_steps: int = 500
    max_steps: int = 0
    save_every: int = 250
    publish_every: int = 500
    hold_out: int = 5
    promote_after: int | None = None
    probe_from: str = ""
    probe_episodes: int = 10
    limits: CheckLimits = field(default_factory=CheckLimits)
    keep: int = 10
    max_bytes: int = 0
    gamma: float | None = None
    critic_rate: float = 3e-4
    backup: str = "policy"
    learning: LearnerSettings = field(default_factory=lambda: LearnerSettings(proposals=2))
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"save_every": 1, "publish_every": 1, "hold_out": 2, "keep": 1, "probe_episodes": 1,
                 "min_steps": 0, "max_steps": 0, "max_bytes": 0}  # fmt: skip
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(mismatch("learner", name, f"{value} or more", getattr(self, name)))
        if not 0 < self.updates_per_step <= 1000:
            raise ConfigError(mismatch("learner", "updates_per_step", "0 to 1000", self.updates_per_step))
        if self.promote_after is not None and self.promote_after < 1:
            raise ConfigError(mismatch("learner", "promote_after", "1 or more", self.promote_after))
        if not self.datasets and not self.offline:
            raise ConfigError(mismatch("learner", "datasets", "1 or more", "none"))

    @property
    def root(self) -> Path:
        return Path(self.out).resolve()

    def training(self, gamma: float) -> TrainConfig:
        """gamma: of the starting critic, where these settings have none."""
        own = gamma if self.gamma is None else self.gamma
        return online_training(own, self.critic_rate, self.backup, self.learning.seed)

    def steps_due(self, recorded: int) -> int:
        """Gradient steps in all, once `recorded` control steps are in the replay."""
        if recorded < max(self.min_steps, 1):
            return 0
        due = int(self.updates_per_step * recorded)
        return min(due, self.max_steps) if self.max_steps else due


def check_same_run(settings: ServiceSettings, critic: str) -> None:
    """Note, at the first start, what must stay; ConfigError at a later one where it did not.

    critic: version that learning started from.
    """
    wanted: dict[str, Any] = {"critic": critic} | {name: getattr(settings, name) for name in FIXED}
    wanted |= asdict(settings.learning)
    wanted = json.loads(json.dumps(wanted))
    path = settings.root / SETTINGS
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_json(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            hint = "Go on with the same settings, or use another --out"
            raise ConfigError(mismatch(str(path), name, found.get(name), value, hint))
