"""LeRobot processor steps that valueguide's checkpoints use; importing this module registers them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE


@ProcessorStepRegistry.register(name="valueguide_append_environment_state")
@dataclass
class AppendEnvironmentState(ObservationProcessorStep):
    """Appends `observation.environment_state` to `observation.state`.

    For policies that read only the robot's state (multi_task_dit), on state-only suites.
    """

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        if OBS_ENV_STATE not in observation:
            return observation
        joined = torch.cat([observation[OBS_STATE], observation[OBS_ENV_STATE]], dim=-1)
        return {k: v for k, v in observation.items() if k != OBS_ENV_STATE} | {OBS_STATE: joined}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        observed = dict(features[PipelineFeatureType.OBSERVATION])
        extra = observed.pop(OBS_ENV_STATE, None)
        if extra is not None:
            size = observed[OBS_STATE].shape[0] + extra.shape[0]
            observed[OBS_STATE] = PolicyFeature(type=FeatureType.STATE, shape=(size,))
        return features | {PipelineFeatureType.OBSERVATION: observed}
