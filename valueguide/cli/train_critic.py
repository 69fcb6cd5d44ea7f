"""Trains a critic on recorded datasets and saves it with its normalisers, instructions and metrics."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from valueguide.cli.bags import imported_bag, is_bag
from valueguide.cli.common import progress_bar
from valueguide.cli.device import usable_device
from valueguide.cli.features import vision_features
from valueguide.cli.train_policy import clip_folder
from valueguide.cli.train_shaping import SHAPING, check_shaping, progress_potentials, shaping_facts
from valueguide.critics.checkpoint import (
    TRAINING_STATE,
    LoadedCritic,
    resume_training,
    save_critic,
    save_training,
)
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.language import MiniLMEncoder
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.processes import ALONE, Processes
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.critics.warm_start import check_spec, keep_instructions, trainer_from
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


def train_critic(args: argparse.Namespace, processes: Processes = ALONE) -> dict[str, Any]:
    """Returns where the critic is, its version, its held-back metrics and the seconds that learning took.

    Of several processes only the first writes, and only its result is complete.
    """
    if (args.algo == "aloe") != bool(args.policy):
        raise ConfigError("--policy: expected a policy folder with --algo aloe, and only then")
    device = processes.device(usable_device(args.device))
    init = LoadedCritic(args.init) if args.init else None
    with processes.leader_first():
        datasets = [EpisodeDataset.open(_dataset_folder(args, i)) for i in range(len(args.dataset))]
    encoder = _encoder_kind(args, datasets, init)
    check_shaping(args, init)
    clip = clip_folder(args.backbone) if encoder == "frozen_clip" else None
    spec = _spec(args, datasets, encoder)
    if init is not None:
        _check_init(args, init, spec, clip)
    with processes.leader_first():
        features: list[Float32 | None] = [
            vision_features(d, clip, device) if clip else None for d in datasets
        ]
    potentials = progress_potentials(args, datasets)
    mixture, held_back = _mixtures(args, datasets, encoder, features, potentials)
    trainer = _build(args, spec, datasets, encoder, features, mixture.instructions, device, init, processes)
    run = _run(args, trainer, mixture, datasets, features, potentials, init)
    training = args.out.parent / f"{args.out.name}.training"
    if (training / TRAINING_STATE).exists():
        resume_training(training, trainer)
    began = time.perf_counter()
    metrics = _loop(args, trainer, run, training)
    costs = {"seconds": time.perf_counter() - began, **run.report()}
    if not processes.leads:
        return {"steps": trainer.step, **costs}
    quality = evaluate(trainer, held_back.batch(0))
    facts: dict[str, Any] = {
        **run.facts,
        "init": init.version if init else "",
        "dataset_id": [d.dataset_id for d in datasets],
        "metrics": {**metrics, **quality},
        "spread_limit": quality["spread_p999"] * _SPREAD_MARGIN,
        "gamma": args.gamma,
        SHAPING: shaping_facts(args, mixture),
    }
    known = mixture.instructions
    instructions = keep_instructions(trainer, known, init) if init else known
    tower, tower_config = _tower(clip)
    version = save_critic(args.out, trainer, instructions, facts, tower, tower_config, half=args.half)
    return {
        "critic": str(args.out),
        "version": version,
        "steps": trainer.step,
        "metrics": facts["metrics"],
        **costs,
    }


@dataclass(frozen=True)
class Run:
    """What an algorithm makes of the data.

    updates: one step of training each, and its metrics. The first batch is drawn when it is asked for, so
        that a trainer may be resumed before. facts: for the critic's manifest. report: for the result.
    save: called before each saving of the trainer's state; keeps what else an exact resumption takes.
    """

    updates: Generator[dict[str, float]]
    facts: dict[str, Any]
    report: Callable[[], dict[str, Any]] = dict
    save: Callable[[], None] = lambda: None


def _run(
    args: argparse.Namespace,
    trainer: CriticTrainer,
    mixture: ChunkMixture,
    datasets: list[EpisodeDataset],
    features: list[Float32 | None],
    potentials: list[Float32 | None],
    init: LoadedCritic | None,
) -> Run:
    update, teacher = _method(args, trainer, mixture.instructions)
    if args.algo != "aloe":
        return Run(_updates(update, trainer, mixture), {"teacher": teacher})
    from valueguide.cli.train_critic_aloe import Source, aloe_run

    known = zip(datasets, features, potentials, strict=True)
    sources = [Source(d, _split(d)[0], values, potential) for d, values, potential in known]
    return aloe_run(args, trainer, mixture.instructions, sources, init.version if init else "")


def _updates(
    update: Callable[[ChunkBatch], dict[str, float]], trainer: CriticTrainer, mixture: ChunkMixture
) -> Generator[dict[str, float]]:
    for batch in mixture.iterate(trainer.step):
        yield update(batch) | {"data_wait_share": mixture.wait_share}


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


def _dataset_folder(args: argparse.Namespace, number: int) -> Path:
    """The folder of the `number`th --dataset; a bag becomes one beside --out."""
    path: Path = args.dataset[number]
    if not is_bag(path):
        return path
    target = args.out.parent / f"{args.out.name}.bag{number}"
    return imported_bag(path, target, args.robot, args.namespace)


def _encoder_kind(
    args: argparse.Namespace, datasets: list[EpisodeDataset], init: LoadedCritic | None = None
) -> str:
    pictures = [bool(d.cameras) for d in datasets]
    if any(p != pictures[0] for p in pictures):
        raise ConfigError(mismatch("--dataset", "kind", "all with pictures or all without", pictures))
    known = init.network_config.encoder if init else "frozen_clip" if pictures[0] else "state"
    kind = known if args.encoder == "auto" else args.encoder
    if init and kind != known:
        raise ConfigError(mismatch(f"--init {args.init}", "encoder", kind, known))
    if kind == "frozen_clip" and args.backbone is None:
        raise ConfigError("--backbone: expected the folder of `valueguide train backbone`, found none")
    if kind == "state" and any(d.cameras and d.environment_state is None for d in datasets):
        raise ConfigError(
            "--encoder state: expected privileged states (--suite wxai-both), found pictures only"
        )
    return str(kind)


def _check_init(args: argparse.Namespace, init: LoadedCritic, spec: CriticSpec, clip: Path | None) -> None:
    """Raises ConfigError when the values of `init` mean something else here, or it looked at other things."""
    where = f"--init {args.init}"
    check_spec(init, spec, where)
    gamma = init.manifest.get("gamma", args.gamma)
    if gamma != args.gamma:
        raise ConfigError(mismatch(where, "gamma", args.gamma, gamma, f"Use --gamma {gamma}"))
    if clip is None or not init.tower_weights:
        return
    tower, _ = _tower(clip)
    own, known = tower.state_dict(), init.tower_weights
    # Critics of --half hold their tower in 16 bits.
    same = own.keys() == known.keys() and all(
        torch.equal(known[name], value.to(known[name].dtype)) for name, value in own.items()
    )
    if not same:
        raise ConfigError(mismatch(where, "vision tower", f"that of --backbone {clip}", "another one"))


def _split(dataset: EpisodeDataset) -> tuple[list[int], list[int]]:
    """Episodes to learn from, and every tenth, held back; of fewer than ten, all of them are both."""
    held = [e for e in range(dataset.episodes) if e % _HOLD_EVERY == _HOLD_EVERY - 1]
    kept = [e for e in range(dataset.episodes) if e % _HOLD_EVERY != _HOLD_EVERY - 1]
    return kept, held or kept


def _mixtures(
    args: argparse.Namespace,
    datasets: list[EpisodeDataset],
    encoder: str,
    features: list[Float32 | None],
    potentials: list[Float32 | None],
) -> tuple[ChunkMixture, ChunkMixture]:
    """What is trained on, and every tenth episode of each dataset, held back for the metrics."""
    kind: ObservationKind = {"state": "state", "frozen_clip": "features"}.get(encoder, "images")  # type: ignore[assignment]
    kept_loaders: list[ChunkLoader] = []
    held_loaders: list[ChunkLoader] = []
    for dataset, values, potential in zip(datasets, features, potentials, strict=True):
        # ALOE learns from a replay, which holds the decoded pictures itself.
        frames = FrameCache.build(dataset) if kind == "images" and args.algo != "aloe" else None
        for loaders, episodes in zip((kept_loaders, held_loaders), _split(dataset), strict=True):
            loader = ChunkLoader(
                dataset,
                args.execute,
                args.gamma,
                observation=kind,
                features=values,
                frames=frames,
                episodes=episodes,
                privileged=args.algo == "distill",
                potential=potential,
            )
            loaders.append(loader)
    rows = _METRIC_PICTURES if kind == "images" else _METRIC_ROWS
    return (
        ChunkMixture(kept_loaders, args.batch_size, args.seed),
        ChunkMixture(held_loaders, rows, args.seed),
    )


def _spec(args: argparse.Namespace, datasets: list[EpisodeDataset], encoder: str) -> CriticSpec:
    first = datasets[0]
    names = first.features["action"].get("names") or [f"action_{i}" for i in range(first.action.shape[1])]
    privileged = [d.environment_state for d in datasets if d.environment_state is not None]
    use_privileged = encoder == "state" and len(privileged) == len(datasets)
    return CriticSpec(
        executed_length=args.execute,
        action_names=tuple(names),
        state_dim=first.state.shape[1],
        environment_state_dim=privileged[0].shape[1] if use_privileged else 0,
        cameras={n: first.image_shape(n) for n in first.cameras} if encoder != "state" else {},
        state_names=tuple(first.features["observation.state"].get("names") or ()),
    )


def _build(
    args: argparse.Namespace,
    spec: CriticSpec,
    datasets: list[EpisodeDataset],
    encoder: str,
    features: list[Float32 | None],
    instructions: list[str],
    device: str,
    init: LoadedCritic | None,
    processes: Processes,
) -> CriticTrainer:
    config = TrainConfig(
        algo=args.algo,
        gamma=args.gamma,
        backup=args.backup,
        negative_share=args.negative_share,
        weight_decay=args.weight_decay,
        seed=args.seed,
        warmup_steps=min(2000, args.steps // 10),
    )
    tasks = _task_numbers(datasets, instructions)
    encode = MiniLMEncoder().encode
    if init is not None:
        return trainer_from(
            init, config, device, instructions=instructions, embed=encode, task_of=tasks, processes=processes
        )
    privileged = [d.environment_state for d in datasets if d.environment_state is not None]
    known = [f for f in features if f is not None]
    network = NetworkConfig(
        encoder=encoder,
        members=args.members,
        bins=101 if args.hl_gauss else 0,
        value_range=(-1.0 / (1.0 - args.gamma) - args.progress_reward, 0.0),
        language_dim=MiniLMEncoder.dim,
        feature_dim=known[0].shape[1] if known else 0,
        own_encoders=args.own_encoders,
        shared_output=args.shared_output,
        layer_norm=args.layer_norm,
        dropout=args.dropout,
    )
    normalizers = Normalizers(
        action=Normalizer.min_max(np.concatenate([d.action for d in datasets])),
        state=Normalizer.mean_std(np.concatenate([d.state for d in datasets])),
        environment_state=Normalizer.mean_std(np.concatenate(privileged))
        if spec.environment_state_dim
        else None,
        features=Normalizer.mean_std(np.concatenate(known)) if known else None,
    )
    return CriticTrainer(spec, network, config, normalizers, encode(instructions), tasks, device, processes)


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


def _loop(args: argparse.Namespace, trainer: CriticTrainer, run: Run, training: Path) -> dict[str, float]:
    """Trains up to --steps, saving the state on the way; returns the last step's metrics."""
    latest: dict[str, float] = {}
    leads = trainer.processes.leads
    bar = progress_bar(args.steps - trainer.step, "steps") if leads else contextlib.nullcontext()
    with bar as shown, contextlib.closing(run.updates):
        while trainer.step < args.steps:
            latest = next(run.updates)
            if shown is not None:
                shown.update(1)
                if trainer.step % 200 == 0:
                    shown.note(f"td {latest['td_loss']:.3f}, q {latest['q_mean']:.1f}")
            if trainer.step % args.checkpoint_every == 0 or trainer.step == args.steps:
                run.save()
                # Whoever resumes from this state finds what every process has kept for it.
                trainer.check_alike()
                if leads:
                    save_training(training, trainer)
    return latest


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
