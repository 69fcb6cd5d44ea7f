"""Processors of the reward model `gvl`: frames and instruction pass as they are."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import DeviceProcessorStep, PolicyProcessorPipeline, make_policy_processor_pipelines

from lerobot_policy_vg.configuration_gvl import GVLConfig


def make_gvl_pre_post_processors(
    config: GVLConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]:
    """(pre-processor, post-processor). dataset_stats is not used."""
    steps = [DeviceProcessorStep(device="cpu")]  # pictures become tokens on the host
    return make_policy_processor_pipelines(input_steps=steps, output_steps=steps)
