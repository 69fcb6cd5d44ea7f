"""K chunks of a multi_task_dit from one pass of its encoders.

All K candidates share one conditioning vector, so the towers run once and the AdaLN modulation of
every block is computed for one row and broadcast. The text tower runs once an instruction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn

from valueguide.policies.sampling.base import Frame, stack_history
from valueguide.policies.sampling.noise import GivenNoise, RowNoise

_REMEMBERED_SENTENCES = 256


class MultiTaskDiTSampler:
    """Flow matching and diffusion, with the integrators of LeRobot's own objective."""

    def __init__(self, policy: MultiTaskDiTPolicy) -> None:
        config = policy.config
        self.policy = policy
        self.history = config.n_obs_steps
        self.horizon = min(config.n_action_steps, config.horizon - config.n_obs_steps + 1)
        self._image_keys = list(config.image_features)
        self._predictor = _OneCondition(policy.noise_predictor)
        remember_sentences(policy.observation_encoder.text_encoder)

    def __call__(self, frames: list[Frame], k: int, noise: RowNoise) -> Tensor:
        batch = stack_history(frames, self._image_keys, [OBS_STATE])
        condition = self.policy.observation_encoder.encode(batch)
        objective, config = self.policy.objective, self.policy.config
        if config.is_flow_matching:
            start = noise.draw(k, (objective.horizon, objective.action_dim), like=condition)
            grid = torch.linspace(0, 1, config.num_integration_steps + 1, device=condition.device)
            methods = {"euler": objective._euler_integrate, "rk4": objective._rk4_integrate}
            actions = methods[config.integration_method](self._predictor, start, grid, condition)
        else:
            with GivenNoise(noise, k):
                actions = objective.conditional_sample(self._predictor, k, condition)
        first = self.history - 1
        return actions[:, first : first + self.horizon]


class _OneCondition:
    """The noise predictor with K inputs that share one condition and one time."""

    def __init__(self, predictor: nn.Module) -> None:
        self._predictor = predictor

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._predictor.parameters()

    def __call__(self, x: Tensor, timestep: Tensor, conditioning_vec: Tensor) -> Tensor:
        return self._predictor(x, timestep[:1], conditioning_vec=conditioning_vec)


def remember_sentences(encoder: nn.Module) -> None:
    """Makes a text encoder keep its output for the sentences it saw last (inference only)."""
    compute = encoder.forward
    known: OrderedDict[bytes, Tensor] = OrderedDict()

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if torch.is_grad_enabled() or encoder.training:
            return compute(input_ids, attention_mask)
        key = torch.stack([input_ids, attention_mask.to(input_ids.dtype)]).cpu().numpy().tobytes()
        if key not in known:
            known[key] = compute(input_ids, attention_mask)
            if len(known) > _REMEMBERED_SENTENCES:
                known.popitem(last=False)
        return known[key]

    encoder.forward = forward
