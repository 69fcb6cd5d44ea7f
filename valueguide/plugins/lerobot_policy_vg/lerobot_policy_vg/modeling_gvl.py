"""`GVLRewardModel`: how far along the task is in the newest of a sequence of frames, for LeRobot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

from lerobot_policy_vg.configuration_gvl import GVLConfig
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.frames import sample_positions, shrink
from valueguide.progress.prompt import Wording
from valueguide.progress.request import Clip, Estimate, ProgressBackend
from valueguide.types import UInt8


class GVLRewardModel(PreTrainedRewardModel):
    """Zero-shot: the weights are the vision-language model's own; what is saved is the settings."""

    config_class = GVLConfig
    name = "gvl"

    def __init__(self, config: GVLConfig, **kwargs: Any) -> None:
        super().__init__(config)
        settings = AskSettings(config.shuffles, config.seed, config.reasks, Wording(config.answer))
        self._estimator = GvlEstimator(_backend(config), settings)

    def compute_reward(self, batch: dict[str, Any]) -> Tensor:
        """float32 (B,): progress in [0, 1] at the newest frame, NaN where no answer could be used.

        batch: `image_key`: (B, T, C, H, W) or (B, T, H, W, C), uint8, or float in [0, 1], T >= 2, in the
        order of time from the episode's first frame on; `task_key`: a sentence, or one for each of B.
        """
        clips = self._clips(batch)
        newest = [self.predict_progress(frames, task).values[-1] for frames, task in clips]
        return torch.tensor(np.array(newest, np.float32), device=self.config.device or "cpu")

    def predict_progress(self, frames: UInt8, task: str) -> Estimate:
        """Values and their quality for at most `config.frames` of uint8 (T, H, W, 3) RGB frames."""
        positions = sample_positions(len(frames), self.config.frames)
        shown = np.stack([shrink(frames[i], self.config.longest_edge) for i in positions])
        return self._estimator.estimate(Clip(shown, task, positions))

    def _clips(self, batch: dict[str, Any]) -> list[tuple[UInt8, str]]:
        key = self.config.image_key
        if key not in batch:
            raise DataError(mismatch("reward model gvl", "batch", key, sorted(batch)))
        video = torch.as_tensor(batch[key]).detach().cpu()
        if video.ndim != 5 or video.shape[1] < 2 or 3 not in (video.shape[2], video.shape[-1]):
            shape = tuple(video.shape)
            hint = "A single frame cannot be compared with anything"
            raise DataError(mismatch("reward model gvl", key, "(B, T >= 2, 3, H, W)", shape, hint))
        if video.shape[-1] != 3:
            video = video.movedim(2, -1)
        if video.is_floating_point():
            video = (video * 255.0).round().clamp(0, 255)
        pixels = video.to(torch.uint8).numpy()
        return list(zip(pixels, self._tasks(batch, len(pixels)), strict=True))

    def _tasks(self, batch: dict[str, Any], count: int) -> list[str]:
        found = batch.get(self.config.task_key) or self.config.default_task
        tasks = [found] * count if isinstance(found, str) else list(found)
        if len(tasks) != count or not all(isinstance(task, str) and task for task in tasks):
            raise DataError(mismatch("reward model gvl", self.config.task_key, f"{count} sentences", tasks))
        return tasks

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: RewardModelConfig | None = None,
        **kwargs: Any,
    ) -> GVLRewardModel:
        """From a folder that `save_pretrained` wrote. Raises ConfigError for another reward model's."""
        if not os.path.isdir(pretrained_name_or_path):
            raise ConfigError(
                mismatch("reward model gvl", "folder", "a saved one", f"{pretrained_name_or_path}")
            )
        found = config or RewardModelConfig.from_pretrained(pretrained_name_or_path)
        if not isinstance(found, GVLConfig):
            raise ConfigError(mismatch(f"{pretrained_name_or_path}", "reward model", "gvl", found.type))
        return cls(found).eval()


def _backend(config: GVLConfig) -> ProgressBackend:
    if config.backend == "openai":
        from valueguide.progress.openai import OpenAiBackend

        return OpenAiBackend(config.url, config.model, config.key_variable)
    from valueguide.progress.local import TransformersBackend

    return TransformersBackend(config.model, device=config.device or "cpu")
