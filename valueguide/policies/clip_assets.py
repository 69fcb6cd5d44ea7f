"""Builds a small CLIP folder with a tokenizer of its own, so that multi_task_dit needs no download.

LeRobot's multi_task_dit constructs its vision and text towers from a CLIP folder (or Hub id). This
module writes such a folder from scratch: a CLIPModel of any size and a byte-level BPE tokenizer
trained on the sentences it will see. The weights are random; training them is `backbone.py`'s job.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from valueguide.errors import ConfigError

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"

#: The size that the shipped policies use: 128-pixel images in 16-pixel patches, 24-token sentences.
VISION = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=5,
    num_attention_heads=4,
    image_size=128,
    patch_size=16,
)
TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)


def train_bpe(corpus: Iterable[str], vocab_size: int, specials: list[str]) -> Tokenizer:
    """A byte-level BPE: every string has an encoding, whatever the corpus was."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_clip_folder(
    out: Path,
    corpus: Iterable[str],
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    vocab_size: int = 600,
    seed: int = 0,
    projection_dim: int = 128,
) -> Path:
    """Write config.json, model.safetensors and the tokenizer files into `out`; returns `out`.

    vision, text: arguments of CLIPVisionConfig and CLIPTextConfig; the defaults are VISION and TEXT.
    The same arguments give the same bytes. Raises ConfigError when the path does not contain "clip",
    which LeRobot's configuration requires.
    """
    if "clip" not in str(out).lower():
        raise ConfigError(f"{out}: expected a path that contains 'clip' (LeRobot requires it), found none")
    tokenizer = train_bpe(corpus, vocab_size, [_BEGIN, _END])
    begin, end = tokenizer.token_to_id(_BEGIN), tokenizer.token_to_id(_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}", special_tokens=[(_BEGIN, begin), (_END, end)]
    )
    text_config = dict(text or TEXT) | {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": projection_dim,
    }
    config = CLIPConfig(
        text_config=text_config,
        vision_config=dict(vision or VISION) | {"projection_dim": projection_dim},
        projection_dim=projection_dim,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BEGIN,
        eos_token=_END,
        pad_token=_END,
        model_max_length=text_config["max_position_embeddings"],
    ).save_pretrained(out)
    return out
