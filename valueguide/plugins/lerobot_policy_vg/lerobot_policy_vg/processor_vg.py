"""Processors of the value-guided policy: they pass observations and actions on as they are.

Everything that enters and leaves the policy is physical; the base policy and the critic normalise
inside. The steps are those that LeRobot's evaluation overrides by name.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from lerobot_policy_vg.configuration_vg import VGConfig


def make_vg_pre_post_processors(
    config: VGConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]:
    """(pre-processor, post-processor). dataset_stats is not used."""
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device="cpu"),
        ],
        output_steps=[DeviceProcessorStep(device="cpu")],
    )
