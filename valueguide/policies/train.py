"""Trains a multi_task_dit base policy with LeRobot's own model, loss, optimiser and update step.

The CLIP towers are frozen, so their outputs are computed once: during training the vision tower is
swapped for a pass-through of cached features and the text tower for a table of pooled sentences.
Both are put back before the policy is saved, and the result is a stock LeRobot checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.constants import (
    ACTION,
    OBS_IMAGES,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from numpy.typing import NDArray
from torch import Tensor, nn

from valueguide.policies.backbone import PIXEL_MEAN, PIXEL_STD
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.types import Float32

log = logging.getLogger(__name__)
_TOKENS = 24


@dataclass(frozen=True)
class PolicyData:
    """Frames of all demonstrations, one after the other.

    state: float32 (N, S), with the privileged state appended on state suites.
    actions: float32 (N, A). last: int64 (N,), index of the last frame of each frame's episode.
    instruction: int64 (N,) into `instructions`.
    features: float32 (N, cameras, D), outputs of the frozen vision tower, or None.
    """

    state: Float32
    actions: Float32
    last: NDArray[np.int64]
    instruction: NDArray[np.int64]
    instructions: tuple[str, ...]
    features: Float32 | None = None


@dataclass(frozen=True)
class PolicySize:
    """The few choices that make the policy small; see MultiTaskDiTConfig for their meaning."""

    horizon: int = 8
    hidden_dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    flow_steps: int = 8
    dropout: float = 0.1
    learning_rate: float = 1e-3


def make_config(
    size: PolicySize,
    clip_folder: str,
    state_dim: int,
    action_dim: int,
    cameras: dict[str, tuple[int, int]],
    device: str = "cpu",
) -> MultiTaskDiTConfig:
    """A flow-matching multi_task_dit on one observation step. cameras: name -> (height, width).

    device: on which it is trained.
    """
    inputs = {OBS_STATE: PolicyFeature(FeatureType.STATE, (state_dim,))}
    for name, (height, width) in cameras.items():
        inputs[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, height, width))
    return MultiTaskDiTConfig(
        n_obs_steps=1,
        horizon=size.horizon,
        n_action_steps=size.horizon,
        objective="flow_matching",
        num_integration_steps=size.flow_steps,
        hidden_dim=size.hidden_dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        dropout=size.dropout,
        timestep_embed_dim=64,
        vision_encoder_name=clip_folder,
        text_encoder_name=clip_folder,
        image_crop_shape=None,
        tokenizer_max_length=_TOKENS,
        do_mask_loss_for_padding=True,
        optimizer_lr=size.learning_rate,
        scheduler_warmup_steps=200,
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))},
        normalization_mapping={
            "VISUAL": NormalizationMode.MEAN_STD,
            "STATE": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        },
        device=device,
        push_to_hub=False,
    )


def statistics(data: PolicyData, cameras: dict[str, tuple[int, int]]) -> dict[str, dict[str, Tensor]]:
    """Normalisation statistics in LeRobot's form. Constant dimensions get a harmless unit range."""
    stats: dict[str, dict[str, Tensor]] = {}
    for key, values in ((OBS_STATE, data.state), (ACTION, data.actions)):
        low, high = values.min(0), values.max(0)
        flat = high - low < 1e-6
        stats[key] = {
            "min": torch.from_numpy(np.where(flat, low - 1, low)),
            "max": torch.from_numpy(np.where(flat, high + 1, high)),
            "mean": torch.from_numpy(values.mean(0)),
            "std": torch.from_numpy(values.std(0) + 1e-6),
        }
    for name in cameras:
        stats[f"{OBS_IMAGES}.{name}"] = {
            "mean": torch.full((3, 1, 1), PIXEL_MEAN),
            "std": torch.full((3, 1, 1), PIXEL_STD),
            "min": torch.zeros(3, 1, 1),
            "max": torch.ones(3, 1, 1),
        }
    return stats


class _TextTable(nn.Module):
    """Stands in for the text tower while training: token ids are row numbers of pooled sentences."""

    def __init__(self, projection: nn.Linear, pooled: Tensor) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("pooled", pooled, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.projection(self.pooled[input_ids[:, 0]])


class PolicyTrainer:
    """Builds the policy and its processors, then trains it step by step on cached features."""

    def __init__(
        self,
        config: MultiTaskDiTConfig,
        data: PolicyData,
        cameras: dict[str, tuple[int, int]],
        append_environment_state: bool,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.data, self.seed = config, data, seed
        self.policy = MultiTaskDiTPolicy(config).to(config.device)
        self.policy.requires_grad_(True)
        encoder = self.policy.observation_encoder
        for tower in (encoder.vision_encoder, encoder.text_encoder.text_encoder):
            if tower is not None:
                tower.requires_grad_(False)
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            config, dataset_stats=statistics(data, cameras)
        )
        if append_environment_state:
            # After the batch dimension is there, before anything is normalised.
            self.preprocessor.steps.insert(2, AppendEnvironmentState())
        self._state, self._actions = self._normalised()

    def _normalised(self) -> tuple[Tensor, Tensor]:
        batch = {OBS_STATE: torch.from_numpy(self.data.state), ACTION: torch.from_numpy(self.data.actions)}
        out = self.preprocessor(batch | {"task": [""] * len(self.data.state)})
        return out[OBS_STATE], out[ACTION]

    def _pooled(self) -> Tensor:
        """Pooled text features (number of instructions, D) of the frozen text tower."""
        blank = torch.zeros(len(self.data.instructions), self._state.shape[1])
        batch = self.preprocessor({OBS_STATE: blank, "task": list(self.data.instructions)})
        tower = self.policy.observation_encoder.text_encoder.text_encoder.eval()
        with torch.no_grad():
            tokens, mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
            return tower(input_ids=tokens, attention_mask=mask).pooler_output

    def _batch(self, step: int, size: int) -> dict[str, Any]:
        """A pure function of (seed, step)."""
        data = self.data
        rng = np.random.default_rng([self.seed, step])
        index = rng.integers(len(data.actions), size=size)
        window = index[:, None] + np.arange(self.config.horizon)
        last = data.last[index][:, None]
        batch: dict[str, Any] = {
            OBS_STATE: self._state[index][:, None],
            ACTION: self._actions[np.minimum(window, last)],
            "action_is_pad": torch.from_numpy(window > last),
            OBS_LANGUAGE_TOKENS: torch.from_numpy(data.instruction[index])[:, None],
            OBS_LANGUAGE_ATTENTION_MASK: torch.ones(size, 1, dtype=torch.long),
        }
        if data.features is not None:
            rows = torch.from_numpy(data.features[index])
            for camera, key in enumerate(self.config.image_features):
                batch[key] = rows[:, None, camera, :, None, None]
        return {key: value.to(self.config.device) for key, value in batch.items()}

    def train(self, steps: int, batch_size: int = 256) -> Iterator[tuple[int, float]]:
        """Yields (step, loss) after each update. The towers are restored when it ends."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=self.config.device == "cpu")
        encoder = self.policy.observation_encoder
        towers = encoder.vision_encoder, encoder.text_encoder
        encoder.text_encoder = _TextTable(towers[1].projection, self._pooled())
        if towers[0] is not None:
            encoder.vision_encoder = nn.Identity()
        optimiser = self.config.get_optimizer_preset().build(
            [p for p in self.policy.parameters() if p.requires_grad]
        )
        scheduler = self.config.get_scheduler_preset().build(optimiser, steps)
        meters = {n: AverageMeter(n) for n in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
        tracker = MetricsTracker(batch_size, len(self.data.actions), int(self.data.instruction.size), meters)
        try:
            for step in range(steps):
                batch = self._batch(step, batch_size)
                update_policy(tracker, self.policy, batch, optimiser, 1.0, accelerator, scheduler)
                yield step, float(tracker.loss.val)
        finally:
            encoder.vision_encoder, encoder.text_encoder = towers
            self.policy.eval()
