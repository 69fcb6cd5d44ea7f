"""K chunks of a diffusion policy from one pass of its image encoder."""

from __future__ import annotations

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from valueguide.policies.sampling.base import Frame, stack_history
from valueguide.policies.sampling.noise import GivenNoise, StackedNoise


class DiffusionSampler:
    """The U-Net runs on K noises against each conditioning vector; DDPM step noise is seeded as well."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        config = policy.config
        self.policy = policy
        self.history = config.n_obs_steps
        self.horizon = min(config.n_action_steps, config.horizon - config.n_obs_steps + 1)
        self._image_keys = list(config.image_features)
        self._state_keys = [OBS_STATE] + ([OBS_ENV_STATE] if config.env_state_feature else [])

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        batch = stack_history(frames, self._image_keys, self._state_keys)
        model = self.policy.diffusion
        condition = model._prepare_global_conditioning(batch).repeat_interleave(k, 0)
        with GivenNoise(noise, len(condition)):
            actions = model.conditional_sample(len(condition), global_cond=condition)
        first = self.history - 1
        return actions[:, first : first + self.horizon]
