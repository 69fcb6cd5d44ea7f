"""Trains the small vision-language model: first to see, then to answer; exactly resumable.

Seeing: the connector, and the vision tower where it does not come trained, learn with a read-out that is
thrown away how far along one picture is. Answering: with the tower frozen and its output kept on disk, the
language model and the connector learn the whole text of answers to real prompts, by teacher forcing, the
loss on the answer's tokens only. A second read-out, thrown away too, says at each picture's last token how
far along it is, so that the answer has something to look up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from valueguide.progress.parse import write_answer
from valueguide.progress.request import Answer, Int64, Prompt
from valueguide.progress.small_vlm import number_tokens, to_pixels
from valueguide.progress.train_data import EpisodePictures, Question, Questions, TaughtEpisode

_WARM_UP, _LAST_RATE = 100, 0.02
#: Standard deviation (percentage points) of the distribution that teaches a value, so that 79 is nearly 80.
_SIGMA = 1.5
#: Pictures of an episode in one update of the vision tower, the anchor included.
_SEEN_AT_ONCE = 8
#: Of the batches; endpoints are asked for JSON, models in this process for lines.
_JSON_SHARE = 0.15
#: Share of the updates after which questions have up to the most frames.
_CURRICULUM = 0.4
_PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class VlmTrainSettings:
    """sight_steps, steps: updates of seeing and of answering. sight_batch: episodes, batch: questions an
    update. sight_rate, rate: highest learning rates. frames: fewest and most in a question."""

    sight_steps: int = 1500
    steps: int = 2000
    sight_batch: int = 16
    batch: int = 16
    sight_rate: float = 1e-3
    rate: float = 2e-3
    frames: tuple[int, int] = (3, 16)
    dropout: float = 0.1
    weight_decay: float = 0.05
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {**asdict(self), "frames": list(self.frames)}


class Phase:
    """One optimiser over some modules, with warm-up and cosine decay. Everything that is drawn in update
    `step` follows from the seed and `step`, so that a resumed run goes on bit for bit."""

    name = ""

    def __init__(self, modules: dict[str, nn.Module], steps: int, rate: float, decay: float, seed: int):
        self.modules, self.steps, self.step = modules, steps, 0
        self._rate, self._seed = rate, seed
        self._parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.98))

    def rng(self) -> np.random.Generator:
        """This update's; torch's stream begins anew with it."""
        torch.manual_seed(hash_seed(self._seed, self.name, self.step))
        return np.random.default_rng(hash_seed(self._seed, self.name, self.step))

    def descend(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / min(_WARM_UP, 1 + self.steps // 10))
        decay = _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate * warm * decay
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimiser.step()
        self.step += 1


def hash_seed(*parts: object) -> int:
    """63 bits that differ between any two different sequences, on every machine the same."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


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

    features: see tower_outputs; None trains the vision tower, too.
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
    ) -> None:
        self._model, self._processor, self._pictures = model.model, processor, pictures
        self._features = features
        self._episodes, self._settings = list(episodes), settings
        self._tasks = {task: i for i, task in enumerate(tasks)}
        torch.manual_seed(hash_seed(settings.seed, "reader"))
        width = model.model.image_seq_len * model.config.text_config.hidden_size
        modules = {
            "connector": model.model.connector,
            "reader": Reader(width, len(self._tasks)),
            **({"vision": model.model.vision_model} if features is None else {}),
        }
        super().__init__(
            modules, settings.sight_steps, settings.sight_rate, settings.weight_decay, settings.seed
        )

    def update(self) -> float:
        """One step; the mean absolute error in [0, 1] before it."""
        rng = self.rng()
        chosen = rng.integers(len(self._episodes), size=self._settings.sight_batch)
        rows, values, tasks = self._examples([self._episodes[i] for i in chosen], rng)
        logits = self._logits(rows, tasks, training=True)
        self.descend(F.binary_cross_entropy_with_logits(logits, values))
        return float((torch.sigmoid(logits.detach()) - values).abs().mean())

    @torch.no_grad()
    def error(self, episodes: Sequence[TaughtEpisode]) -> float:
        """Mean absolute error on pictures of these episodes, the same at every call."""
        rows, values, tasks = self._examples(episodes, np.random.default_rng(0))
        return float((torch.sigmoid(self._logits(rows, tasks, training=False)) - values).abs().mean())

    def _examples(
        self, episodes: Sequence[TaughtEpisode], rng: np.random.Generator
    ) -> tuple[Int64, Tensor, Tensor]:
        rows, values = [], []
        for episode in episodes:
            last = len(episode.rows) - 1
            place = np.append(0, rng.integers(0, last + 1, _SEEN_AT_ONCE - 2))
            place = np.append(place, last)  # where success shows
            rows.append(episode.rows[place])
            values.append(episode.values[place[1:]])
        tasks = torch.tensor([self._tasks[episode.task] for episode in episodes])
        return np.stack(rows), torch.from_numpy(np.stack(values)), tasks

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


class AnswerPhase(Phase):
    """Answering: trains connector and language model on whole answers.

    encode: tokens of a prompt as the backend that will ask makes them (TransformersBackend.encode).
    features: see tower_outputs.
    """

    name = "answers"

    def __init__(
        self,
        model: Any,
        encode: Any,
        tokenizer: Any,
        questions: Questions,
        features: NDArray[np.float16],
        settings: VlmTrainSettings,
    ) -> None:
        self._model, self._encode, self._tokenizer = model, encode, tokenizer
        self._questions, self._features, self._settings = questions, features, settings
        self._numbers = torch.tensor(number_tokens(tokenizer))
        self._prompts: dict[tuple[Any, ...], Tensor] = {}
        model.model.vision_model.requires_grad_(False)
        torch.manual_seed(hash_seed(settings.seed, "hint"))
        hidden = model.config.text_config.hidden_size
        #: After this layer; those above it look up what it has found.
        self._hinted = max(1, model.config.text_config.num_hidden_layers * 3 // 5)
        modules = {
            "connector": model.model.connector,
            "text": model.model.text_model,
            "hint": nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1)),
        }
        super().__init__(modules, settings.steps, settings.rate, settings.weight_decay, settings.seed)

    def update(self) -> dict[str, float]:
        """One step; the losses before it."""
        rng = self.rng()
        answer: Answer = "json" if rng.random() < _JSON_SHARE else "lines"
        # Few frames first: which value belongs to which picture is learned where there are few of them.
        few, many = self._settings.frames
        most = few + round((many - few) * min(1.0, (self.step + 1) / (_CURRICULUM * self.steps)))
        batch = self._questions.batch(rng, self._settings.batch, answer, most)
        losses = self.losses(batch, training=True)
        self.descend(torch.stack(list(losses.values())).sum())
        return {name: float(loss.detach()) for name, loss in losses.items()}

    @torch.no_grad()
    def held_out(self, questions: Questions, batches: int = 4) -> dict[str, float]:
        """Mean losses on the same questions at every call."""
        found = []
        for i in range(batches):
            rng = np.random.default_rng(hash_seed("held out", i))
            answer: Answer = "json" if i == 0 else "lines"
            batch = questions.batch(rng, self._settings.batch, answer, self._settings.frames[1])
            found.append(self.losses(batch, training=False))
        return {name: float(torch.stack([f[name] for f in found]).mean()) for name in found[0]}

    def losses(self, batch: Sequence[Question], training: bool) -> dict[str, Tensor]:
        """value: cross-entropy of the percentages against a narrow distribution around what is true, less
        that distribution's entropy. form: of all other tokens of the answers. hint: of the read-out."""
        prompts = [self._prompt_tokens(question.prompt) for question in batch]
        answers = torch.stack([self._answer_tokens(question) for question in batch])
        ids, mask = _pad_left([torch.cat(pair) for pair in zip(prompts, answers, strict=True)])
        rows = np.stack([question.rows for question in batch])
        seen = torch.from_numpy(self._features[rows.ravel()].astype(np.float32))
        if training:
            seen = F.dropout(seen, self._settings.dropout)
        with torch.autocast("cpu", torch.bfloat16):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                image_hidden_states=self.modules["connector"](seen),
                logits_to_keep=answers.shape[1] + 1,
                output_hidden_states=True,
                use_cache=False,
            )
        values = torch.from_numpy(np.stack([question.values for question in batch]))
        hints = self._hints(ids, out.hidden_states[self._hinted], rows.shape[1])
        logits = out.logits[:, :-1].float()
        return {
            "hint": F.binary_cross_entropy_with_logits(hints, values),
            **self._text_losses(logits, answers, values),
        }

    def _text_losses(self, logits: Tensor, answers: Tensor, values: Tensor) -> dict[str, Tensor]:
        logs = torch.log_softmax(logits, dim=-1)
        is_number = torch.isin(answers, self._numbers)
        is_value = is_number & (is_number.cumsum(dim=1) % 2 == 0)  # frame number, value, frame number, …
        found = logs[is_value].view(*values.shape, -1)[..., self._numbers]
        wanted = around(values)
        entropy = -torch.special.xlogy(wanted, wanted).sum(-1)
        form = -logs.gather(2, answers[..., None]).squeeze(2)[~is_value]
        return {"value": (-(wanted * found).sum(-1) - entropy).mean(), "form": form.mean()}

    def _hints(self, ids: Tensor, hidden: Tensor, pictures: int) -> Tensor:
        """Logits (B, pictures - 1) at the last token of each picture but the anchor."""
        places = (ids == self._model.config.image_token_id).nonzero()[:, 1].view(len(ids), pictures, -1)
        last = places[:, 1:, -1:].expand(-1, -1, hidden.shape[2])
        return self.modules["hint"](hidden.float().gather(1, last)).squeeze(2)

    def _prompt_tokens(self, prompt: Prompt) -> Tensor:
        """As the backend makes them. They depend on the text and the number of pictures only."""
        key = (prompt.version, prompt.asked, prompt.parts[0])
        if key not in self._prompts:
            self._prompts[key] = self._encode(prompt)["input_ids"][0]
        return self._prompts[key]

    def _answer_tokens(self, question: Question) -> Tensor:
        text = write_answer(question.percentages, question.prompt.answer)
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor([*tokens, self._tokenizer.eos_token_id])


def around(values: Tensor) -> Tensor:
    """Distributions (..., 101) over 0 … 100 % around values (...) in [0, 1]; all of it at 100 % for 1.

    A value just below 1 keeps away from 100 %, which is said of a task that is done and of no other.
    """
    bins = torch.arange(101, dtype=torch.float32)
    density = torch.exp(-0.5 * ((bins - 100 * values[..., None]) / _SIGMA) ** 2)
    done = (values >= 1)[..., None]
    density = torch.where((bins == 100) == done, density, 0.0)
    return density / density.sum(-1, keepdim=True)


def _pad_left(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and mask int64 (B, longest): answers, equally long, end together. Padding is never looked at."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, longest - len(sequence) :] = sequence
        mask[i, longest - len(sequence) :] = 1
    return ids, mask
