"""Trains a critic from chunk transitions: Cal-QL (with its SAC actor) or IQL (with its state value).

`update(batch)` is one step; `save`/`resume` continue a run exactly. Nothing here knows where batches
come from.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from valueguide.critics import losses
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.encoders import Inputs
from valueguide.critics.networks import ActorNetwork, CriticNetwork, ValueNetwork
from valueguide.critics.normalizer import Normalizer
from valueguide.errors import DataError, mismatch
from valueguide.types import ChunkBatch, Float32


@dataclass
class Normalizers:
    """One per kind of number; `environment_state` and `features` are None where they are not used."""

    action: Normalizer
    state: Normalizer
    environment_state: Normalizer | None = None
    features: Normalizer | None = None


class CriticTrainer:
    """Holds the networks, their targets and optimisers.

    embeddings: float32 (number of instructions, L), row i belongs to `ChunkBatch.instruction == i`.
    task_of: optional int (number of instructions,): paraphrases of one task share a number, so that
    negative instructions are of another task.
    """

    def __init__(
        self,
        spec: CriticSpec,
        network: NetworkConfig,
        config: TrainConfig,
        normalizers: Normalizers,
        embeddings: Float32,
        task_of: np.ndarray | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.spec, self.network, self.config, self.normalizers = spec, network, config, normalizers
        self.embeddings = torch.from_numpy(embeddings)
        self.task_of = torch.arange(len(embeddings)) if task_of is None else torch.as_tensor(task_of)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.critic = CriticNetwork(spec, network)
        self.target = copy.deepcopy(self.critic).requires_grad_(False).eval()
        self.modules: dict[str, nn.Module] = {"critic": self.critic}
        if config.algo == "iql":
            self.value = ValueNetwork(spec, network)
            self.modules["value"] = self.value
        else:
            self.actor = ActorNetwork(spec, network)
            self.log_temperature = nn.Parameter(torch.zeros(()))
            self.modules["actor"] = self.actor
            self.modules["temperature"] = nn.ParameterList([self.log_temperature])
        rates = {"actor": config.actor_rate, "temperature": config.temperature_rate}
        self.optimisers = {
            name: torch.optim.AdamW(
                module.parameters(),
                lr=rates.get(name, config.critic_rate),
                weight_decay=0.0 if name == "temperature" else config.weight_decay,
            )
            for name, module in self.modules.items()
        }
        self._rates = {name: o.param_groups[0]["lr"] for name, o in self.optimisers.items()}

    def update(self, batch: ChunkBatch) -> dict[str, float]:
        """One gradient step on every network and one Polyak step. Returns metrics.

        Raises DataError when the batch lacks what the encoder needs.
        """
        now, after = self.inputs(batch, following=False), self.inputs(batch, following=True)
        actions = self.normalizers.action(torch.from_numpy(batch.actions))
        valid = torch.from_numpy(batch.valid)
        reward, discount = torch.from_numpy(batch.reward), torch.from_numpy(batch.discount)
        returns = torch.from_numpy(batch.mc_return)
        if self.config.negative_share > 0:
            reward, discount, returns = self._negative_instructions(now, batch, reward, discount, returns)
        step = self._iql if self.config.algo == "iql" else self._calql
        metrics = step(now, after, actions, valid, reward, discount, returns)
        self._polyak()
        self.step += 1
        return metrics | {"action_clip_rate": self.normalizers.action.clip_rate}

    def inputs(self, batch: ChunkBatch, following: bool) -> Inputs:
        """The normalised observations before the chunk, or after it (`following`)."""
        pick = (
            (lambda name: getattr(batch, "next_" + name))
            if following
            else (lambda name: getattr(batch, name))
        )
        return build_inputs(
            self.network.encoder,
            self.normalizers,
            language=self.embeddings[torch.from_numpy(batch.instruction)],
            state=pick("state"),
            environment_state=pick("environment_state"),
            features=pick("features"),
            images=pick("images"),
        )

    # -- objectives ------------------------------------------------------------------------------

    def _iql(
        self,
        now: Inputs,
        after: Inputs,
        actions: Tensor,
        valid: Tensor,
        reward: Tensor,
        discount: Tensor,
        _: Tensor,
    ) -> dict[str, float]:
        with torch.no_grad():
            target_q = self.target(self.target.encode(now), actions, valid)
            next_value = self.value(after)
        value = self.value(now)
        value_loss = losses.expectile_loss(target_q.min(0).values, value, self.config.expectile)
        self._descend("value", value_loss)
        target = losses.value_target(reward, discount, next_value)
        q, td = self._td(self.critic.encode(now), actions, valid, target)
        self._descend("critic", td)
        return {
            "td_loss": float(td.detach()),
            "value_loss": float(value_loss.detach()),
            **_q_metrics(q, target),
        }

    def _calql(
        self,
        now: Inputs,
        after: Inputs,
        actions: Tensor,
        valid: Tensor,
        reward: Tensor,
        discount: Tensor,
        returns: Tensor,
    ) -> dict[str, float]:
        count = self.config.policy_samples
        steps, size = self.actor.shape
        with torch.no_grad():
            next_actions, next_density = self.actor(after, count, self.generator)
            next_q = self._score(self.target, self.target.encode(after), next_actions)
            policy_actions, density = self.actor(now, count, self.generator)
        target = losses.td_target(reward, discount, next_q)
        features = self.critic.encode(now)
        q, td = self._td(features, actions, valid, target)
        uniform = torch.rand((len(reward), count, steps, size), generator=self.generator) * 2 - 1
        sampled = torch.cat([policy_actions, next_actions], dim=1)
        conservative = losses.conservative_loss(
            q,
            self._score(self.critic, features, uniform),
            self._score(self.critic, features, sampled),
            torch.cat([density, next_density], dim=1),
            returns,
            steps * size,
        )
        self._descend("critic", td + self.config.conservative_weight * conservative)
        actor_loss, entropy = self._improve_actor(now)
        return {
            "td_loss": float(td.detach()),
            "conservative_loss": float(conservative.detach()),
            "actor_loss": actor_loss,
            "entropy": entropy,
            "temperature": float(self.log_temperature.detach().exp()),
            **_q_metrics(q, target),
        }

    def _improve_actor(self, now: Inputs) -> tuple[float, float]:
        chosen, density = self.actor(now, 1, self.generator)
        with torch.no_grad():
            features = self.critic.encode(now)
        q = self._score(self.critic, features, chosen).squeeze(-1)
        loss = losses.actor_loss(q, density.squeeze(-1), self.log_temperature.exp())
        self._descend("actor", loss)
        entropy_target = -float(np.prod(self.actor.shape))
        self._descend(
            "temperature", losses.temperature_loss(self.log_temperature, density.squeeze(-1), entropy_target)
        )
        return float(loss.detach()), float(-density.detach().mean())

    def _td(self, features: Tensor, actions: Tensor, valid: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Q of the data (M, B) and its regression loss: squared error, or HL-Gauss cross-entropy."""
        outputs = self.critic.outputs(features, actions, valid)
        q = self.critic.value(outputs)
        if self.critic.bins is None:
            return q, losses.td_loss(q, target)
        return q, self.critic.bins.loss(outputs, target.expand(q.shape)).mean()

    @staticmethod
    def _score(network: CriticNetwork, features: Tensor, actions: Tensor) -> Tensor:
        """Q (M, B, P) of actions (B, P, E, A), all steps valid."""
        batch, count, steps, _ = actions.shape
        valid = torch.ones((batch * count, steps), dtype=torch.bool)
        q = network(features.repeat_interleave(count, 0), actions.flatten(0, 1), valid)
        return q.unflatten(1, (batch, count))

    # -- mechanics -------------------------------------------------------------------------------

    def _negative_instructions(
        self, now: Inputs, batch: ChunkBatch, reward: Tensor, discount: Tensor, returns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Swap some instructions for ones of another task: those chunks lead nowhere."""
        count = len(reward)
        swap = torch.rand(count, generator=self.generator) < self.config.negative_share
        other = torch.randint(len(self.embeddings), (count,), generator=self.generator)
        own = torch.from_numpy(batch.instruction)
        swap &= self.task_of[other] != self.task_of[own]
        now.language = torch.where(swap[:, None], self.embeddings[other], now.language)
        failure = torch.tensor(self.config.failure_value)
        return (
            torch.where(swap, failure, reward),
            torch.where(swap, torch.zeros(()), discount),
            torch.where(swap, failure, returns),
        )

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser, module = self.optimisers[name], self.modules[name]
        warm = min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1)) if name != "temperature" else 1.0
        optimiser.param_groups[0]["lr"] = self._rates[name] * warm
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(module.parameters(), self.config.gradient_clip)
        optimiser.step()

    @torch.no_grad()
    def _polyak(self) -> None:
        for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, self.config.polyak)


def build_inputs(
    encoder: str,
    normalizers: Normalizers,
    *,
    language: Tensor,
    state: Float32,
    environment_state: Float32 | None,
    features: Float32 | None,
    images: dict[str, Any],
) -> Inputs:
    """Normalised network inputs from physical arrays with a batch dimension; checks what is there."""
    wanted = {"state": "environment_state", "frozen_clip": "features"}.get(encoder, "images")
    extras: dict[str, Any] = {}
    if wanted == "images":
        if not images:
            raise DataError(mismatch("critic input", "images", "uint8 pictures", "none"))
        extras["images"] = {name: torch.as_tensor(value) for name, value in images.items()}
    else:
        value, normalizer = locals()[wanted], getattr(normalizers, wanted)
        if normalizer is not None:
            if value is None:
                raise DataError(mismatch("critic input", wanted, "an array", "none"))
            extras[wanted] = normalizer(torch.from_numpy(value))
    return Inputs(language=language, state=normalizers.state(torch.from_numpy(state)), **extras)


def _q_metrics(q: Tensor, target: Tensor) -> dict[str, float]:
    q = q.detach()
    return {
        "q_mean": float(q.mean()),
        "q_std": float(q.std()),
        "target_mean": float(target.mean()),
        "member_spread": float((q.max(0).values - q.min(0).values).mean()),
    }
