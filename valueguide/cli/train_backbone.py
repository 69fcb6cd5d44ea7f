"""Renders labelled pictures, trains the vision tower on them, distils the text tower, saves a CLIP folder."""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sim.vision_data import LABEL_SIZES, generate
from sim.wordings import HELD_OUT, TRAIN, corpus
from valueguide.cli.common import progress_bar
from valueguide.critics.language import MiniLMEncoder
from valueguide.errors import ConfigError, mismatch
from valueguide.policies.backbone import (
    LabelHeads,
    PictureSet,
    distil_text,
    pixels_to_model,
    train_vision,
)
from valueguide.policies.clip_assets import TEXT, VISION, build_clip_folder

#: Picture pairs that only measure the vision tower; of few pictures, one in five.
_HELD_BACK, _FEWEST_PICTURES = 1000, 5
#: Sentences that teach the text tower, and how many make one update; a short run needs no more than it reads.
_TEXT_SAMPLE, _TEXT_BATCH = 6000, 128
_TOKENS = 24


def train_backbone(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the errors on held-back pictures and the accuracy on held-out wordings.

    Raises ConfigError when so few pictures are wanted that none could be held back.
    """
    from transformers import AutoTokenizer, CLIPModel

    if args.pictures < _FEWEST_PICTURES:
        raise ConfigError(mismatch("--pictures", "value", f"{_FEWEST_PICTURES} or more", args.pictures))
    torch.manual_seed(args.seed)
    pictures = args.picture_folder or args.out / "pictures"
    _render(pictures, args.pictures, args.seed, args.workers)
    folder = args.out / "clip"
    if not (folder / "config.json").exists():
        build_clip_folder(folder, corpus(), VISION, TEXT, vocab_size=600, seed=args.seed)
    model = CLIPModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = _distil(model.text_model, tokenizer, args)
    vision = _learn_to_see(model.vision_model, PictureSet(pictures), args)
    model.save_pretrained(folder)
    return {"backbone": str(folder), "text": text, "vision": vision}


def _render(folder: Path, count: int, seed: int, workers: int) -> None:
    if any(folder.glob("labels_*.npz")):
        return
    share = -(-count // workers)
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=generate, args=(folder, share, seed, w)) for w in range(workers)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        if job.exitcode:
            raise RuntimeError(f"rendering process ended with exit status {job.exitcode}")


def _distil(tower: torch.nn.Module, tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(args.seed)
    everything = list(corpus())
    wanted = min(_TEXT_SAMPLE, args.text_steps * _TEXT_BATCH)
    chosen = [everything[i] for i in rng.permutation(len(everything))[:wanted]]
    sentences = chosen + [s for group in TRAIN.values() for s in group] * 20
    targets = torch.from_numpy(MiniLMEncoder().encode(sentences))
    tokens = _tokenise(tokenizer, sentences)
    loss = float("nan")
    with progress_bar(args.text_steps, "text steps") as bar:
        for _, latest in distil_text(tower, tokens, targets, args.text_steps, _TEXT_BATCH, seed=args.seed):
            loss = latest
            bar.update(1)
    return {"loss": loss, "held_out_wordings_nearest_to_own_task": _wording_accuracy(tower, tokenizer)}


def _tokenise(tokenizer: Any, sentences: list[str]) -> dict[str, torch.Tensor]:
    out = tokenizer(sentences, padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt")
    return {key: out[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def _wording_accuracy(tower: torch.nn.Module, tokenizer: Any) -> float:
    def embed(groups: dict[str, tuple[str, ...]]) -> tuple[torch.Tensor, list[str]]:
        sentences = [s for group in groups.values() for s in group]
        pooled = tower(**_tokenise(tokenizer, sentences)).pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1), [t for t, g in groups.items() for _ in g]

    known, known_tasks = embed(TRAIN)
    new, new_tasks = embed(HELD_OUT)
    nearest = (new @ known.T).argmax(1).tolist()
    return float(np.mean([known_tasks[i] == task for i, task in zip(nearest, new_tasks, strict=True)]))


def _learn_to_see(tower: torch.nn.Module, pictures: PictureSet, args: argparse.Namespace) -> dict[str, float]:
    count = len(pictures) - held_back(len(pictures))
    heads = LabelHeads(VISION["hidden_size"], 2, LABEL_SIZES)
    model = _as_vision_model(tower)

    def batches(step: int) -> Any:
        rng = np.random.default_rng([args.seed, step])
        return pictures.take(np.sort(rng.integers(0, count, args.batch_size)))

    with progress_bar(args.steps, "vision steps") as bar:
        for _, metrics in train_vision(model, heads, batches, args.steps):
            bar.update(1)
            bar.note(f"loss {metrics['loss']:.3f}, {metrics['from_hand_mm']:.1f} mm")
    return _held_back_errors(model, heads, pictures, count)


def held_back(count: int) -> int:
    """How many of `count` picture pairs, the last ones, measure the vision tower and never teach it."""
    return min(_HELD_BACK, count // _FEWEST_PICTURES)


def _as_vision_model(tower: torch.nn.Module) -> Any:
    """A CLIPVisionModel that shares the tower's parameters, as policies will load it."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel(tower.config)
    model.vision_model = tower
    return model


@torch.no_grad()
def _held_back_errors(model: Any, heads: LabelHeads, pictures: PictureSet, start: int) -> dict[str, float]:
    model.eval()
    rows = []
    for first in range(start, len(pictures), 250):
        images, arrays = pictures.take(np.arange(first, min(first + 250, len(pictures))))
        tokens = model(pixel_values=pixels_to_model(images).flatten(0, 1)).last_hidden_state
        tokens = tokens.unflatten(0, images.shape[:2])
        labels = {key: torch.from_numpy(value) for key, value in arrays.items()}
        rows.append(heads.loss(tokens[:, :, 0], tokens[:, :, 1:], labels)[1])
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
