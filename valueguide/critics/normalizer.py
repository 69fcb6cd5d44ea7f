"""One normaliser for training and serving, kept in the checkpoint; it counts what falls outside its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valueguide.errors import CheckpointError, DataError
from valueguide.types import Float32

#: Actions stay this far inside [-1, 1], where a tanh-Gaussian still has a finite density.
EDGE = 1e-5
#: Numbers at the very ends of the range (a closed gripper, a saturated stick) are not outside of it.
_TOLERANCE = 1e-3
_FLAT = 1e-6


@dataclass
class Normalizer:
    """x -> (x - offset) / scale, per dimension, optionally clipped to +-(1 - EDGE).

    offset, scale: float32 (D,). seen, clipped: how many numbers passed, and how many lay outside [-1, 1].
    """

    offset: Float32
    scale: Float32
    clip: bool = False
    seen: int = 0
    clipped: int = 0

    @classmethod
    def min_max(cls, values: Float32, clip: bool = True) -> Normalizer:
        """Maps the smallest and largest value of each column of (N, D) to -1 and 1."""
        _require_finite(values)
        return cls._between(values.min(0), values.max(0), clip)

    @classmethod
    def quantiles(
        cls, values: Float32, low: float = 0.001, high: float = 0.999, clip: bool = True
    ) -> Normalizer:
        """Maps two quantiles of each column of (N, D) to -1 and 1 (V-GPS: 0.001 and 0.999).

        A few outliers then do not squeeze all other actions together.
        """
        _require_finite(values)
        bottom, top = np.quantile(values.astype(np.float64), [low, high], axis=0)
        return cls._between(bottom, top, clip)

    @classmethod
    def _between(cls, low: NDArray[Any], high: NDArray[Any], clip: bool) -> Normalizer:
        scale = np.where(high - low > _FLAT, (high - low) / 2, 1.0)
        return cls(((low + high) / 2).astype(np.float32), scale.astype(np.float32), clip)

    @classmethod
    def mean_std(cls, values: Float32) -> Normalizer:
        """Zero mean and unit variance per column of (N, D); constant columns become zero."""
        _require_finite(values)
        std = values.std(0, dtype=np.float64)
        scale = np.where(std > _FLAT, std, 1.0)
        return cls(values.mean(0, dtype=np.float64).astype(np.float32), scale.astype(np.float32))

    def __call__(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(..., D) physical -> (..., D) normalised, float32. valid: bool (...,), which rows are counted."""
        offset, scale = (torch.from_numpy(a).to(x.device) for a in (self.offset, self.scale))
        out = (x.float() - offset) / scale
        if not self.clip:
            return out
        counted = out if valid is None else out[valid]
        self.seen += counted.numel()
        self.clipped += int((counted.abs() > 1.0 + _TOLERANCE).sum())
        return out.clamp(EDGE - 1.0, 1.0 - EDGE)

    @property
    def clip_rate(self) -> float:
        """Share of all numbers so far outside the range; well above 0 means another action scale."""
        return self.clipped / self.seen if self.seen else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist(), "clip": self.clip}

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: str = "normaliser") -> Normalizer:
        """Raises CheckpointError when a field is missing or a number is not finite."""
        try:
            offset = np.asarray(raw["offset"], np.float32)
            scale = np.asarray(raw["scale"], np.float32)
            clip = bool(raw["clip"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: expected offset, scale and clip, found {error}") from error
        if offset.shape != scale.shape or not np.isfinite([*offset, *scale]).all() or (scale <= 0).any():
            raise CheckpointError(f"{where}: expected finite offsets and positive scales of one length")
        return cls(offset, scale, clip)


def _require_finite(values: Float32) -> None:
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"normaliser: expected a finite (N, D) array with N > 0, found shape {values.shape}")
