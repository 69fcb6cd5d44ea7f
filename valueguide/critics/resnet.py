"""V-GPS's image encoder: ResNet-34 with GroupNorm, swish, coordinates, and FiLM after every block.

Follows the JAX original (He et al. 2016; Perez et al. 2018) including its padding: "SAME" at stride 2
pads (0, 1) on an even input, for the blocks' convolutions and for the max-pool; the stem pads 3 on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNET34_STAGES = (3, 4, 6, 3)
_GROUPS = 4


def add_coordinates(images: Tensor) -> Tensor:
    """uint8 or float (B, H, W, 3) in 0..255 -> float32 (B, 5, H, W): pixels / 127.5 - 1, row, column."""
    pixels = images.movedim(-1, 1).float() / 127.5 - 1.0
    batch, _, height, width = pixels.shape
    rows, columns = coordinates(height, width, pixels.device)
    grid = [axis.expand(batch, 1, height, width) for axis in (rows, columns)]
    return torch.cat([pixels, *grid], dim=1)


def coordinates(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row (1, 1, H, 1) and column (1, 1, 1, W) positions from -1 to 1."""
    rows = torch.linspace(-1, 1, height, device=device).view(1, 1, height, 1)
    return rows, torch.linspace(-1, 1, width, device=device).view(1, 1, 1, width)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution without bias whose padding is the JAX/TensorFlow "SAME"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = _same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x, (left, right, top, bottom)))


class FiLM(nn.Module):
    """x * (1 + multiplier(language)) + offset(language); zero at the start, so language is ignored."""

    def __init__(self, language_dim: int, channels: int) -> None:
        super().__init__()
        self.multiplier = nn.Linear(language_dim, channels)
        self.offset = nn.Linear(language_dim, channels)
        for layer in (self.multiplier, self.offset):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        return x * (1 + self.multiplier(language)[:, :, None, None]) + self.offset(language)[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and swish, a projected shortcut where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(inputs, outputs, 3, stride)
        self.norm1 = nn.GroupNorm(_GROUPS, outputs, eps=1e-5)
        self.conv2 = SameConv2d(outputs, outputs, 3)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs, eps=1e-5)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                SameConv2d(inputs, outputs, 1, stride), nn.GroupNorm(_GROUPS, outputs, eps=1e-5)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(out)) + self.shortcut(x))


class FiLMResNet(nn.Module):
    """Images (B, H, W, 3) and language (B, L) -> (B, 8 * width): 512 for the ResNet-34."""

    def __init__(
        self, language_dim: int, stages: Sequence[int] = RESNET34_STAGES, width: int = 64, inputs: int = 5
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.stem.weight)
        self.stem_norm = nn.GroupNorm(_GROUPS, width, eps=1e-5)
        self.blocks, self.films = nn.ModuleList(), nn.ModuleList()
        channels = width
        for stage, count in enumerate(stages):
            outputs = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(ResidualBlock(channels, outputs, stride))
                self.films.append(FiLM(language_dim, outputs))
                channels = outputs
        self.dim = channels

    def forward(self, images: Tensor, language: Tensor) -> Tensor:
        x = F.silu(self.stem_norm(self.stem(add_coordinates(images))))
        left, right = _same_padding(x.shape[3], 3, 2)
        top, bottom = _same_padding(x.shape[2], 3, 2)
        x = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), 3, 2)
        for block, film in zip(self.blocks, self.films, strict=True):
            x = film(block(x), language)
        return x.mean(dim=(2, 3))
