"""Trains a critic on recorded datasets and saves it with its normalisers, instructions and metrics."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from valueguide.cli.common import progress_bar
from valueguide.cli.device import usable_device
from valueguide.cli.features import vision_features
from valueguide.cli.train_policy import clip_folder
from valueguide.critics.checkpoint import (
    TRAINING_STATE,
    resume_training,
    save_critic,
    save_training,
)
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.language import MiniLMEncoder
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.data.frames import FrameCache
from valueguide.data.loader import ChunkLoader, ObservationKind
from valueguide.data.mixture import ChunkMixture
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, mismatch
from valueguide.types import ChunkBatch, Float32

#: Every tenth episode is held back for the metrics in the manifest.
_HOLD_EVERY = 10
_METRIC_ROWS, _METRIC_PICTURES = 4096, 512
#: The spread limit is this many times the 99.9th percentile of the spread on held-back data.
_SPREAD_MARGIN = 2.0


def train_critic(args: argparse.Namespace) -> dict[str, Any]:
    """Returns where the critic is, its version and its held-back metrics."""
    device = usable_device(args.device)
    datasets = [EpisodeDataset.open(path) for path in args.dataset]
    encoder = _encoder_kind(args, datasets)
    clip = clip_folder(args.backbone) if encoder == "frozen_clip" else None
    features: list[Float32 | None] = [vision_features(d, clip, device) if clip else None for d in datasets]
    mixture, held_back = _mixtures(args, datasets, encoder, features)
    trainer = _build(args, datasets, encoder, features, mixture.instructions, device)
    update, teacher = _method(args, trainer, mixture.instructions)
    training = args.out.parent / f"{args.out.name}.training"
    if (training / TRAINING_STATE).exists():
        resume_training(training, trainer)
    metrics = _loop(args, trainer, update, mixture, training)
    quality = evaluate(trainer, held_back.batch(0))
    facts: dict[str, Any] = {
        "teacher": teacher,
        "dataset_id": [d.dataset_id for d in datasets],
        "metrics": {**metrics, **quality},
        "spread_limit": quality["spread_p999"] * _SPREAD_MARGIN,
        "gamma": args.gamma,
    }
    tower, tower_config = _tower(clip)
    version = save_critic(args.out, trainer, mixture.instructions, facts, tower, tower_config, half=args.half)
    return {"critic": str(args.out), "version": version, "steps": trainer.step, "metrics": facts["metrics"]}


def _method(
    args: argparse.Namespace, trainer: CriticTrainer, instructions: list[str]
) -> tuple[Callable[[ChunkBatch], dict[str, float]], str]:
    """What does one step of training, and the version of the teacher, if any."""
    if (args.algo == "distill") != bool(args.teacher):
        raise ConfigError("--teacher: expected a critic folder with --algo distill, and only then")
    if not args.teacher:
        return trainer.update, ""
    from valueguide.critics.distill import CriticDistiller
    from valueguide.critics.scorer import LearnedCritic

    teacher = LearnedCritic.load(args.teacher, str(trainer.device))
    return CriticDistiller(trainer, teacher, instructions).update, teacher.version


def _encoder_kind(args: argparse.Namespace, datasets: list[EpisodeDataset]) -> str:
    pictures = [bool(d.cameras) for d in datasets]
    if any(p != pictures[0] for p in pictures):
        raise ConfigError(mismatch("--dataset", "kind", "all with pictures or all without", pictures))
    kind = ("frozen_clip" if pictures[0] else "state") if args.encoder == "auto" else args.encoder
    if kind == "frozen_clip" and args.backbone is None:
        raise ConfigError("--backbone: expected the folder of `valueguide train backbone`, found none")
    if kind == "state" and any(d.cameras and d.environment_state is None for d in datasets):
        raise ConfigError(
            "--encoder state: expected privileged states (--suite wxai-both), found pictures only"
        )
    return str(kind)


def _mixtures(
    args: argparse.Namespace, datasets: list[EpisodeDataset], encoder: str, features: list[Float32 | None]
) -> tuple[ChunkMixture, ChunkMixture]:
    """What is trained on, and every tenth episode of each dataset, held back for the metrics."""
    kind: ObservationKind = {"state": "state", "frozen_clip": "features"}.get(encoder, "images")  # type: ignore[assignment]
    kept_loaders: list[ChunkLoader] = []
    held_loaders: list[ChunkLoader] = []
    for dataset, values in zip(datasets, features, strict=True):
        held = [e for e in range(dataset.episodes) if e % _HOLD_EVERY == _HOLD_EVERY - 1]
        kept = [e for e in range(dataset.episodes) if e not in set(held)] or held
        frames = FrameCache.build(dataset) if kind == "images" else None
        for loaders, episodes in ((kept_loaders, kept), (held_loaders, held or kept)):
            loader = ChunkLoader(
                dataset,
                args.execute,
                args.gamma,
                observation=kind,
                features=values,
                frames=frames,
                episodes=episodes,
                privileged=args.algo == "distill",
            )
            loaders.append(loader)
    rows = _METRIC_PICTURES if kind == "images" else _METRIC_ROWS
    return (
        ChunkMixture(kept_loaders, args.batch_size, args.seed),
        ChunkMixture(held_loaders, rows, args.seed),
    )


def _build(
    args: argparse.Namespace,
    datasets: list[EpisodeDataset],
    encoder: str,
    features: list[Float32 | None],
    instructions: list[str],
    device: str,
) -> CriticTrainer:
    first = datasets[0]
    names = first.features["action"].get("names") or [f"action_{i}" for i in range(first.action.shape[1])]
    privileged = [d.environment_state for d in datasets if d.environment_state is not None]
    use_privileged = encoder == "state" and len(privileged) == len(datasets)
    spec = CriticSpec(
        executed_length=args.execute,
        action_names=tuple(names),
        state_dim=first.state.shape[1],
        environment_state_dim=privileged[0].shape[1] if use_privileged else 0,
        cameras={n: first.image_shape(n) for n in first.cameras} if encoder != "state" else {},
        state_names=tuple(first.features["observation.state"].get("names") or ()),
    )
    known = [f for f in features if f is not None]
    network = NetworkConfig(
        encoder=encoder,
        members=args.members,
        bins=101 if args.hl_gauss else 0,
        value_range=(-1.0 / (1.0 - args.gamma), 0.0),
        language_dim=MiniLMEncoder.dim,
        feature_dim=known[0].shape[1] if known else 0,
        own_encoders=args.own_encoders,
        shared_output=args.shared_output,
        layer_norm=args.layer_norm,
        dropout=args.dropout,
    )
    config = TrainConfig(
        algo=args.algo,
        gamma=args.gamma,
        negative_share=args.negative_share,
        weight_decay=args.weight_decay,
        seed=args.seed,
        warmup_steps=min(2000, args.steps // 10),
    )
    normalizers = Normalizers(
        action=Normalizer.min_max(np.concatenate([d.action for d in datasets])),
        state=Normalizer.mean_std(np.concatenate([d.state for d in datasets])),
        environment_state=Normalizer.mean_std(np.concatenate(privileged)) if use_privileged else None,
        features=Normalizer.mean_std(np.concatenate(known)) if known else None,
    )
    embeddings = MiniLMEncoder().encode(instructions)
    tasks = _task_numbers(datasets, instructions)
    return CriticTrainer(spec, network, config, normalizers, embeddings, tasks, device)


def _task_numbers(datasets: list[EpisodeDataset], instructions: list[str]) -> NDArray[np.int64]:
    """Paraphrases recorded under one task name share a number; without names, each sentence is a task."""
    names: dict[str, str] = {}
    for dataset in datasets:
        starts = dataset.instruction[dataset.episode_start]
        for facts, row in zip(dataset.metadata, starts, strict=True):
            sentence = dataset.instructions[int(row)]
            names[sentence] = str(facts.get("task_name", sentence))
    order = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
    return np.array([order[names[s]] for s in instructions])


def _loop(
    args: argparse.Namespace,
    trainer: CriticTrainer,
    update: Callable[[ChunkBatch], dict[str, float]],
    mixture: ChunkMixture,
    training: Path,
) -> dict[str, float]:
    latest: dict[str, float] = {}
    batches = mixture.iterate(trainer.step)
    with progress_bar(args.steps - trainer.step, "steps") as bar:
        while trainer.step < args.steps:
            latest = update(next(batches))
            bar.update(1)
            if trainer.step % 200 == 0:
                bar.note(f"td {latest['td_loss']:.3f}, q {latest['q_mean']:.1f}")
            if trainer.step % args.checkpoint_every == 0 or trainer.step == args.steps:
                save_training(training, trainer)
    return {**latest, "data_wait_share": mixture.wait_share}


@torch.no_grad()
def evaluate(trainer: CriticTrainer, batch: ChunkBatch) -> dict[str, float]:
    """On held-back chunks: rank correlation of Q with the return, error, and the ensemble's spread."""
    inputs = trainer.inputs(batch, following=False)
    actions, valid = (torch.from_numpy(a).to(trainer.device) for a in (batch.actions, batch.valid))
    q = trainer.target(trainer.target.encode(inputs), trainer.normalizers.action(actions), valid).cpu()
    value, spread = q.min(0).values.numpy(), (q.max(0).values - q.min(0).values).numpy()
    known = np.isfinite(batch.mc_return)
    return {
        "rank_correlation": _spearman(value[known], batch.mc_return[known]),
        "return_error": float(np.abs(value - batch.mc_return)[known].mean()),
        "spread_mean": float(spread.mean()),
        "spread_p999": float(np.quantile(spread, 0.999)),
    }


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if len(a) > 2 else float("nan")


def _tower(clip: Path | None) -> tuple[Any, dict[str, Any] | None]:
    if clip is None:
        return None, None
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained(clip)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
            "patch_size")  # fmt: skip
    return tower, {key: getattr(tower.config, key) for key in keys}
