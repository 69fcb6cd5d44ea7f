"""Learning to see: how far along one picture is, by a read-out that is thrown away.

The connector learns, and the vision tower where it does not come trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from valueguide.progress.request import Int64
from valueguide.vlm.small_vlm import to_pixels
from valueguide.vlm.train_data import EpisodePictures, TaughtEpisode, other_tasks
from valueguide.vlm.train_phase import Phase, VlmTrainSettings, hash_seed

#: Pictures of an episode in one update of the vision tower, the anchor included.
_SEEN_AT_ONCE = 8
#: Of the episodes: looked at under another task, of which nothing is done.
_WRONG = 0.15
_PICTURES_AT_ONCE = 256


class Reader(nn.Module):
    """The read-out of seeing: how far along a picture is, given the anchor and the task."""

    def __init__(self, width: int, tasks: int) -> None:
        super().__init__()
        self.task = nn.Embedding(tasks, 64)
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width + 64),
            nn.Linear(2 * width + 64, 256),
            nn.GELU(),
            nn.Linear(256, 256),
            nn.GELU(),
            nn.Linear(256, 1),
        )

    def forward(self, tokens: Tensor, task: Tensor) -> Tensor:
        """Logits (B, k - 1) from tokens (B, k, T, D), the anchor's first, and tasks (B,)."""
        flat = tokens.flatten(2)
        shown, anchor = flat[:, 1:], flat[:, :1].expand(-1, flat.shape[1] - 1, -1)
        words = self.task(task)[:, None].expand(-1, shown.shape[1], -1)
        return self.layers(torch.cat([shown, anchor, words], dim=2)).squeeze(2)


class SightPhase(Phase):
    """Seeing: trains the connector on single pictures.

    features: see tower_outputs; None trains the vision tower, too. tasks: every task's name.
    related: see train_data.Questions.
    """

    name = "sight"

    def __init__(
        self,
        model: Any,
        processor: Any,
        episodes: Sequence[TaughtEpisode],
        tasks: Sequence[str],
        pictures: EpisodePictures,
        features: NDArray[np.float16] | None,
        settings: VlmTrainSettings,
        related: Sequence[str] = (),
    ) -> None:
        self._model, self._processor, self._pictures = model.model, processor, pictures
        self._features = features
        self._episodes, self._settings = list(episodes), settings
        self._tasks = {task: i for i, task in enumerate(tasks)}
        self._others = {task: other_tasks(task, tasks, related) for task in tasks}
        torch.manual_seed(hash_seed(settings.seed, "reader"))
        width = model.model.image_seq_len * model.config.text_config.hidden_size
        modules = {
            "connector": model.model.connector,
            "reader": Reader(width, len(self._tasks)),
            **({"vision": model.model.vision_model} if features is None else {}),
        }
        rates = dict.fromkeys(modules, settings.sight_rate)
        super().__init__(modules, settings.sight_steps, rates, settings.weight_decay, settings.seed)

    def update(self) -> float:
        """One step; the mean absolute error in [0, 1] before it."""
        rng = self.rng()
        chosen = rng.integers(len(self._episodes), size=self._settings.sight_batch)
        rows, values, tasks = self._examples([self._episodes[i] for i in chosen], rng, _WRONG)
        logits = self._logits(rows, tasks, training=True)
        self.descend(F.binary_cross_entropy_with_logits(logits, values))
        return float((torch.sigmoid(logits.detach()) - values).abs().mean())

    @torch.no_grad()
    def error(self, episodes: Sequence[TaughtEpisode]) -> float:
        """Mean absolute error on pictures of these episodes, the same at every call."""
        rows, values, tasks = self._examples(episodes, np.random.default_rng(0), wrong=0.0)
        return float((torch.sigmoid(self._logits(rows, tasks, training=False)) - values).abs().mean())

    def _examples(
        self, episodes: Sequence[TaughtEpisode], rng: np.random.Generator, wrong: float
    ) -> tuple[Int64, Tensor, Tensor]:
        rows, values, tasks = [], [], []
        for episode in episodes:
            last = len(episode.rows) - 1
            place = np.append(0, rng.integers(0, last + 1, _SEEN_AT_ONCE - 2))
            place = np.append(place, last)  # where success shows
            rows.append(episode.rows[place])
            other = rng.random() < wrong
            values.append(episode.values[place[1:]] * (not other))
            tasks.append(self._tasks[str(rng.choice(self._others[episode.task])) if other else episode.task])
        return np.stack(rows), torch.from_numpy(np.stack(values)), torch.tensor(tasks)

    def _logits(self, rows: Int64, tasks: Tensor, training: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if self._features is None:
                seen = self._look(rows, training)
            else:
                seen = torch.from_numpy(self._features[rows.ravel()].astype(np.float32))
                seen = F.dropout(seen, self._settings.dropout, training)
            tokens = self._model.connector(seen)
            return self.modules["reader"](tokens.unflatten(0, rows.shape), tasks).float()

    def _look(self, rows: Int64, training: bool) -> Tensor:
        """What the tower makes of pictures; in training, of other light."""
        pixels = to_pixels(self._processor, self._pictures.take(rows.ravel()))
        if training:
            gain, shift = (0.1 * (2 * torch.rand(len(pixels), 1, 1, 1) - 1) for _ in range(2))
            pixels = pixels * (1 + gain) + shift
        return self._model.vision_model(pixel_values=pixels).last_hidden_state


@torch.no_grad()
def tower_outputs(
    model: Any, processor: Any, pictures: EpisodePictures, file: Path, done: Any = None
) -> NDArray[np.float16]:
    """float16 (len(pictures), patches, D): what the frozen tower makes of every picture, in `file`."""
    vision = model.model.vision_model.eval()
    side = vision.config.image_size // vision.config.patch_size
    shape = (len(pictures), side * side, vision.config.hidden_size)
    out = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        rows = np.arange(start, min(start + _PICTURES_AT_ONCE, len(pictures)))
        with torch.autocast("cpu", torch.bfloat16):
            seen = vision(pixel_values=to_pixels(processor, pictures.take(rows))).last_hidden_state
        out[rows] = seen.half().numpy()
        if done is not None:
            done(len(rows))
    out.flush()
    return out
