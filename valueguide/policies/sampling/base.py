"""What a sampler offers, and the batched one that works for every LeRobot policy.

A sampler turns the pre-processed observation frames of B unrelated instants (oldest first) into K
normalised action chunks for each. Policies with a sampler of their own share the work that does not
depend on the noise; here every observation is simply copied K times.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor

from valueguide.errors import ConfigError
from valueguide.policies.sampling.noise import GivenNoise, RowNoise, StackedNoise

Frame = dict[str, Any]
_OBS_IMAGE = "observation.image"
#: These return (H, K, A); LeRobot's contract is (K, H, A).
_TIME_FIRST = ("tdmpc",)


class Sampler(Protocol):
    """history: frames needed. horizon: steps a chunk has, 0 when only a call can tell."""

    history: int
    horizon: int

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        """frames: `history` pre-processed batches of size B. noise: of B seeds.

        Returns (B * K, H, A), normalised, the K chunks of each observation together.
        """


def repeat(frame: Frame, k: int) -> Frame:
    """The frame with every tensor and list repeated k times along the batch."""
    return {
        key: value.repeat_interleave(k, 0)
        if isinstance(value, Tensor) and value.dim()
        else value * k
        if isinstance(value, list)
        else value
        for key, value in frame.items()
    }


def _row(frame: Frame, i: int) -> Frame:
    """Observation i alone, as a batch of size 1."""

    def one(value: Any) -> Any:
        batched = isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
        return value[i : i + 1] if batched else value

    return {key: one(value) for key, value in frame.items()}


def stack_history(frames: list[Frame], image_keys: list[str], state_keys: list[str]) -> Frame:
    """The last frame, plus (B, T, ...) states and (B, T, cameras, C, H, W) images over all frames."""
    batch = dict(frames[-1])
    for key in state_keys:
        batch[key] = torch.stack([frame[key] for frame in frames], dim=1)
    if image_keys:
        images = [torch.stack([frame[key] for key in image_keys], dim=1) for frame in frames]
        batch[OBS_IMAGES] = torch.stack(images, dim=1)
    return batch


class BatchedSampler:
    """Any policy: one `predict_action_chunk` on K copies of each observation, one observation at a time.

    What such a policy draws besides normal noise is seeded for the call as a whole, so that rows of one
    call could not be kept independent of each other.
    """

    def __init__(self, policy: PreTrainedPolicy) -> None:
        self.policy = policy
        self.history = int(getattr(policy.config, "n_obs_steps", 1) or 1)
        self.horizon = 0

    def __call__(self, frames: list[Frame], k: int, noise: StackedNoise) -> Tensor:
        each = [[_row(frame, i) for frame in frames] for i in range(len(noise.rows))]
        return torch.cat([self._one(row, k, seeded) for row, seeded in zip(each, noise.rows, strict=True)])

    def _one(self, frames: list[Frame], k: int, noise: RowNoise) -> Tensor:
        self.policy.reset()
        batch: Frame = {}
        for frame in frames:
            batch = repeat(frame, k)
            batch.pop(ACTION, None)  # processors put an empty one in, which queues would take for an action
            self._fill_queues(batch)
        # Random functions that GivenNoise does not know still get a seed, and leave no trace.
        device = next(self.policy.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(noise.seed)
            with GivenNoise(noise, k):
                try:
                    actions = self.policy.predict_action_chunk(batch)
                except NotImplementedError:  # how LeRobot's single-step policies answer
                    where = f"policy type {self.policy.config.type!r}"
                    raise ConfigError(
                        f"{where}: expected one that predicts action chunks, found a single-step policy"
                    ) from None
        return actions.transpose(0, 1) if self.policy.config.type in _TIME_FIRST else actions

    def _fill_queues(self, batch: Frame) -> None:
        """Policies with history read it from their own queues, which only `select_action` fills."""
        queues = getattr(self.policy, "_queues", None)
        if not isinstance(queues, dict):
            return
        image_keys = list(self.policy.config.image_features)
        if image_keys and OBS_IMAGES in queues:
            batch[OBS_IMAGES] = torch.stack([batch[key] for key in image_keys], dim=-4)
        if image_keys and _OBS_IMAGE in queues:
            batch[_OBS_IMAGE] = batch[image_keys[0]]
        self.policy._queues = populate_queues(queues, batch, exclude_keys=[ACTION])
