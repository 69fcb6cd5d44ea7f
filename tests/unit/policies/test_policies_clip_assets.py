"""The generated CLIP folder is one that transformers and LeRobot take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from valueguide.errors import ConfigError
from valueguide.policies.clip_assets import build_clip_folder

SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
VISION, TEXT = SMALL | dict(image_size=32, patch_size=16), SMALL | dict(max_position_embeddings=16)


def build(out: Path, seed: int = 0) -> Path:
    return build_clip_folder(
        out, ["open the drawer"] * 3, VISION, TEXT, vocab_size=300, seed=seed, projection_dim=8
    )


def test_any_sentence_goes_through_tokenizer_and_model(tmp_path: Path) -> None:
    folder = build(tmp_path / "clip")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    tokens = tokenizer(
        ["open the drawer", "naïve 絵"], padding="max_length", truncation=True, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (2, 16)
    assert tokens["input_ids"][0, 0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True) == "open the drawer"
    out = model(pixel_values=torch.zeros(1, 3, 32, 32), **tokens)
    assert out.text_embeds.shape == (2, 8) and torch.isfinite(out.text_embeds).all()


def test_the_pooled_text_is_the_end_tokens(tmp_path: Path) -> None:
    """CLIP pools at the end token; a sentence and its prefix must differ."""
    folder = build(tmp_path / "clip")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    tokens = tokenizer(["open", "open the"], padding="max_length", return_tensors="pt")
    pooled = model.text_model(**tokens).pooler_output
    assert (pooled[0] - pooled[1]).abs().max() > 1e-4


def test_same_seed_same_bytes_and_no_global_seed(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, second, other = (build(tmp_path / f"clip{i}", seed) for i, seed in enumerate((0, 0, 1)))
    weights = [(f / "model.safetensors").read_bytes() for f in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_path_must_name_clip() -> None:
    with pytest.raises(ConfigError, match="contains 'clip'"):
        build(Path("towers"))
