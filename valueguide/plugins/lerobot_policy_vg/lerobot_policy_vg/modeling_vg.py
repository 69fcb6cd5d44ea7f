"""`VGPolicy`: a frozen base policy re-ranked by a critic, behind LeRobot's policy interface."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_policy_vg.configuration_vg import VGConfig
from valueguide.errors import ConfigError, DataError
from valueguide.policies.load import load_policy
from valueguide.types import Decision, Float32, Observation


class VGPolicy(PreTrainedPolicy):
    """One steering loop an environment of the batch; networks are loaded once and shared.

    last_decisions: what the latest decision of every environment was, and why.
    """

    config_class = VGConfig
    name = "vg"

    def __init__(self, config: VGConfig, folder: Path | None = None, **kwargs: Any) -> None:
        """folder: where relative paths of `config` are looked up first."""
        from valueguide.steering.steer import SteeringConfig

        super().__init__(config)
        if not config.base_policy:
            raise ConfigError("policy vg: base_policy: expected a policy folder or Hub id, found nothing")
        self._base = load_policy(_resolve(config.base_policy, folder), config.device or "cpu")
        self.base = self._base.policy  # registered, so that the module has parameters and a device
        self._critic = _load_critic(config, folder)
        execute = config.executed_length
        if not execute:
            base_steps = min(self._base.horizon, self.base.config.n_action_steps)
            execute = self._critic.executed_length if self._critic is not None else base_steps
        if self._critic is not None:
            self._critic.check_compatible(cameras=self._base.cameras, horizon=self._base.horizon)
        self._steering = SteeringConfig(
            k=config.k if self._critic is not None else 1,
            beta=config.beta,
            execute=execute,
            aggregate=config.aggregate,
            deadline_s=config.deadline_s or float("inf"),
            spread_limit=self._critic.spread_limit if self._critic is not None else None,
        )
        self._episodes = -1
        self.reset()
        self._new_loop(0)  # refuses settings that do not fit now, not at the first step

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> VGPolicy:
        """A guided policy's folder holds settings only; the weights are the base's and the critic's."""
        folder = Path(pretrained_name_or_path)
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        return cls(config, folder=folder).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        self.config._save_pretrained(save_directory)

    def reset(self) -> None:
        """Start of the next episodes: histories and plans are dropped, seeds move on."""
        self._episodes += 1
        self._loops: list[_Loop] = []
        self.last_decisions: list[Decision] = []

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next physical action of every environment, float32 (B, A)."""
        actions = self._step(batch, chunk=False)
        return torch.from_numpy(np.stack(actions))

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """A newly chosen chunk for every environment, physical, float32 (B, H, A)."""
        return torch.from_numpy(np.stack(self._step(batch, chunk=True)))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any] | None]:
        """A guided policy has no loss."""
        raise ConfigError(
            "policy vg: expected a policy to train, found a guided one. Train its base or critic"
        )

    def get_optim_params(self) -> dict[str, Any]:
        """Nothing here is trained."""
        raise ConfigError(
            "policy vg: expected a policy to train, found a guided one. Train its base or critic"
        )

    def _step(self, batch: dict[str, Any], chunk: bool) -> list[Float32]:
        observations = observations_of(batch)
        while len(self._loops) < len(observations):
            self._loops.append(self._new_loop(len(self._loops)))
        if len(self._loops) != len(observations):
            wanted = f"{len(self._loops)} environments, as since the last reset"
            raise DataError(f"policy vg: batch: expected {wanted}, found {len(observations)}")
        pairs = list(zip(self._loops, observations, strict=True))
        actions = [loop.chunk(o) if chunk else loop.action(o) for loop, o in pairs]
        self.last_decisions = [loop.decision for loop in self._loops if loop.decision is not None]
        return actions

    def _new_loop(self, index: int) -> _Loop:
        from valueguide.steering.steer import Steerer

        steerer = Steerer(self._base.fork(), self._critic, self._steering)
        steerer.reset()
        return _Loop(steerer, np.random.SeedSequence((self.config.seed, self._episodes, index)))


class _Loop:
    """Observe, decide when the plan ran out, act: for one environment."""

    def __init__(self, steerer: Any, seeds: np.random.SeedSequence) -> None:
        self.decision: Decision | None = None
        self._steerer = steerer
        self._rng = np.random.default_rng(seeds)
        self._plan: deque[Float32] = deque()

    def action(self, observation: Observation) -> Float32:
        self._steerer.observe(observation)
        if not self._plan:
            chosen = self._decide()
            self._plan.extend(chosen.actions[: chosen.executed_length])
        return self._plan.popleft()

    def chunk(self, observation: Observation) -> Float32:
        self._steerer.observe(observation)
        return self._decide().actions

    def _decide(self) -> Any:
        chosen, _, self.decision = self._steerer.plan(int(self._rng.integers(2**31)))
        return chosen


def observations_of(batch: dict[str, Any]) -> list[Observation]:
    """LeRobot's batch (float images (B, C, H, W) in [0, 1]) as one Observation an environment."""
    if OBS_STATE not in batch:
        raise DataError(f"policy vg: batch: expected {OBS_STATE!r}, found {sorted(batch)}")
    states = batch[OBS_STATE].float().cpu().numpy()
    extra = batch.get(OBS_ENV_STATE)
    extras = [None] * len(states) if extra is None else list(extra.float().cpu().numpy())
    tasks = batch.get("task") or [""] * len(states)
    images = {}
    for key, value in batch.items():
        if key.startswith("observation.image") and isinstance(value, Tensor):
            pixels = (value * 255.0).round().clamp(0, 255).to(torch.uint8)
            name = key.removeprefix(f"{OBS_IMAGES}.").removeprefix("observation.")
            images[name] = pixels.movedim(-3, -1).contiguous().cpu().numpy()
    return [
        Observation({name: stack[i] for name, stack in images.items()}, states[i], tasks[i], 0, extras[i])
        for i in range(len(states))
    ]


def _load_critic(config: VGConfig, folder: Path | None) -> Any:
    if not config.critic:
        return None
    from valueguide.critics.scorer import LearnedCritic

    return LearnedCritic.load(_resolve(config.critic, folder))


def _resolve(path: str, folder: Path | None) -> str:
    inside = folder / path if folder is not None else None
    return str(inside) if inside is not None and inside.is_dir() else path
