"""The flow-matching loss of each sample of a batch, for the LeRobot policies that have one.

smolvla, pi0 and pi05 offer it themselves (`reduction="none"`); multi_task_dit only returns the mean, so its
objective is written out here from its own pieces. Time runs as in each policy's own training: in
multi_task_dit from noise (0) to the action (1), in the others the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from valueguide.errors import ConfigError, mismatch
from valueguide.policies.sampling.base import Frame, stack_history

#: Of these only multi_task_dit and smolvla leave padded steps out; pi0 and pi05 count them, as LeRobot does.
FLOW_POLICIES = ("multi_task_dit", "pi0", "pi05", "smolvla")


def check_flow_policy(policy: PreTrainedPolicy) -> None:
    """Raises ConfigError for a policy without a flow-matching loss."""
    config = policy.config
    if config.type not in FLOW_POLICIES:
        raise ConfigError(mismatch("policy improvement", "policy type", FLOW_POLICIES, config.type))
    if config.type == "multi_task_dit" and not config.is_flow_matching:
        raise ConfigError(mismatch("policy improvement", "objective", "flow_matching", config.objective))


def flow_losses(policy: PreTrainedPolicy, frames: list[Frame]) -> Tensor:
    """float32 (B,): each sample's loss, the mean over its steps and action dimensions; with gradient.

    frames: as many pre-processed batches as the policy looks back, the newest last. It also holds the
        normalised actions (B, H, A) and `action_is_pad`, bool (B, H), True for steps without a target.
    Raises ConfigError for a policy without a flow-matching loss.
    """
    check_flow_policy(policy)
    if policy.config.type != "multi_task_dit":
        losses, _ = policy.forward(dict(frames[-1]), reduction="none")
        return losses
    batch = stack_history(frames, list(policy.config.image_features), [OBS_STATE])
    return _multi_task_dit(policy, batch)


def _multi_task_dit(policy: Any, batch: Frame) -> Tensor:
    """LeRobot's `FlowMatchingObjective.compute_loss`, without the mean over the batch."""
    objective, data = policy.objective, batch[ACTION]
    condition = policy.observation_encoder.encode(batch)
    noise = torch.randn_like(data)
    time = objective._sample_timesteps(len(data), data.device)
    at, shrink = time.view(-1, 1, 1), 1 - objective.config.sigma_min
    velocity = policy.noise_predictor(at * data + (1 - shrink * at) * noise, time, conditioning_vec=condition)
    loss = F.mse_loss(velocity, data - shrink * noise, reduction="none").mean(-1)
    known = ~batch["action_is_pad"]
    return (loss * known).sum(1) / known.sum(1).clamp_min(1)
