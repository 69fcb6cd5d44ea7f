"""Q over chunks (an ensemble), the state value of IQL, and the actor of Cal-QL."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.encoders import Inputs, build_encoder
from valueguide.critics.hl_gauss import HLGauss

_LOG_STD_RANGE = (-5.0, 2.0)


class EnsembleLinear(nn.Module):
    """M linear layers at once: (M, B, inputs) -> (M, B, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        for member in self.weight:
            nn.init.orthogonal_(member)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleMLP(nn.Module):
    """M two-layer networks on the same input; the output layer is shared or one each.

    As in V-GPS: hidden-hidden, swish, a final dense layer of `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__()
        members, hidden = config.members, config.hidden
        self.members = members
        self.first = EnsembleLinear(members, inputs, hidden)
        self.second = EnsembleLinear(members, hidden, hidden)
        self.norms = nn.ModuleList(
            nn.LayerNorm(hidden) if config.layer_norm else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.out: nn.Module = (
            nn.Linear(hidden, outputs) if config.shared_output else EnsembleLinear(members, hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs), or one input for each member (M, B, inputs) -> (M, B, outputs)."""
        return self._after_first(self.first(self._for_each_member(x)))

    def pairs(self, shared: Tensor, own: Tensor) -> Tensor:
        """(B, S) or (M, B, S), and (B, P, inputs - S) -> (M, B * P, outputs): each shared row with its P.

        The same as `forward` on their concatenation, but the shared part of the first layer, which is most
        of its inputs, runs once for each of the B rows.
        """
        weight, size = self.first.weight, shared.shape[-1]
        once = torch.baddbmm(self.first.bias, self._for_each_member(shared), weight[:, :size])
        each = torch.bmm(self._for_each_member(own.flatten(0, 1)), weight[:, size:])
        return self._after_first((once.unsqueeze(2) + each.unflatten(1, own.shape[:2])).flatten(1, 2))

    def _for_each_member(self, x: Tensor) -> Tensor:
        return x if x.dim() == 3 else x.unsqueeze(0).expand(self.members, *x.shape)

    def _after_first(self, h: Tensor) -> Tensor:
        h = self.dropout(F.silu(self.norms[0](h)))
        h = self.dropout(F.silu(self.norms[1](self.second(h))))
        return self.out(h)


class CriticNetwork(nn.Module):
    """Q(s, a_1..E, language): encode once, then score any number of chunks."""

    def __init__(self, spec: CriticSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        count = config.members if config.own_encoders else 1
        self.encoders = nn.ModuleList(build_encoder(spec, config) for _ in range(count))
        self.bins = HLGauss(config.bins, *config.value_range) if config.bins else None
        steps = spec.executed_length
        # With one step there is nothing to mask, and the network is exactly V-GPS's.
        self._mask_inputs = steps if steps > 1 else 0
        size = self.encoders[0].dim + steps * spec.action_dim + self._mask_inputs
        self.head = EnsembleMLP(size, config.bins or 1, config)

    def encode(self, inputs: Inputs) -> Tensor:
        """The action-free part: (B, F), or (M, B, F) when every member has its own encoder."""
        encoded = [encoder(inputs) for encoder in self.encoders]
        return torch.stack(encoded) if self.config.own_encoders else encoded[0]

    def outputs(self, features: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Raw head outputs (M, B, 1 or bins). actions: normalised (B, E, A). valid: bool (B, E)."""
        chunk = self._chunk_inputs(actions, valid)
        if features.dim() == 3:
            chunk = chunk.expand(len(features), *chunk.shape)
        return self.head(torch.cat([features, chunk], dim=-1))

    def score_many(self, features: Tensor, actions: Tensor, valid: Tensor | None = None) -> Tensor:
        """Q (M, B, P) of P chunks for each of B encodings. actions: normalised (B, P, E, A).

        valid: bool (B, E), which steps of all P chunks count; every step without it.
        """
        if valid is None:
            valid = actions.new_ones(actions.shape[:-1], dtype=torch.bool)
        else:
            valid = valid.unsqueeze(1).expand(actions.shape[:-1])
        q = self.value(self.head.pairs(features, self._chunk_inputs(actions, valid)))
        return q.unflatten(1, actions.shape[:2])

    def _chunk_inputs(self, actions: Tensor, valid: Tensor) -> Tensor:
        chunk = (actions * valid.unsqueeze(-1)).flatten(-2)
        return torch.cat([chunk, valid.to(chunk.dtype)], dim=-1) if self._mask_inputs else chunk

    def value(self, outputs: Tensor) -> Tensor:
        """Head outputs (M, B, ·) -> values (M, B)."""
        return self.bins.mean(outputs) if self.bins is not None else outputs.squeeze(-1)

    def forward(self, features: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Q values (M, B)."""
        return self.value(self.outputs(features, actions, valid))


class ValueNetwork(nn.Module):
    """V(s, language) for IQL, with an encoder of its own."""

    def __init__(self, spec: CriticSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(spec, config)
        self.layers = nn.Sequential(
            nn.Linear(self.encoder.dim, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 1),
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """(B,)"""
        return self.layers(self.encoder(inputs)).squeeze(-1)


class ActorNetwork(nn.Module):
    """tanh-Gaussian over a whole normalised chunk (E*A numbers), with an encoder of its own."""

    def __init__(self, spec: CriticSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(spec, config)
        self.shape = (spec.executed_length, spec.action_dim)
        self.trunk = nn.Sequential(
            nn.Linear(self.encoder.dim, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
        )
        self.mean = nn.Linear(config.hidden, math.prod(self.shape))
        self.log_std = nn.Linear(config.hidden, math.prod(self.shape))

    def forward(self, inputs: Inputs, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What `sample` returns, for a batch of observations."""
        return self.sample(*self.gaussian(inputs), samples, generator)

    def gaussian(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, E * A) before the tanh."""
        hidden = self.trunk(self.encoder(inputs))
        return self.mean(hidden), self.log_std(hidden).clamp(*_LOG_STD_RANGE)

    def sample(
        self, mean: Tensor, log_std: Tensor, samples: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """actions (B, samples, E, A) in (-1, 1) and the log density (B, samples, E) of each of their steps.

        Both are reparameterised. mean, log_std: of `gaussian`.
        """
        mean, log_std = mean.unsqueeze(1), log_std.unsqueeze(1)
        shape = (len(mean), samples, mean.shape[-1])
        noise = torch.randn(shape, generator=generator, device=mean.device)
        raw = mean + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), written so that large |x| does not underflow
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        density = (gaussian - squash).unflatten(-1, self.shape).sum(-1)
        return torch.tanh(raw).unflatten(-1, self.shape), density
