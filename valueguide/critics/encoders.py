"""Everything about an observation that does not depend on the action, as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.resnet import RESNET34_STAGES, FiLMResNet, add_coordinates, coordinates
from valueguide.errors import ConfigError, mismatch

_TRUNK = 256


@dataclass
class Inputs:
    """A batch of B observations, vectors already normalised.

    language: (B, L). state: (B, S). environment_state: (B, N) or None. features: (B, F), cached
    outputs of a frozen vision tower, or None. images: camera -> uint8 (B, H, W, 3).
    """

    language: Tensor
    state: Tensor
    environment_state: Tensor | None = None
    features: Tensor | None = None
    images: dict[str, Tensor] = field(default_factory=dict)


class ImageEncoder(nn.Module):
    """One FiLM network for each camera; outputs are concatenated with the proprioception."""

    def __init__(self, spec: CriticSpec, config: NetworkConfig) -> None:
        super().__init__()
        small = config.encoder == "small_film_cnn"
        if not spec.cameras:
            raise ConfigError(mismatch("critic", f"cameras of {config.encoder}", "one or more", "none"))
        self.cameras = tuple(spec.cameras)
        self.nets = nn.ModuleList(
            SmallFiLMNet(config.language_dim) if small else FiLMResNet(config.language_dim, RESNET34_STAGES)
            for _ in self.cameras
        )
        self.use_state = config.use_state
        self.dim = sum(int(net.dim) for net in self.nets) + (spec.state_dim if config.use_state else 0)

    def forward(self, inputs: Inputs) -> Tensor:
        parts = [
            net(inputs.images[name], inputs.language)
            for name, net in zip(self.cameras, self.nets, strict=True)
        ]
        return torch.cat([*parts, *([inputs.state] if self.use_state else [])], dim=1)


class SmallFiLMNet(nn.Module):
    """A few strided convolutions with FiLM and a spatial softmax: for CPUs and small pictures."""

    def __init__(self, language_dim: int, widths: Sequence[int] = (24, 48, 64)) -> None:
        super().__init__()
        self.convs, self.scales, self.shifts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 5
        for width in widths:
            self.convs.append(nn.Conv2d(channels, width, 3, 2, 1))
            self.scales.append(nn.Linear(language_dim, width))
            self.shifts.append(nn.Linear(language_dim, width))
            channels = width
        self.dim = 3 * channels

    def forward(self, images: Tensor, language: Tensor) -> Tensor:
        x = add_coordinates(images).contiguous(memory_format=torch.channels_last)
        for conv, scale, shift in zip(self.convs, self.scales, self.shifts, strict=True):
            x = conv(x) * (1 + scale(language)[:, :, None, None]) + shift(language)[:, :, None, None]
            x = F.silu(x)
        batch, channels, height, width = x.shape
        weight = x.flatten(2).softmax(-1).view(batch, channels, height, width)
        rows, columns = coordinates(height, width, x.device)
        centre = [(weight * rows).sum((2, 3)), (weight * columns).sum((2, 3))]
        return torch.cat([*centre, x.mean((2, 3))], dim=1)


class VectorEncoder(nn.Module):
    """States or cached vision features through a two-layer trunk that the instruction modulates."""

    def __init__(self, spec: CriticSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.from_features = config.encoder == "frozen_clip"
        self.use_state = config.use_state
        size = config.feature_dim if self.from_features else spec.environment_state_dim
        size += spec.state_dim if config.use_state else 0
        if not size:
            raise ConfigError(mismatch("critic", f"inputs of {config.encoder}", "one number or more", "none"))
        self.first, self.second = nn.Linear(size, _TRUNK), nn.Linear(_TRUNK, _TRUNK)
        self.scale = nn.Linear(config.language_dim, _TRUNK)
        self.shift = nn.Linear(config.language_dim, _TRUNK)
        self.norm = nn.LayerNorm(_TRUNK)
        self.dropout = nn.Dropout(config.dropout)
        self.dim = _TRUNK + size

    def forward(self, inputs: Inputs) -> Tensor:
        main = inputs.features if self.from_features else inputs.environment_state
        parts = [p for p in (main, inputs.state if self.use_state else None) if p is not None]
        x = self.dropout(torch.cat(parts, dim=1))
        hidden = self.norm(self.first(x)) * (1 + self.scale(inputs.language)) + self.shift(inputs.language)
        # The raw vector goes on beside the trunk, so that precise positions are not squeezed through it.
        trunk = F.silu(self.second(self.dropout(F.silu(hidden))))
        return torch.cat([self.dropout(trunk), x], dim=1)


def build_encoder(spec: CriticSpec, config: NetworkConfig) -> ImageEncoder | VectorEncoder:
    """The encoder that `config.encoder` names."""
    if config.encoder in ("state", "frozen_clip"):
        return VectorEncoder(spec, config)
    return ImageEncoder(spec, config)
