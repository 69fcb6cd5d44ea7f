"""Episodes in which brightness is progress: what a small vision-language model can learn within a minute."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.types import Episode, Observation, Step

TASKS = {"push_it": "push it", "pull_it": "pull it", "lift_it": "lift it"}
#: Steps of an episode; it has one observation more.
LENGTH = 6


def brightness_dataset(root: Path, episodes: int = 12) -> EpisodeDataset:
    """Every second episode succeeds, the first one first."""
    spec = DatasetSpec(fps=10, cameras={"front": (16, 16)}, state=("x",), action=("dx",))
    with EpisodeWriter(root, spec) as writer:
        for i in range(episodes):
            writer.save(brightness_episode(list(TASKS)[i % 3], success=i % 2 == 0, seed=i))
    return EpisodeDataset.open(root)


def brightness_episode(task: str, success: bool, seed: int) -> Episode:
    """Brightness rises to 1 in a success; in a failure it rises to a half and falls back."""
    up = np.linspace(0.1, 1.0, LENGTH + 1)
    true = up if success else np.minimum(up, up[::-1])
    steps = [
        Step(
            _observation(true[i], TASKS[task]),
            np.zeros(1, np.float32),
            success=success and i == LENGTH - 1,
            terminated=i == LENGTH - 1,
        )
        for i in range(LENGTH)
    ]
    facts = {"task_name": task, "seed": seed, "progress": [round(float(p), 4) for p in true]}
    return Episode(steps, _observation(true[-1], TASKS[task]), TASKS[task], facts)


def _observation(level: float, task: str) -> Observation:
    image = np.full((16, 16, 3), round(250 * level), np.uint8)
    return Observation({"front": image}, np.zeros(1, np.float32), task)
