"""Trains a base policy on a recorded dataset and saves it as a relocatable LeRobot checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.cli.common import progress_bar
from valueguide.cli.device import usable_device
from valueguide.cli.features import vision_features
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, mismatch
from valueguide.policies.load import save_policy
from valueguide.policies.train import PolicyData, PolicySize, PolicyTrainer, make_config


def train_policy(args: argparse.Namespace) -> dict[str, Any]:
    """Returns where the policy is and its last training loss."""
    device = usable_device(args.device)
    clip = clip_folder(args.backbone)
    dataset = EpisodeDataset.open(args.dataset)
    shown = () if args.state_only else dataset.cameras
    if not shown and dataset.environment_state is None:
        raise ConfigError(mismatch("--state-only", "dataset", "the simulator's state", str(args.dataset)))
    data = policy_data(dataset, clip, device, pictures=bool(shown))
    size = PolicySize(
        horizon=args.horizon,
        hidden_dim=args.hidden_dim,
        num_layers=args.layers,
        learning_rate=args.learning_rate,
    )
    cameras = {name: dataset.image_shape(name) for name in shown}
    config = make_config(size, str(clip), data.state.shape[1], data.actions.shape[1], cameras, device)
    trainer = PolicyTrainer(config, data, cameras, dataset.environment_state is not None, args.seed)
    losses: list[float] = []
    with progress_bar(args.steps, "steps") as bar:
        for step, loss in trainer.train(args.steps, args.batch_size):
            losses.append(loss)
            bar.update(1)
            if step % 100 == 99:
                bar.note(f"loss {np.mean(losses[-100:]):.4f}")
    facts = {
        "dataset": dataset.dataset_id,
        "episodes": dataset.episodes,
        "steps": args.steps,
        "seed": args.seed,
        "action_names": list(dataset.features["action"]["names"] or []),
        "fps": dataset.fps,
    }
    save_policy(
        trainer.policy,
        trainer.preprocessor,
        trainer.postprocessor,
        args.out,
        clip_folder=clip,
        metadata=facts,
        half=args.half,
    )
    return {"policy": str(args.out), "loss": float(np.mean(losses[-200:])), **facts}


def clip_folder(backbone: Path) -> Path:
    """The CLIP folder inside a backbone folder, or the folder itself; ConfigError when there is none."""
    for folder in (backbone / "clip", backbone):
        if (folder / "config.json").exists():
            return folder
    raise ConfigError(
        f"--backbone: expected a folder of `valueguide train backbone`, found no config.json in {backbone}"
    )


def policy_data(
    dataset: EpisodeDataset, clip: Path, device: str = "cpu", pictures: bool = True
) -> PolicyData:
    """All frames, the privileged state appended and the vision features computed (on `device`) where there
    are any. pictures: look at them."""
    state = dataset.state
    if dataset.environment_state is not None:
        state = np.concatenate([state, dataset.environment_state], axis=1)
    features = None
    if dataset.cameras and pictures:
        flat = vision_features(dataset, clip, device)[: len(state)]
        features = flat.reshape(len(state), len(dataset.cameras), -1)
    return PolicyData(
        state=state,
        actions=dataset.action,
        last=last_frames(dataset),
        instruction=dataset.instruction,
        instructions=tuple(dataset.instructions),
        features=features,
    )


def last_frames(dataset: EpisodeDataset) -> NDArray[np.int64]:
    """For every frame, the index of the last frame of its episode."""
    lengths = dataset.episode_end - dataset.episode_start
    return np.repeat(dataset.episode_end - 1, lengths).astype(np.int64)
