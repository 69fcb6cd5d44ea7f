"""A replay of noise with the sizes and the make-up of a real one, for measuring what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.online.replay import ReplayWriter
from valueguide.online.segments import End, Segment, Store
from valueguide.types import Float32, Source, UInt8


@dataclass(frozen=True)
class ReplaySize:
    """How many segments each store holds. The default is what one round of `train online` learns from:
    60 demonstrations of each of five tasks, 20 episodes of each, 0.9 takeovers an episode.
    """

    offline: int = 300
    rollout: int = 100
    correction: int = 90


#: Store -> who acts, how its segments end, and between how many steps they last.
_MAKE_UP: dict[Store, tuple[Source, End, tuple[int, int]]] = {
    "offline": ("expert", "success", (30, 51)),
    "rollout": ("policy", "takeover", (20, 41)),
    "correction": ("human", "success", (15, 31)),
}


def noise_replay(
    root: Path,
    spec: CriticSpec,
    network: NetworkConfig,
    instructions: Sequence[str],
    cameras: Mapping[str, tuple[int, int]],
    size: ReplaySize,
    seed: int = 0,
    horizon: int = 8,
) -> int:
    """Fills the new folder `root`; returns the number of observations in it.

    spec, network: whose inputs the segments hold. cameras: name -> (height, width) of their pictures.
    horizon: H of the rollouts' plans, which start every E steps. Every number depends on the seed alone.
    """
    rng = np.random.default_rng(seed)
    observations = 0
    with ReplayWriter(root) as writer:
        for store, (source, end, lengths) in _MAKE_UP.items():
            for number in range(getattr(size, store)):
                steps = int(rng.integers(*lengths))
                observations += steps + 1
                writer.append(
                    Segment(
                        **_numbers(rng, steps, spec, network, cameras),
                        **_plans(rng, steps, spec, horizon if source == "policy" else 0),
                        source=source,
                        end=end,
                        store=store,
                        task=str(rng.choice(instructions)),
                        episode=f"{store}-{number}",
                        episode_steps=steps,
                        episode_success=end == "success",
                        episode_terminated=True,
                    )
                )
    return observations


def _numbers(
    rng: np.random.Generator,
    steps: int,
    spec: CriticSpec,
    network: NetworkConfig,
    cameras: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    def normal(rows: int, width: int) -> Float32 | None:
        return rng.normal(size=(rows, width)).astype(np.float32) if width else None

    def pictures(height: int, width: int) -> UInt8:
        return rng.integers(0, 256, (steps + 1, height, width, 3), np.uint8)

    return {
        "state": normal(steps + 1, spec.state_dim),
        "action": rng.uniform(-1, 1, (steps, spec.action_dim)).astype(np.float32),
        "environment_state": normal(steps + 1, spec.environment_state_dim),
        "features": normal(steps + 1, network.feature_dim),
        "images": {name: pictures(*shape) for name, shape in cameras.items()},
    }


def _plans(rng: np.random.Generator, steps: int, spec: CriticSpec, horizon: int) -> dict[str, Any]:
    """Plans of `horizon` steps, one every E; none for 0."""
    number = np.arange(steps)
    start = number[:: spec.executed_length] if horizon else number[:0]
    return {
        "chunk_id": number // spec.executed_length if horizon else np.full(steps, -1),
        "chunk_step": number % spec.executed_length if horizon else np.full(steps, -1),
        "planned": rng.uniform(-1, 1, (len(start), horizon, spec.action_dim)).astype(np.float32),
        "planned_start": start,
    }
