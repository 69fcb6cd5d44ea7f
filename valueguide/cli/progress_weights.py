"""`valueguide progress weights`: how much each frame's chunk should count in imitation, by its gain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--dataset", type=Path, required=True, help="folder of a scored LeRobotDataset v3")
    one.add_argument("--progress", type=Path, help="parquet of `progress score` (default: the dataset's own)")
    one.add_argument(
        "--chunk", type=int, default=16, help="frames over which the gain is taken: the policy's"
    )
    one.add_argument("--beta", type=float, default=1.0, help="standard deviations of gain for a factor of e")
    one.add_argument("--epsilon", type=float, default=2.0, help="weights in [exp(-epsilon), exp(epsilon)]")
    one.add_argument("--out", type=Path, required=True, help="parquet")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the file; returns counts, the weights' range and their effective sample size."""
    from valueguide.data.reader import EpisodeDataset
    from valueguide.online.advantage import WeightSettings, advantage_weights, effective_sample_size
    from valueguide.progress.columns import read_progress
    from valueguide.progress.gains import above_task_mean, progress_gain, write_weights

    dataset = EpisodeDataset.open(args.dataset)
    value = read_progress(dataset, args.progress).value
    gain = progress_gain(value, dataset.episode_start, dataset.episode_end, args.chunk)
    known = ~np.isnan(gain)
    advantage = above_task_mean(gain, dataset.instruction)[known]
    settings = WeightSettings(args.beta, args.epsilon)
    weight = np.ones(dataset.frames, np.float32)
    if known.any():
        weight[known] = advantage_weights(advantage, np.zeros(len(advantage), bool), settings)
    facts = {
        "chunk": args.chunk,
        "beta": args.beta,
        "epsilon": args.epsilon,
        "frames": dataset.frames,
        "without_gain": int((~known).sum()),
        "least": float(weight.min()),
        "greatest": float(weight.max()),
        "effective_sample_size": effective_sample_size(weight),
    }
    write_weights(args.out, dataset, value, gain, weight, facts)
    print(
        f"{dataset.frames} weights from {facts['least']:.2f} to {facts['greatest']:.2f}, worth "
        f"{facts['effective_sample_size']:.0f} equal ones; {facts['without_gain']} frames without a gain "
        f"count 1; in {args.out}"
    )
    return {"out": str(args.out), **facts}
