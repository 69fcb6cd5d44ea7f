"""Advantage-weighted flow matching: a LeRobot flow policy learns from its rollouts and its corrections.

ALOE (arXiv 2602.12691): minimise the mean of w * (flow-matching loss), with fixed weights w >= 0 a sample.
Equal weights make it imitation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.online.examples import PolicyExamples
from valueguide.online.replay_draw import checked_ratios
from valueguide.online.segments import STORES, Store
from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.flow_loss import check_flow_policy, flow_losses
from valueguide.policies.frozen_towers import PictureMemory, See, frozen_towers_once
from valueguide.types import Float32, Observation

log = logging.getLogger("valueguide.online")
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ImproveSettings:
    """steps: gradient steps. ratios: store -> share of a batch; a store without examples gives its share to
    the others. learning_rate is warmed up over `warmup` steps and then falls as a cosine to zero.
    gradient_clip: norm, 0 for none.
    """

    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-4
    warmup: int = 100
    gradient_clip: float = 1.0
    ratios: Mapping[Store, float] = field(
        default_factory=lambda: {"offline": 0.25, "rollout": 0.5, "correction": 0.25}
    )
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(mismatch("policy improvement", name, "1 or more", getattr(self, name)))
        if not self.learning_rate > 0:
            raise ConfigError(mismatch("policy improvement", "learning_rate", "above 0", self.learning_rate))
        checked_ratios(self.ratios)


class PolicyImprover:
    """Trains `policy` in place on weighted examples; its frozen towers stay frozen.

    weights: float32 (N,), 0 or more, not all 0; scaled to mean 1 over what a batch draws.
    seen: what its frozen vision tower has said of pictures, for the next one that learns from them.
    Raises ConfigError for a policy without a flow-matching loss, DataError for weights that do not fit.
    """

    def __init__(
        self,
        policy: LeRobotPolicy,
        examples: PolicyExamples,
        weights: Float32,
        settings: ImproveSettings,
        seen: PictureMemory | None = None,
    ) -> None:
        check_flow_policy(policy.policy)
        if weights.shape != (len(examples),) or not np.isfinite(weights).all() or (weights < 0).any():
            expected = f"{len(examples)} finite numbers of 0 or more"
            raise DataError(mismatch("policy improvement", "weights", expected, f"{weights.shape}"))
        self.policy, self.examples, self.settings = policy, examples, settings
        self._seen = PictureMemory() if seen is None else seen
        self._chance = _chances(examples, weights, settings.ratios)
        self._weights = weights / float((weights * self._chance).sum())

    def train(self) -> Iterator[tuple[int, float]]:
        """Yields (step, weighted loss) after each update; the policy is frozen again when it ends."""
        settings, model = self.settings, self.policy.policy
        parameters = _learnable(model)
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
        model.train()
        try:
            with frozen_towers_once(model, self._seen) as see, torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                for step in range(settings.steps):
                    optimiser.param_groups[0]["lr"] = self._rate(step)
                    rows = self._rows(step)
                    weights = torch.from_numpy(self._weights[rows]).to(model.config.device)
                    loss = (weights * flow_losses(model, self._frames(rows, see))).mean()
                    value = float(loss.detach())
                    if not np.isfinite(value):
                        hint = "Lower the learning rate"
                        where = f"policy improvement, step {step}"
                        raise DataError(mismatch(where, "loss", "a finite number", value, hint))
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    if settings.gradient_clip > 0:
                        torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
                    optimiser.step()
                    yield step, value
        finally:
            model.eval().requires_grad_(False)

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(self.settings.warmup, 1))
        return self.settings.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * step / self.settings.steps))

    def _rows(self, step: int) -> Int64:
        """A pure function of (seed, step)."""
        rng = np.random.default_rng([self.settings.seed, step])
        reach = np.cumsum(self._chance)
        rows = np.searchsorted(reach, rng.random(self.settings.batch_size) * reach[-1], side="right")
        return np.minimum(rows, len(reach) - 1)

    def _frames(self, rows: Int64, see: See | None) -> list[dict[str, torch.Tensor]]:
        """see: of `frozen_towers_once`, whose outputs stand where pictures would."""
        examples, frames = self.examples, []
        cameras = tuple(self.policy.cameras)
        for back in range(self.policy.history - 1, -1, -1):
            seen = examples.observations(rows, back)
            frame = self._preprocessed(seen, () if see else cameras, examples.chunks[rows])
            if see is not None:
                names = examples.names(rows, back)
                frame |= {self.policy.image_keys[c]: self._seen_once(see, names, seen, c) for c in cameras}
            frames.append(frame)
        device = frames[-1][ACTION].device
        frames[-1]["action_is_pad"] = torch.from_numpy(~examples.known[rows]).to(device)
        return frames

    def _seen_once(
        self, see: See, names: list[tuple[str, int]], seen: list[Observation], camera: str
    ) -> torch.Tensor:
        def pictures(rows: list[int]) -> torch.Tensor:
            return self._preprocessed([seen[row] for row in rows], (camera,))[self.policy.image_keys[camera]]

        return see([(camera, *name) for name in names], pictures)

    def _preprocessed(
        self, seen: list[Observation], cameras: Sequence[str], chunks: Float32 | None = None
    ) -> dict[str, torch.Tensor]:
        extra = [o.environment_state for o in seen if o.environment_state is not None]
        return self.policy.preprocess(
            [o.task for o in seen],
            np.stack([o.state for o in seen]),
            np.stack(extra) if extra else None,
            {c: np.stack([o.images[c] for o in seen]) for c in cameras},
            chunks,
        )


def _chances(examples: PolicyExamples, weights: Float32, ratios: Mapping[Store, float]) -> Float32:
    """float64 (N,), how often each example is drawn: stores by their ratios, examples of a store alike.

    An example without weight teaches nothing, so it is never drawn.
    """
    chance = np.zeros(len(examples), np.float64)
    for store in STORES:
        mine = examples.in_store(store) & (weights > 0)
        if mine.any():
            chance[mine] = ratios.get(store, 0.0) / mine.sum()
    if not chance.sum() > 0:
        expected = f"an example with weight in one of {[s for s in STORES if ratios.get(s, 0) > 0]}"
        raise DataError(mismatch("policy improvement", "examples", expected, "none"))
    return chance / chance.sum()


def _learnable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Everything but frozen CLIP towers; smolvla, pi0 and pi05 say themselves what they freeze."""
    model.requires_grad_(True)
    encoder = getattr(model, "observation_encoder", None)
    if encoder is not None:
        for tower in (encoder.vision_encoder, encoder.text_encoder.text_encoder):
            if tower is not None:
                tower.requires_grad_(False)
    for part in model.modules():
        freeze = getattr(part, "set_requires_grad", None) or getattr(part, "_set_requires_grad", None)
        if freeze is not None:
            freeze()
    return [p for p in model.parameters() if p.requires_grad]
