"""HL-Gauss value head: a histogram over values, trained by cross-entropy (Farebrother et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Width of the target Gaussian in bins (section 3.2 of the paper).
_SIGMA_IN_BINS = 0.75
#: The support reaches this many sigmas beyond the value range, so that targets at its ends lose no mass.
_PADDING = 3.0


class HLGauss(nn.Module):
    """float32 logits of `bins` bins <-> values in [low, high], discounted returns; others are clamped to it.

    The bins reach three sigmas beyond both ends, so there must be more than 4.5 of them.
    """

    def __init__(self, bins: int, low: float, high: float) -> None:
        super().__init__()
        width = (high - low) / (bins - 2 * _PADDING * _SIGMA_IN_BINS)
        self.low, self.high, self.sigma = low, high, _SIGMA_IN_BINS * width
        start = low - _PADDING * self.sigma
        edges = start + width * torch.arange(bins + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", (edges[:-1] + edges[1:]) / 2, persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """(..., bins) -> (...): the expectation."""
        return (logits.softmax(-1) * self.centres).sum(-1)

    def target(self, values: Tensor) -> Tensor:
        """(...) -> (..., bins): the mass of N(value, sigma) in each bin, normalised."""
        clamped = values.clamp(self.low, self.high).unsqueeze(-1)
        cdf = torch.special.ndtr((self.edges - clamped) / self.sigma)
        mass = cdf[..., 1:] - cdf[..., :-1]
        return mass / mass.sum(-1, keepdim=True)

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy (...) of logits (..., bins) against the histogram of values (...)."""
        return -(self.target(values) * logits.log_softmax(-1)).sum(-1)
