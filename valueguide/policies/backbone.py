"""Trains the small CLIP-class backbone that base policies and critics stand on.

The vision tower learns what the simulator knows about each picture pair (object positions, seen
from the base and from the hand, headings, joints) through linear heads on the CLS vectors that
policies later condition on, helped by a per-patch loss that says where each thing is. The text
tower is distilled from a sentence encoder. Both towers are then frozen, so that features are
computed once and policies and critics train in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionModel

#: CLIP's own pixel statistics are not used: policies here get pixels scaled to [-1, 1].
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5
#: One unit of a position loss is this many metres.
_POSITION_UNIT = 0.05
#: Objects within this distance of the hand (m) matter most.
_NEAR = 0.10


def pixels_to_model(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    tensor = torch.as_tensor(images).movedim(-1, -3).float()
    return (tensor / 255.0 - PIXEL_MEAN) / PIXEL_STD


class LabelHeads(nn.Module):
    """Linear read-outs of the CLS vectors of all cameras, and per-patch pointers.

    sizes: label name -> length, as in `sim.vision_data.LABEL_SIZES`.
    """

    def __init__(self, hidden: int, cameras: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.points = sizes["present"]
        self.linear = nn.ModuleDict(
            {name: nn.Linear(hidden * cameras, size) for name, size in sizes.items() if name != "pixel"}
        )
        self.where = nn.Linear(hidden, self.points)
        self.offset = nn.Linear(hidden, self.points * 2)

    def loss(
        self, cls: Tensor, patches: Tensor, labels: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """cls: (B, cameras, D). patches: (B, cameras, P, D). Returns the loss and readable errors."""
        flat = cls.flatten(1)
        out = {name: head(flat) for name, head in self.linear.items()}
        present = labels["present"]
        xyz_mask = present.repeat_interleave(3, dim=1)
        # What is near the hand decides a grasp; far away, the turned frame only adds the hand's own pose.
        distance = labels["from_hand"].unflatten(1, (-1, 3)).norm(dim=2).repeat_interleave(3, dim=1)
        near = xyz_mask / (1 + (distance / _NEAR) ** 2)
        heading_mask = present[:, : out["heading"].shape[1] // 2].repeat_interleave(2, dim=1)
        terms = {
            "present": F.binary_cross_entropy_with_logits(out["present"], present),
            "position": _masked_l1(out["position"], labels["position"] / _POSITION_UNIT, xyz_mask),
            "from_hand": _masked_l1(out["from_hand"], labels["from_hand"] / _POSITION_UNIT, near),
            "heading": 0.3 * _masked_l1(out["heading"], labels["heading"], heading_mask),
            "joints": F.smooth_l1_loss(out["joints"], labels["joints"] / 0.02),
            "pointer": self._pointer_loss(patches, labels["pixel"]),
        }
        with torch.no_grad():
            close = xyz_mask * (distance < _NEAR)
            gap = (out["from_hand"] * _POSITION_UNIT - labels["from_hand"]).abs() * close
            error_mm = float(1000 * gap.sum() / close.sum().clamp_min(1))
        metrics = {name: float(value.detach()) for name, value in terms.items()}
        return torch.stack(list(terms.values())).sum(), metrics | {"from_hand_mm": error_mm}

    def _pointer_loss(self, patches: Tensor, pixel: Tensor) -> Tensor:
        """Cross-entropy over patches of where each visible centre is, plus its offset inside the patch."""
        batch, cameras, count, _ = patches.shape
        side = math.isqrt(count)
        target = pixel.view(batch, cameras, self.points, 2)
        visible = torch.isfinite(target).all(-1)
        cell = (torch.nan_to_num(target) * side).clamp(0, side - 1e-3)
        index = cell[..., 1].long() * side + cell[..., 0].long()
        logits = self.where(patches).transpose(2, 3)  # (B, cameras, points, P)
        offsets = self.offset(patches).view(batch, cameras, count, self.points, 2).transpose(2, 3)
        chosen = offsets.gather(3, index[..., None, None].expand(-1, -1, -1, 1, 2)).squeeze(3)
        where = F.cross_entropy(logits[visible], index[visible])
        return 0.5 * where + F.smooth_l1_loss(chosen[visible], (cell - cell.floor())[visible])


def _masked_l1(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    loss = F.smooth_l1_loss(predicted, target, reduction="none", beta=0.1)
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def train_vision(
    model: CLIPVisionModel,
    heads: LabelHeads,
    batches: Callable[[int], tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]],
    steps: int,
    learning_rate: float = 1.5e-3,
    start: int = 0,
    optimiser: torch.optim.Optimizer | None = None,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (step, metrics) after each update; one-cycle schedule over `steps`.

    batches(step) -> images uint8 (B, cameras, H, W, 3) and labels, each float32 (B, n).
    """
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = optimiser or torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98)
    )
    for step in range(start, steps):
        warm = min(1.0, (step + 1) / 200)
        rate = learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        images, arrays = batches(step)
        labels = {key: torch.from_numpy(value) for key, value in arrays.items()}
        with torch.autocast("cpu", torch.bfloat16):
            batch, cameras = images.shape[:2]
            tokens = model(pixel_values=pixels_to_model(images).flatten(0, 1)).last_hidden_state
            tokens = tokens.unflatten(0, (batch, cameras))
        loss, metrics = heads.loss(tokens[:, :, 0].float(), tokens[:, :, 1:].float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        yield step, metrics | {"loss": float(loss.detach()), "learning_rate": rate}


class PictureSet:
    """The files written by `sim.vision_data.generate`, as one array of picture pairs with labels."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError when the folder holds no pictures."""
        names = sorted(folder.glob("labels_*.npz"))
        if not names:
            raise FileNotFoundError(folder)
        self._images = [
            np.load(str(n).replace("labels_", "images_")[:-1] + "y", mmap_mode="r") for n in names
        ]
        loaded = [dict(np.load(n)) for n in names]
        self.labels = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0]}
        self._starts = np.cumsum([0, *(len(i) for i in self._images)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
        """Picture pairs uint8 (B, cameras, H, W, 3) and labels at the given positions."""
        part = np.searchsorted(self._starts, index, side="right") - 1
        images = np.stack([self._images[p][i - self._starts[p]] for p, i in zip(part, index, strict=True)])
        return images, {key: value[index] for key, value in self.labels.items()}


def distil_text(
    model: nn.Module,
    tokens: dict[str, Tensor],
    targets: Tensor,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Trains a CLIPTextModel so that its pooled output maps linearly onto sentence embeddings.

    tokens: input_ids and attention_mask, int64 (N, T). targets: float32 (N, D), unit length. The loss
    is one minus the cosine, plus the mean squared error between the batch's similarity matrices, which
    keeps the geometry of the space and not only each point. Yields (step, loss).
    """
    head = nn.Linear(model.config.hidden_size, targets.shape[1])
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        index = torch.from_numpy(rng.integers(len(targets), size=batch_size))
        pooled = model(**{key: value[index] for key, value in tokens.items()}).pooler_output
        predicted, wanted = F.normalize(head(pooled), dim=-1), targets[index]
        geometry = F.mse_loss(F.normalize(pooled, dim=-1) @ F.normalize(pooled, dim=-1).T, wanted @ wanted.T)
        loss = (1 - (predicted * wanted).sum(-1)).mean() + geometry
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        yield step, float(loss)
