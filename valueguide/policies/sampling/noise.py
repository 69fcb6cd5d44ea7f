"""Seeded noise, one row a candidate, that never touches the global random state.

Row i of seed s is the same whatever K is, so candidate 0 of K is what the policy alone would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RowNoise:
    """A stream of standard normal draws; each draw is (K, *shape), filled one candidate after the other."""

    def __init__(self, seed: int) -> None:
        """seed: any integer >= 0."""
        self.seed = seed
        self._draws = 0

    def _generator(self) -> torch.Generator:
        # Separate generators a draw: with one stream, how much the first draw takes would depend on K.
        words = np.random.SeedSequence((self.seed, self._draws)).generate_state(2)
        self._draws += 1
        return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))

    def draw(self, k: int, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """float32 (k, *shape), standard normal, on the device and in the dtype of `like` if given."""
        generator = self._generator()
        rows = torch.stack([torch.randn(*shape, generator=generator) for _ in range(k)])
        return rows if like is None else rows.to(device=like.device, dtype=like.dtype)


class StackedNoise:
    """The streams of B seeds one after the other: draws are (B * K, *shape), each seed's K rows together."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """seeds: B integers >= 0."""
        self.rows = [RowNoise(seed) for seed in seeds]

    def draw(self, count: int, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """float32 (count, *shape), count = B * K; row i * K + j is row j of `RowNoise(seeds[i])`."""
        each = count // len(self.rows)
        stacked = torch.cat([row.draw(each, shape) for row in self.rows])
        return stacked if like is None else stacked.to(device=like.device, dtype=like.dtype)


class GivenNoise(TorchFunctionMode):
    """Inside this context, PyTorch's random functions draw their rows from the given noise.

    For code that offers no way to pass noise in. Calls whose leading size is not `count`, and random
    functions other than those listed, are left alone (run them under `torch.random.fork_rng`).
    """

    def __init__(self, noise: RowNoise | StackedNoise, count: int) -> None:
        super().__init__()
        self._noise, self._count = noise, count

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        shape = _normal_shape(func, args, kwargs)
        if shape is None or not shape or shape[0] != self._count:
            return func(*args, **kwargs)
        like = args[0] if func is torch.randn_like else None
        if func is torch.normal:
            mean, std = (*args, kwargs.get("mean", 0.0), kwargs.get("std", 1.0))[:2]
            like = next((part for part in (mean, std) if isinstance(part, Tensor)), None)
        rows = self._noise.draw(self._count, shape[1:], like)
        if func is torch.normal:
            rows = rows * std + mean
        return rows.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))


def _normal_shape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """The shape that a call draws normal noise for, or None when the call draws none."""
    if func is torch.randn_like:
        return tuple(args[0].shape)
    if func is torch.normal:
        if "size" in kwargs or len(args) > 2:
            return tuple(kwargs.get("size") or args[2])
        mean = args[0] if args else kwargs["mean"]
        return tuple(mean.shape) if isinstance(mean, Tensor) else None
    if func is torch.randn:
        size = kwargs.get("size", args)
        if len(size) == 1 and isinstance(size[0], Sequence):
            size = size[0]
        return tuple(int(n) for n in size)
    return None
