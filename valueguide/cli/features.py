"""Outputs of a frozen vision tower for every frame of a dataset, computed once and kept beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from valueguide.cli.common import progress_bar
from valueguide.data.reader import EpisodeDataset
from valueguide.policies.backbone import pixels_to_model

_BATCH = 128


def vision_features(dataset: EpisodeDataset, clip: Path, device: str = "cpu") -> NDArray[np.float32]:
    """float32 (N + episodes, cameras * D): the CLS vectors of each frame, final observations last.

    Kept in `<dataset>/.cache`, keyed by the dataset's content and the tower's weights. device: of the tower.
    """
    from transformers import CLIPVisionModel

    weights = hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest()[:12]
    target = dataset.root / ".cache" / f"features_{dataset.dataset_id[:12]}_{weights}.npy"
    if target.exists():
        return np.load(target)
    tower = CLIPVisionModel.from_pretrained(clip).eval().to(device)
    parts = []
    with torch.inference_mode(), progress_bar(dataset.rows, "frames") as bar:
        for start in range(0, dataset.rows, _BATCH):
            rows = np.arange(start, min(start + _BATCH, dataset.rows))
            images = np.stack([dataset.images(rows, camera) for camera in dataset.cameras], axis=1)
            pixels = pixels_to_model(torch.from_numpy(images).to(device)).flatten(0, 1)
            tokens = tower(pixel_values=pixels).last_hidden_state[:, 0]
            parts.append(tokens.reshape(len(rows), -1).cpu().numpy())
            bar.update(len(rows))
    features = np.concatenate(parts).astype(np.float32)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.npy")
    np.save(partial, features)
    partial.replace(target)
    return features
