"""The small vision-language model that is trained here: a SmolVLM of some 2.4 million parameters.

A real SmolVLMForConditionalGeneration with a real processor, a byte-level tokenizer made from the prompts
that it will read, and a chat template, in a folder that AutoModelForImageTextToText and AutoProcessor load.
What it is for: running everything that asks a vision-language model for real, without a Hub or a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.image_utils import PILImageResampling

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.folders import replacing
from valueguide.critics.manifest import MANIFEST, WEIGHTS, digest, read_json, sha256
from valueguide.errors import CheckpointError, ConfigError, mismatch
from valueguide.policies.clip_assets import VISION
from valueguide.progress.parse import write_answer
from valueguide.progress.prompt import Wording, build_prefix_request, build_request
from valueguide.progress.request import Answer, Clip
from valueguide.types import UInt8

FORMAT = "valueguide-vlm-1"
#: The answer formats that it is taught.
TAUGHT: tuple[Answer, ...] = ("lines", "json")
#: How often each text stands in the tokenizer's corpus, and a pair must, to become one token.
_OFTEN = 20
#: Stands for an instruction where the fixed text around it is looked for.
_TASK = "<<task>>"
_IMAGE = "<image>"
_SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>", "<end>"]
_NAMED = dict(
    fake_image_token="<fake_token_around_image>",
    image_token=_IMAGE,
    global_image_token="<global-img>",
    end_of_utterance_token="<end>",
)


@dataclass(frozen=True)
class VlmSize:
    """The language model's shape; the vision tower's is that of the backbone (clip_assets.VISION).

    scale: patches along each edge that become one token: 8 makes one token of a picture of 8 x 8 patches.
    With four, a picture has to be put together by attention first, which takes thousands of updates.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    vocabulary: int = 2000
    scale: int = 8

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return (VISION["image_size"] // VISION["patch_size"] // self.scale) ** 2


def chat_template(image: str) -> str:
    """A chat template in the usual form: turns, text, and the mark `image` for each picture."""
    return (
        "<bos>{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}"
        + image
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<end>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )


def build_small_vlm(size: VlmSize, instructions: Sequence[str], seed: int) -> tuple[Any, Any]:
    """A model with random weights, and its processor. The same arguments give the same weights.

    instructions: whose words become tokens; others are spelled, as all text can be.
    """
    tokenizer = _tokenizer(size, instructions)
    config = tf.SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=size.scale,
        tie_word_embeddings=True,
        text_config=_text_config(size, tokenizer),
        vision_config=VISION | dict(hidden_act="quick_gelu", layer_norm_eps=1e-5),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.SmolVLMForConditionalGeneration(config)
    model.generation_config = tf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, _processor(size, tokenizer)


def take_tower(model: Any, critic: Path, pictures: Tensor) -> None:
    """Start the vision tower from the trained one inside a critic folder (of `train critic --backbone`).

    CLIP's tower has two things that SmolVLM's has not. Its class token is left out. Its first layer norm
    becomes part of the patch embedding, with the standard deviations that `pictures`, float32 (B, 3, H, W)
    as the processor makes them, have on average; training takes care of the rest.
    Raises ConfigError for a critic without a tower of the right shape.
    """
    loaded = LoadedCritic(critic)
    shape = {key: VISION[key] for key in VISION if key != "projection_dim"}
    if loaded.tower_config != shape:
        raise ConfigError(mismatch(f"--tower {critic}", "vision tower", shape, loaded.tower_config))
    found = {n.removeprefix("vision_model."): v.float() for n, v in loaded.tower_weights.items()}
    kernel, places = found["embeddings.patch_embedding.weight"], found["embeddings.position_embedding.weight"]
    gain, bias = found["pre_layrnorm.weight"], found["pre_layrnorm.bias"]
    seen = torch.nn.functional.conv2d(pictures, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    spread = (seen + places[1:]).std(dim=2, unbiased=False).mean(dim=0)  # of each place
    kernel = (kernel - kernel.mean(dim=0)) * (gain / spread.mean()).view(-1, 1, 1, 1)
    places = (places[1:] - places[1:].mean(dim=1, keepdim=True)) / spread[:, None] * gain + bias
    own = {n: v for n, v in found.items() if n.startswith(("encoder.", "post_layernorm."))}
    own["embeddings.patch_embedding.weight"] = kernel
    own["embeddings.patch_embedding.bias"] = torch.zeros(len(kernel))
    own["embeddings.position_embedding.weight"] = places
    model.model.vision_model.load_state_dict(own)


def to_pixels(processor: Any, frames: UInt8) -> Tensor:
    """float32 (B, 3, H, W): uint8 frames (B, h, w, 3) as the processor shows them to the model."""
    from PIL import Image

    pictures = [[Image.fromarray(frame) for frame in frames]]
    return processor.image_processor(pictures, return_tensors="pt")["pixel_values"][0]


def number_tokens(tokenizer: Any) -> list[int]:
    """The token of " 0", " 1", … " 100". Raises ConfigError when one of them is more than one token."""
    tokens = [tokenizer.encode(f" {value}", add_special_tokens=False) for value in range(101)]
    longer = [value for value, found in enumerate(tokens) if len(found) != 1]
    if longer:
        raise ConfigError(mismatch("tokenizer", "percentages", "one token each", f"more for {longer[:3]}"))
    return [found[0] for found in tokens]


def save_small_vlm(folder: Path, model: Any, processor: Any, facts: dict[str, Any]) -> str:
    """Write the model folder in one step, its weights in 16 bits, with a manifest. Returns its version.

    facts: JSON-serialisable; what the model is and how it was made.
    """
    with replacing(folder) as draft:
        half = {n: v.half().contiguous() for n, v in model.state_dict().items() if n != "lm_head.weight"}
        model.save_pretrained(draft, state_dict=half)
        # 16 bits on the disk only: the processors that it is for compute in 32.
        config = read_json(draft / "config.json")
        for part in (config, config["text_config"], config["vision_config"]):
            part["dtype"] = "float32"
        (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        processor.save_pretrained(draft)
        files = {path.name: sha256(path) for path in sorted(draft.iterdir())}
        version = digest(files)[:12]
        manifest = {"format": FORMAT, "version": version, "files": files, "facts": facts}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return version


def verify_small_vlm(folder: Path) -> dict[str, Any]:
    """The manifest of a whole folder. Raises CheckpointError for one that is damaged or was edited."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected the folder of `valueguide progress train`, found none")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(mismatch(str(folder / MANIFEST), "format", FORMAT, manifest.get("format")))
    if WEIGHTS not in manifest["files"]:
        raise CheckpointError(f"{folder / MANIFEST}: expected a hash of {WEIGHTS}, found none")
    for name, wanted in manifest["files"].items():
        found = sha256(folder / name)
        if found != wanted:
            raise CheckpointError(mismatch(str(folder / name), "sha256", wanted[:12], found[:12]))
    return manifest


def _text_config(size: VlmSize, tokenizer: Any) -> dict[str, Any]:
    return dict(
        model_type="llama",
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _processor(size: VlmSize, tokenizer: Any) -> Any:
    edge = {"longest_edge": VISION["image_size"]}
    # As the backbone's: pixels in [-1, 1].
    pixels = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=PILImageResampling.BICUBIC)
    return tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(
            size=edge, max_image_size=edge, do_image_splitting=False, **pixels
        ),
        tokenizer=tokenizer,
        video_processor=tf.SmolVLMVideoProcessor(
            size=edge, max_image_size=edge, video_sampling={"max_frames": 16, "fps": 1}, **pixels
        ),
        image_seq_len=size.image_tokens,
        chat_template=chat_template(_IMAGE),
    )


def _tokenizer(size: VlmSize, instructions: Sequence[str]) -> Any:
    """Byte-level BPE in which the fixed sentences of the prompts are few tokens, and each number is one.

    Most of a prompt is the same every time; read word by word, it would cost more than the pictures.
    """
    bpe = Tokenizer(models.BPE(unk_token=None))
    numbers = pre_tokenizers.Split(Regex(r" ?[0-9]+"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([numbers, letters])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        min_frequency=_OFTEN,
        special_tokens=list(dict.fromkeys([*_SPECIAL, *_NAMED.values()])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(instructions), trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=_NAMED,
    )


def _corpus(instructions: Sequence[str]) -> list[str]:
    """All that it will read and write, often enough; instructions word by word, so that others are read."""
    blank = np.zeros((3, 1, 1, 3), np.uint8)
    texts: list[str] = []
    clip = Clip(blank, _TASK, np.arange(3))
    requests = [build_request(clip, 0, Wording(answer)) for answer in TAUGHT]
    for request in [*requests, build_prefix_request(clip, 1)]:
        for part in request.prompt.parts:
            texts += part.split(_TASK) if isinstance(part, str) else []
    texts += [f" {word}" for instruction in instructions for word in instruction.split()]
    texts += ["You", " True", *(write_answer(range(101), answer) for answer in TAUGHT)]
    return texts * _OFTEN
