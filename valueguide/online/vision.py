"""A critic's frozen vision tower for online learning: each frame goes through it once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.scorer import LearnedCritic
from valueguide.online.replay_features import kept_features
from valueguide.online.segments import Segment
from valueguide.types import Float32, Observation

_ROWS = 64


class FrozenTower:
    """What `loaded` sees in pictures, for the replay's loader and for observations.

    folder: keeps the features of whole segments, under the tower's hash. module, config: of the tower, for
    `save_critic`. Raises ConfigError for a critic that has no tower of its own.
    """

    def __init__(self, loaded: LoadedCritic, folder: str | Path) -> None:
        self._critic = LearnedCritic(loaded, str(folder))
        self.module, self.config = self._critic.tower, loaded.tower_config
        self._cameras = tuple(loaded.spec.cameras)
        self._known: dict[bytes, Float32] = {}
        self.of_segment = kept_features(Path(folder) / _hash(loaded), self._encode)

    def of_observations(self, observations: list[Observation]) -> Float32:
        """float32 (B, F); a `FeaturesOf`. Frames that were seen before are not encoded again."""
        keys = [hashlib.blake2b(digest_size=16) for _ in observations]
        for key, observation in zip(keys, observations, strict=True):
            for camera in self._cameras:
                key.update(np.ascontiguousarray(observation.images[camera]).data)
        names = [key.digest() for key in keys]
        new = {name: i for i, name in enumerate(names) if name not in self._known}
        if new:
            rows = list(new.values())
            images = {c: np.stack([observations[i].images[c] for i in rows]) for c in self._cameras}
            self._known |= dict(zip(new, self._critic.vision_features(images), strict=True))
        return np.stack([self._known[name] for name in names])

    def _encode(self, segment: Segment) -> Float32:
        """float32 (T+1, F)"""
        length = len(segment.state)
        parts = [
            self._critic.vision_features(
                {c: np.array(segment.images[c][first : first + _ROWS]) for c in self._cameras}
            )
            for first in range(0, length, _ROWS)
        ]
        return np.concatenate(parts)


def frozen_tower(loaded: LoadedCritic, folder: str | Path) -> FrozenTower | None:
    """None for a critic that reads no features."""
    return FrozenTower(loaded, folder) if loaded.network_config.encoder == "frozen_clip" else None


def _hash(loaded: LoadedCritic) -> str:
    digest = hashlib.sha256(repr(tuple(loaded.spec.cameras)).encode())
    for name, tensor in sorted(loaded.tower_weights.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]
