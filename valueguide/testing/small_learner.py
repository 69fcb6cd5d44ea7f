"""A learner's surroundings in small: a critic of a few hundred weights, and episodes that a dataset can hold.

One number on a line moves to 0 in steps of 0.1; how far it has to go is all that its return depends on.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.critics.checkpoint import save_critic
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.data.schema import DatasetSpec
from valueguide.online.learner import LearnerSettings
from valueguide.online.service_settings import ServiceSettings
from valueguide.types import Episode, Float32, Observation, Step

TASK, OTHER_TASK = "move it to the middle", "move it somewhere else"
HORIZON, LANGUAGE = 4, 4
SMALL_SPEC = DatasetSpec(
    fps=10, cameras={}, state=("place", "goal"), action=("dx",), environment_state=("distance",),
    horizon=HORIZON, k=0, members=1, robot_type="line",
)  # fmt: skip


def small_episode(number: int, task: str = TASK) -> Episode:
    """8 to 19 steps by the policy, in plans of 4; in every fifth episode a human drives from step 5 on."""
    length = 8 + number * 7 % 12
    steps = []
    for t in range(length):
        human = number % 5 == 4 and t >= 5
        step = Step(
            observation=_seen(number, length - t, task),
            action=np.array([0.1 + 0.001 * (t % 3)], np.float32),
            source="human" if human else "policy",
            intervention=human,
        )
        if not human:
            step.chunk_id, step.chunk_step, step.executed_length = t // HORIZON, t % HORIZON, HORIZON
            step.policy_version = "small"
            if t % HORIZON == 0:
                step.planned_chunk = np.full((HORIZON, 1), 0.1, np.float32)
        steps.append(step)
    steps[-1].terminated = steps[-1].success = True
    steps[-1].reward = 1.0
    return Episode(steps, _seen(number, 0, task), task, {"number": number})


def _seen(number: int, left: int, task: str) -> Observation:
    place = -0.1 * left + 1e-4 * number
    return Observation({}, np.array([place, 0.0], np.float32), task, 0, np.array([-place], np.float32))


def small_embed(sentences: list[str]) -> Float32:
    """float32 (n, LANGUAGE), unit length, by the sentences' lengths."""
    raw = np.array([[1.0, len(s) % 3, len(s) % 5, len(s) % 7] for s in sentences], np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def save_small_critic(folder: Path, seed: int = 0, dropout: float = 0.1) -> str:
    """A random critic of TASK for chunks of HORIZON steps; returns its version."""
    unit = [Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (2, 1)]
    trainer = CriticTrainer(
        CriticSpec(HORIZON, ("dx",), 2, 1, state_names=("place", "goal")),
        NetworkConfig("state", members=2, hidden=8, language_dim=LANGUAGE, dropout=dropout),
        TrainConfig("iql", 0.9, seed=seed),
        Normalizers(Normalizer(np.zeros(1, np.float32), np.ones(1, np.float32), clip=True), *unit),
        small_embed([TASK]),
    )
    return save_critic(folder, trainer, [TASK], {"gamma": 0.9})


def small_settings(root: Path, **changes: Any) -> ServiceSettings:
    """Of a learner in root/learner that follows root/day1, from the critic in root/critic, which is made."""
    if not (root / "critic").exists():
        save_small_critic(root / "critic")
    wanted: dict[str, Any] = {
        "out": str(root / "learner"), "policy": "", "critic": str(root / "critic"),
        "datasets": (str(root / "day1"),), "updates_per_step": 0.5, "min_steps": 20, "save_every": 10,
        "publish_every": 20, "hold_out": 3, "probe_episodes": 2,
    }  # fmt: skip
    names = {field.name for field in fields(LearnerSettings)} & changes.keys()
    learning = {"batch_size": 16, "proposals": 2} | {name: changes.pop(name) for name in names}
    return ServiceSettings(**(wanted | changes), learning=LearnerSettings(**learning))
