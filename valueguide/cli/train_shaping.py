"""`train critic --progress-reward`: potentials from the progress that lies beside each dataset."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.data.mixture import ChunkMixture
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, mismatch
from valueguide.progress.columns import read_progress
from valueguide.types import Float32

#: Entry of a critic's manifest; absent or empty where rewards were not shaped.
SHAPING = "progress_reward"
_ALGORITHMS = ("iql", "calql", "aloe")


def check_shaping(args: argparse.Namespace, init: LoadedCritic | None) -> None:
    """Raises ConfigError for a scale or an algorithm that cannot be, and for an --init of other rewards."""
    scale = args.progress_reward
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(mismatch("--progress-reward", "scale", "0 or more", scale))
    if scale and args.algo not in _ALGORITHMS:
        raise ConfigError(mismatch("--progress-reward", "--algo", " or ".join(_ALGORITHMS), args.algo))
    known = (init.manifest.get(SHAPING) or {}).get("scale", 0.0) if init else scale
    if known != scale:
        hint = f"Use --progress-reward {known:g}"
        raise ConfigError(
            mismatch(f"--init {args.init}", "progress reward", f"{scale:g}", f"{known:g}", hint)
        )


def progress_potentials(args: argparse.Namespace, datasets: list[EpisodeDataset]) -> list[Float32 | None]:
    """For each dataset float32 (N + episodes,), see `shape_rewards`; None where nothing is shaped.

    Final observations have none: only those behind a time limit would need one, and the side file has frames.
    """
    if not args.progress_reward:
        return [None for _ in datasets]
    return [
        np.concatenate(
            [args.progress_reward * read_progress(d).value, np.full(d.episodes, np.nan)], dtype=np.float32
        )
        for d in datasets
    ]


def shaping_facts(args: argparse.Namespace, mixture: ChunkMixture) -> dict[str, Any]:
    """For the manifest; said aloud too, for values of such a critic lie lower by scale times progress."""
    if not args.progress_reward:
        return {}
    frames = sum(loader.dataset.frames for loader in mixture.loaders)
    unshaped = sum(loader.unshaped for loader in mixture.loaders)
    print(f"progress reward: {frames - unshaped} of {frames} steps shaped, {unshaped} without progress")
    return {"scale": args.progress_reward, "steps": frames, "unshaped": unshaped}
