"""K chunks of smolvla, pi0 and pi05 from one pass over images and language.

These policies run the observation through a large transformer once, keep its keys and values, and
denoise the actions against them. Stock code wants as many observations as noises; here one
observation's cache is repeated K times after it was computed, which is where the time goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn

from valueguide.policies.sampling.base import Frame
from valueguide.policies.sampling.noise import StackedNoise


class PrefixCacheSampler:
    """Swaps in a flow model that accepts K noises for each observation; K = 1 is untouched."""

    def __init__(self, policy: PreTrainedPolicy) -> None:
        config = policy.config
        self.policy = policy
        self.history = 1
        self.horizon = config.chunk_size
        self._noise_shape = (config.chunk_size, config.max_action_dim)
        policy.model.__class__ = _shared(type(policy.model))
        self._projections = _cross_projections(policy.model)

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        frame = dict(frames[-1])
        if OBS_STATE in frame:
            frame[OBS_STATE] = frame[OBS_STATE].clone()  # smolvla for Aloha converts it in place
        start = noise.draw(len(noise.rows) * k, self._noise_shape)
        start = start.to(next(self.policy.parameters()).device)
        with _projecting_once(self._projections, k):
            return self.policy.predict_action_chunk(frame, noise=start)


def _cross_projections(model: nn.Module) -> list[nn.Linear]:
    """Where smolvla's action expert projects the prefix; stock code does so at every denoising step."""
    both = getattr(model, "vlm_with_expert", None)
    if both is None or "cross" not in both.attention_mode:
        return []
    every, stride = both.self_attn_every_n_layers, max(both.num_vlm_layers // both.num_expert_layers, 1)
    return [
        projection
        for index, layer in enumerate(both.lm_expert.layers)
        if not (every > 0 and index * stride % every == 0)
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]


@contextmanager
def _projecting_once(projections: list[nn.Linear], k: int) -> Iterator[None]:
    """Within one decision the prefixes stay the same and K copies of each are equal: project one, once."""

    def remembering(projection: nn.Linear) -> Any:
        known: list[Tensor] = []

        def forward(x: Tensor) -> Tensor:
            if not known:
                once = nn.functional.linear(x[::k], projection.weight, projection.bias)
                known.append(once.repeat_interleave(k, 0))
            return known[0]

        return forward

    for projection in projections:
        projection.forward = remembering(projection)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for projection in projections:
            del projection.forward


def _shared(model_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose `denoise_step` repeats the prefix to the batch size of the noise."""
    if getattr(model_class, "shares_prefix", False):
        return model_class

    class SharedPrefix(model_class):  # type: ignore[misc, valid-type]
        shares_prefix = True

        def denoise_step(self, **kwargs: Any) -> Tensor:
            masks, cache = kwargs["prefix_pad_masks"], kwargs["past_key_values"]
            times = kwargs["x_t"].shape[0] // masks.shape[0]
            if times > 1:
                if cache is not None and cache.layers[0].keys.shape[0] != kwargs["x_t"].shape[0]:
                    cache.batch_repeat_interleave(times)  # in place: once, not at every step
                kwargs["prefix_pad_masks"] = masks.repeat_interleave(times, 0)
                if "state" in kwargs:  # pi0 feeds the state beside the noise
                    kwargs["state"] = kwargs["state"].repeat_interleave(times, 0)
            return super().denoise_step(**kwargs)

    return SharedPrefix
