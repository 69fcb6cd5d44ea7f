"""K chunks of a multi_task_dit from one pass of its encoders.

The K candidates of an observation share its conditioning vector, so the towers run once an observation,
and with one observation the AdaLN modulation of every block is computed for one row and broadcast. The
text tower runs once an instruction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from valueguide.policies.sampling.base import Frame, stack_history
from valueguide.policies.sampling.noise import GivenNoise, StackedNoise

_REMEMBERED_SENTENCES = 256


class MultiTaskDiTSampler:
    """Flow matching and diffusion, with the integrators of LeRobot's own objective."""

    def __init__(self, policy: MultiTaskDiTPolicy) -> None:
        config = policy.config
        self.policy = policy
        self.history = config.n_obs_steps
        self.horizon = min(config.n_action_steps, config.horizon - config.n_obs_steps + 1)
        self._image_keys = list(config.image_features)
        self._predictor = _SharedTime(policy.noise_predictor)
        self._text = _Sentences(policy.observation_encoder.text_encoder)

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        batch = stack_history(frames, self._image_keys, [OBS_STATE])
        condition, count = self._condition(batch), len(noise.rows) * k
        if len(condition) > 1:
            condition = condition.repeat_interleave(k, 0)
        objective, config = self.policy.objective, self.policy.config
        if config.is_flow_matching:
            start = noise.draw(count, (objective.horizon, objective.action_dim), like=condition)
            grid = torch.linspace(0, 1, config.num_integration_steps + 1, device=condition.device)
            methods = {"euler": objective._euler_integrate, "rk4": objective._rk4_integrate}
            actions = methods[config.integration_method](self._predictor, start, grid, condition)
        else:
            with GivenNoise(noise, count):
                actions = objective.conditional_sample(self._predictor, count, condition)
        first = self.history - 1
        return actions[:, first : first + self.horizon]

    def _condition(self, batch: Frame) -> Tensor:
        """What the encoder makes of B observations, (B, F), their text parts taken from memory."""
        tokens, mask = batch.pop(OBS_LANGUAGE_TOKENS, None), batch.pop(OBS_LANGUAGE_ATTENTION_MASK, None)
        seen = self.policy.observation_encoder.encode(batch)
        if tokens is None:
            return seen
        # LeRobot appends the text to the state and image features of every observation step.
        text = self._text(tokens, mask).unsqueeze(1).expand(-1, self.history, -1)
        return torch.cat([seen.unflatten(1, (self.history, -1)), text], dim=-1).flatten(1)


class _SharedTime:
    """The noise predictor, whose inputs share one time; one condition may stand for all of them."""

    def __init__(self, predictor: nn.Module) -> None:
        self._predictor = predictor

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._predictor.parameters()

    def __call__(self, x: Tensor, timestep: Tensor, conditioning_vec: Tensor) -> Tensor:
        return self._predictor(x, timestep[: len(conditioning_vec)], conditioning_vec=conditioning_vec)


class _Sentences:
    """Outputs of a text encoder for the sentences it saw last; forgotten when its weights change."""

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._weights: tuple[Any, ...] = ()
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._encoder.parameters()
        )
        if weights != self._weights:
            self._weights = weights
            self._known.clear()
        rows = torch.stack([input_ids, attention_mask.to(input_ids.dtype)], dim=1).cpu().numpy()
        keys = [row.tobytes() for row in rows]
        for i, key in enumerate(keys):
            if key not in self._known:
                self._known[key] = self._encoder(input_ids[i : i + 1], attention_mask[i : i + 1])
        sentences = torch.cat([self._known[key] for key in keys])
        while len(self._known) > _REMEMBERED_SENTENCES:
            self._known.popitem(last=False)
        return sentences
