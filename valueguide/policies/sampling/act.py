"""K chunks of ACT, by drawing the latent that the stock policy sets to zero.

ACT is deterministic at inference: the style variable z of its conditional VAE is the prior's mean, 0
(Zhao et al. 2023, section IV). Candidate 0 keeps z = 0, which is stock ACT; the others draw z from
the prior N(0, I). The image backbone runs once.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from torch import Tensor, nn

from valueguide.policies.sampling.base import Frame, repeat
from valueguide.policies.sampling.noise import StackedNoise


class ActSampler:
    """Temporal ensembling is not applied: a chunk is scored and executed as it is."""

    def __init__(self, policy: ACTPolicy) -> None:
        self.policy = policy
        self.history = 1
        self.horizon = policy.config.chunk_size

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        model = self.policy.model
        latent = noise.draw(len(noise.rows) * k, (self.policy.config.latent_dim,))
        latent[::k] = 0.0

        def inject(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            return (latent.to(args[0]),)

        def first_only(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (args[0][::k],)

        def spread(module: nn.Module, args: Any, output: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.repeat_interleave(k, 0) for name, value in output.items()}

        hooks = [model.encoder_latent_input_proj.register_forward_pre_hook(inject)]
        if self.policy.config.image_features:
            hooks.append(model.backbone.register_forward_pre_hook(first_only))
            hooks.append(model.backbone.register_forward_hook(spread))
        try:
            with torch.no_grad():
                return self.policy.predict_action_chunk(repeat(frames[-1], k))
        finally:
            for hook in hooks:
                hook.remove()
