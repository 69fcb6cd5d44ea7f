"""The objectives, as pure functions of tensors. Shapes: M members, B batch, P sampled actions.

Sources: V-GPS's code (TD without the half, alpha 5, 12 samples), Cal-QL (Nakamoto et al. 2023, eq. 6),
CQL (Kumar et al. 2020), IQL (Kostrikov et al. 2022, eq. 5 and 6), ALOE (arXiv 2602.12691, eq. 7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, next_q: Tensor) -> Tensor:
    """y = r + d * max over P of (min over M of Q). reward, discount: (B,); next_q: (M, B, P). No gradient.

    discount is gamma^n, and 0 where the transition ends in a terminal state.
    """
    return (reward + discount * next_q.min(0).values.max(-1).values).detach()


def policy_target(reward: Tensor, discount: Tensor, next_q: Tensor, backup: str = "policy") -> Tensor:
    """ALOE: y = r + d * agg over P of (min over M of Q). No gradient.

    reward, discount: (B,); next_q: (M, B, P), the target network's values of chunks that the current policy
    proposes at s'. backup: "policy" takes the mean over P (the value of the policy alone), "best_of_n" the
    maximum (the value of the policy that a critic steers). Where the discount is 0, y is the reward whatever
    next_q holds, NaN included.
    """
    pessimistic = next_q.min(0).values
    value = pessimistic.max(-1).values if backup == "best_of_n" else pessimistic.mean(-1)
    return (reward + torch.where(discount > 0, discount * value, 0.0)).detach()


def value_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """IQL: y = r + d * V(s'). All (B,). No gradient."""
    return (reward + discount * next_value).detach()


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Mean over members and batch of (Q - y)^2, without a half. q: (M, B), target: (B,)."""
    return ((q - target) ** 2).mean()


def expectile_loss(q: Tensor, value: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(Q < V)| * (Q - V)^2. q: (B,), the minimum over members of the target network."""
    gap = q.detach() - value
    weight = torch.where(gap < 0, 1 - expectile, expectile)
    return (weight * gap**2).mean()


def conservative_loss(
    q_data: Tensor,
    q_uniform: Tensor,
    q_policy: Tensor,
    log_density_policy: Tensor,
    mc_return: Tensor,
    chunk_size: Tensor | int,
) -> Tensor:
    """Cal-QL's regulariser: mean of logsumexp(Q - log density) over all samples, minus Q of the data.

    q_data: (M, B). q_uniform: (M, B, U), actions uniform in [-1, 1]^chunk_size; chunk_size: one number, or
    (B,) where chunks end early. q_policy: (M, B, P) with log_density_policy (B, P). mc_return: (B,), -inf
    where unknown. Only the policy's samples are lifted to the return (max(Q, G)); with G = -inf this is CQL.
    """
    calibrated = torch.maximum(q_policy, mc_return.view(1, -1, 1).expand_as(q_policy))
    size = torch.as_tensor(chunk_size, device=q_data.device).view(1, -1, 1)
    uniform = q_uniform - size * uniform_log_density(1)
    samples = torch.cat([uniform, calibrated - log_density_policy.detach()], dim=-1)
    return (torch.logsumexp(samples, dim=-1) - q_data).mean()


def uniform_log_density(chunk_size: int) -> float:
    """log density of the uniform distribution on [-1, 1]^chunk_size."""
    return chunk_size * math.log(0.5)


def actor_loss(q: Tensor, log_density: Tensor, temperature: Tensor) -> Tensor:
    """SAC: mean of temperature * log pi - min over members of Q. q: (M, B), log_density: (B,)."""
    return (temperature.detach() * log_density - q.min(0).values).mean()


def temperature_loss(log_temperature: Tensor, log_density: Tensor, target_entropy: float) -> Tensor:
    """Raises the temperature while the entropy is below its target. log_density: (B,)."""
    return -(log_temperature.exp() * (log_density.detach() + target_entropy)).mean()
