"""Trains a critic from chunk transitions: Cal-QL (with its SAC actor), IQL (with its state value) or ALOE.

`update(batch)` is one step; `save`/`resume` continue a run exactly. Nothing here knows where batches
come from.
"""

from __future__ import annotations

import copy
import hashlib
import math
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
from valueguide.critics.processes import ALONE, Processes
from valueguide.critics.proposals import Proposals, check_proposals
from valueguide.errors import ConfigError, DataError, mismatch
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
    negative instructions are of another task. device: where networks and batches live.
    processes: those that train together; each hands `update` its own share of a batch, all in step.
    """

    def __init__(
        self,
        spec: CriticSpec,
        network: NetworkConfig,
        config: TrainConfig,
        normalizers: Normalizers,
        embeddings: Float32,
        task_of: np.ndarray | None = None,
        device: str = "cpu",
        processes: Processes = ALONE,
    ) -> None:
        torch.manual_seed(config.seed)
        self.spec, self.network, self.config, self.normalizers = spec, network, config, normalizers
        self.processes = processes
        self.device = torch.device(device)
        self.embeddings = torch.from_numpy(embeddings).to(self.device)
        tasks = torch.arange(len(embeddings)) if task_of is None else torch.as_tensor(task_of)
        self.task_of = tasks.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        self.critic = CriticNetwork(spec, network).to(self.device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False).eval()
        self.modules: dict[str, nn.Module] = {"critic": self.critic}
        if config.algo == "iql":
            self.value = ValueNetwork(spec, network).to(self.device)
            self.modules["value"] = self.value
        elif config.algo == "calql" and config.sampler == "actor":
            self.actor = ActorNetwork(spec, network).to(self.device)
            self.log_temperature = nn.Parameter(torch.zeros((), device=self.device))
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

    def update(self, batch: ChunkBatch, proposals: Proposals | None = None) -> dict[str, float]:
        """One gradient step on every network and one Polyak step. Returns metrics.

        proposals: with `aloe` or `sampler="proposals"`, and only then. Raises DataError when the batch lacks
        what the encoder needs, when proposals are missing or misshapen, or when a loss is no longer finite.
        """
        if self.config.algo == "distill":
            raise ConfigError(
                "critic training: expected calql, iql or aloe, found distill, see CriticDistiller"
            )
        check_proposals(self.config, batch, proposals)
        self.processes.reseed(self.config.seed, self.step)
        now, after = self.inputs(batch, following=False), self.inputs(batch, following=True)
        valid, reward, discount, returns = (
            torch.from_numpy(a).to(self.device)
            for a in (batch.valid, batch.reward, batch.discount, batch.mc_return)
        )
        actions = self.normalizers.action(torch.from_numpy(batch.actions).to(self.device), valid)
        if self.config.negative_share > 0:
            reward, discount, returns = self._negative_instructions(now, batch, reward, discount, returns)
        if self.config.algo == "iql":
            metrics = self._iql(now, after, actions, valid, reward, discount)
        elif proposals is not None and self.config.algo == "aloe":
            metrics = self._aloe(now, after, actions, valid, reward, discount, proposals.following)
        else:
            metrics = self._calql(now, after, actions, valid, reward, discount, returns, proposals)
        return self.finish(metrics)

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
            language=self.embeddings[torch.from_numpy(batch.instruction).to(self.device)],
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
    ) -> dict[str, float]:
        with torch.no_grad():
            target_q = self.target(self.target.encode(now), actions, valid)
            # A target must not depend on which units dropout leaves out.
            next_value = self.value.eval()(after)
        value = self.value.train()(now)
        value_loss = losses.expectile_loss(target_q.min(0).values, value, self.config.expectile)
        self.descend("value", value_loss)
        target = losses.value_target(reward, discount, next_value)
        q, td = self._td(self.critic.encode(now), actions, valid, target)
        self.descend("critic", td)
        return {
            "td_loss": float(td.detach()),
            "value_loss": float(value_loss.detach()),
            **_q_metrics(q, target),
        }

    def _aloe(
        self,
        now: Inputs,
        after: Inputs,
        actions: Tensor,
        valid: Tensor,
        reward: Tensor,
        discount: Tensor,
        following: Float32,
    ) -> dict[str, float]:
        """Chunked TD to the current policy (ALOE, arXiv 2602.12691, eq. 7 with the done factor of eq. 6)."""
        bootstraps = discount > 0
        chunks = torch.from_numpy(following).to(self.device)
        # Rows without a successor may hold anything: they must reach neither the loss nor the clip rate.
        chunks = torch.where(bootstraps.view(-1, 1, 1, 1), chunks, 0.0)
        counted = bootstraps.view(-1, 1, 1).expand(chunks.shape[:-1])
        with torch.no_grad():
            next_chunks = self.normalizers.action(chunks, counted)
            next_q = self.target.score_many(self.target.encode(after), next_chunks)
        target = losses.policy_target(reward, discount, next_q, self.config.backup)
        q, td = self._td(self.critic.encode(now), actions, valid, target)
        self.descend("critic", td)
        return {"td_loss": float(td.detach()), **_q_metrics(q, target)}

    def _calql(
        self,
        now: Inputs,
        after: Inputs,
        actions: Tensor,
        valid: Tensor,
        reward: Tensor,
        discount: Tensor,
        returns: Tensor,
        proposals: Proposals | None,
    ) -> dict[str, float]:
        count, chunk_shape = self.config.policy_samples, (self.spec.executed_length, self.spec.action_dim)
        gaussian = self.actor.gaussian(now) if proposals is None else None
        with torch.no_grad():
            policy_actions, next_actions, density = self._policy_chunks(gaussian, after, valid, proposals)
            next_q = self.target.score_many(self.target.encode(after), next_actions)
            shape = (len(reward), count, *chunk_shape)
            uniform = torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1
        target = losses.td_target(reward, discount, next_q)
        features = self.critic.encode(now)
        q, td = self._td(features, actions, valid, target)
        sampled = torch.cat([uniform, policy_actions, next_actions], dim=1)
        # A chunk that ended early competes with chunks of its own length, not with whole ones.
        q_uniform, q_policy = self.critic.score_many(features, sampled, valid).tensor_split([count], dim=2)
        sizes = valid.sum(1) * self.spec.action_dim
        conservative = losses.conservative_loss(q, q_uniform, q_policy, density, returns, sizes)
        # The actor steps first, so that both losses belong to the same weights of the critic, as in V-GPS.
        metrics = self._improve_actor(features.detach(), gaussian) if gaussian is not None else {}
        self.descend("critic", td + self.config.conservative_weight * conservative)
        return {
            "td_loss": float(td.detach()),
            "conservative_loss": float(conservative.detach()),
            **metrics,
            **_q_metrics(q, target),
        }

    def _policy_chunks(
        self,
        gaussian: tuple[Tensor, Tensor] | None,
        after: Inputs,
        valid: Tensor,
        proposals: Proposals | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised chunks of the policy at s and at s' (B, P, E, A), and the log densities of both (B, 2P)
        over the steps of the data's chunk."""
        steps = valid.unsqueeze(1)
        if proposals is not None:
            now, following = (
                self.normalizers.action(torch.from_numpy(chunks).to(self.device))
                for chunks in (proposals.current, proposals.following)
            )
            # Nobody knows their density: they weigh as much as uniform ones.
            each = steps * (self.spec.action_dim * losses.uniform_log_density(1))
            return now, following, each.sum(-1).expand(-1, now.shape[1] + following.shape[1])
        assert gaussian is not None
        count, generator = self.config.policy_samples, self.generator
        following, next_density = self.actor.sample(*self.actor.gaussian(after), count, generator)
        now, density = self.actor.sample(*gaussian, count, generator)
        return now, following, (torch.cat([density, next_density], dim=1) * steps).sum(-1)

    def _improve_actor(self, features: Tensor, gaussian: tuple[Tensor, Tensor]) -> dict[str, float]:
        """One step of actor and temperature. features: the critic's, (B, F), without gradient."""
        chosen, density = self.actor.sample(*gaussian, 1, self.generator)
        q = self.critic.score_many(features, chosen).squeeze(-1)
        log_density = density.sum(-1).squeeze(-1)
        loss = losses.actor_loss(q, log_density, self.log_temperature.exp())
        self.descend("actor", loss)
        entropy_target = -float(self.spec.executed_length * self.spec.action_dim)
        self.descend(
            "temperature", losses.temperature_loss(self.log_temperature, log_density, entropy_target)
        )
        return {
            "actor_loss": float(loss.detach()),
            "entropy": float(-log_density.detach().mean()),
            "temperature": float(self.log_temperature.detach().exp()),
        }

    def _td(self, features: Tensor, actions: Tensor, valid: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Q of the data (M, B) and its regression loss: squared error, or HL-Gauss cross-entropy."""
        outputs = self.critic.outputs(features, actions, valid)
        q = self.critic.value(outputs)
        if self.critic.bins is None:
            return q, losses.td_loss(q, target)
        return q, self.critic.bins.loss(outputs, target.expand(q.shape)).mean()

    # -- mechanics -------------------------------------------------------------------------------

    def _negative_instructions(
        self, now: Inputs, batch: ChunkBatch, reward: Tensor, discount: Tensor, returns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Swap some instructions for ones of another task: those chunks lead nowhere."""
        # Drawn for the rows of all processes, so that the stream is where it is in one process alone.
        count = len(reward) * self.processes.count
        mine = self.processes.share(count)
        random = {"generator": self.generator, "device": self.device}
        swap = torch.rand(count, **random)[mine] < self.config.negative_share
        other = torch.randint(len(self.embeddings), (count,), **random)[mine]
        own = torch.from_numpy(batch.instruction).to(self.device)
        swap &= self.task_of[other] != self.task_of[own]
        now.language = torch.where(swap[:, None], self.embeddings[other], now.language)
        failure = self.config.failure_value
        return (
            reward.masked_fill(swap, failure),
            discount.masked_fill(swap, 0.0),
            returns.masked_fill(swap, failure),
        )

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """End a step: DataError for a metric that is not finite, the Polyak step, the count.

        metrics: of this process's rows; returned are the means over all processes.
        """
        metrics = self.processes.average_metrics(metrics, self.device)
        for name, value in metrics.items():
            if not math.isfinite(value):
                where = f"critic training, step {self.step}"
                hint = "Look for non-finite numbers in the dataset, or lower the learning rate"
                raise DataError(mismatch(where, name, "a finite number", value, hint))
        self._polyak()
        self.step += 1
        return metrics | {"action_clip_rate": self.normalizers.action.clip_rate}

    def descend(self, name: str, loss: Tensor) -> None:
        """One gradient step of the network `name` on a loss."""
        optimiser, module = self.optimisers[name], self.modules[name]
        warm = min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1)) if name != "temperature" else 1.0
        optimiser.param_groups[0]["lr"] = self._rates[name] * warm
        optimiser.zero_grad(set_to_none=True)
        parameters = list(module.parameters())
        # Only this network's gradients: the actor's loss passes through the critic without touching it.
        loss.backward(inputs=parameters)
        self.processes.average_gradients(parameters)
        if self.config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        optimiser.step()

    def check_alike(self) -> None:
        """Raises DataError unless all processes are at the same step with the same networks, to the bit."""
        if self.processes.count == 1:
            return
        content = hashlib.sha256(str(self.step).encode())
        for network in (self.critic, self.target):
            for value in network.state_dict().values():
                content.update(value.cpu().numpy().tobytes())
        digest = int.from_bytes(content.digest()[:7])
        self.processes.check_alike("step and weights", digest, self.device)

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
    """Normalised network inputs, on the device of `language`, from physical arrays with a batch dimension.

    Raises DataError when what the encoder reads is missing.
    """
    device = language.device

    def normalized(name: str, value: Float32 | None, normalizer: Normalizer | None) -> Tensor | None:
        if normalizer is None:
            return None
        if value is None:
            raise DataError(mismatch("critic input", name, "an array", "none"))
        return normalizer(torch.from_numpy(value).to(device))

    inputs = Inputs(language=language, state=normalizers.state(torch.from_numpy(state).to(device)))
    if encoder == "state":
        privileged = normalizers.environment_state
        inputs.environment_state = normalized("environment_state", environment_state, privileged)
    elif encoder == "frozen_clip":
        inputs.features = normalized("features", features, normalizers.features)
    elif not images:
        raise DataError(mismatch("critic input", "images", "uint8 pictures", "none"))
    else:
        inputs.images = {name: torch.as_tensor(value).to(device) for name, value in images.items()}
    return inputs


def _q_metrics(q: Tensor, target: Tensor) -> dict[str, float]:
    q = q.detach()
    return {
        "q_mean": float(q.mean()),
        "q_std": float(q.std(correction=0)),
        "target_mean": float(target.mean()),
        "member_spread": float((q.max(0).values - q.min(0).values).mean()),
    }
