"""Vision-language models of well-known families, tiny and random: real classes, real processors, no Hub.

folder = build_tiny_vlm("qwen2_5_vl", tmp_path)      # what AutoProcessor and AutoModelForImageTextToText load
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

from valueguide.policies.clip_assets import train_bpe
from valueguide.vlm.small_vlm import chat_template

FAMILIES = ("smolvlm", "qwen2_5_vl", "qwen3_vl", "llava", "paligemma", "gemma3", "internvl", "glm4v")
_SENTENCES = (
    "You are an expert roboticist. Initial scene: Frame 1: 0% Frame 12: 100% Task completion percentage: 37.",
    '{"frames": [{"frame_number": 3, "task_completion_percentage": 80}]}',
    "The answer is: True False",
)
_ENDS = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<end>"]
_TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16384,
    tie_word_embeddings=False,
)
_SIGHT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=56,
    patch_size=14,
)


def build_tiny_vlm(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes a model of one of FAMILIES with tokenizer, processor and chat template (PaliGemma: none)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[family]()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "mm_input_projection" in name or "projector" in name:
                    weight.normal_(std=0.5)  # Gemma 3's begins at zero, which would hide the pictures
        ends = processor.tokenizer
        model.generation_config = tf.GenerationConfig(
            bos_token_id=ends.bos_token_id, eos_token_id=ends.eos_token_id, pad_token_id=ends.pad_token_id
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def _tokenizer(named: dict[str, str]) -> Any:
    bpe = train_bpe(_SENTENCES, 420, [*_ENDS, *named.values()])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = dict(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _TEXT | ids | dict(vocab_size=len(tokenizer)) | more


def _smolvlm() -> tuple[Any, Any]:
    named = dict(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end>",
    )
    tokenizer = _tokenizer(named)
    config = tf.SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        text_config=_text(tokenizer, model_type="llama"),
        vision_config=_SIGHT,
    )
    edge = {"longest_edge": 56}
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(size=edge, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=tf.SmolVLMVideoProcessor(
            size=edge, max_image_size=edge, video_sampling={"max_frames": 8, "fps": 1}
        ),
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )
    return tf.SmolVLMForConditionalGeneration(config), processor


_QWEN = dict(
    vision_start_token="<|vision_start|>",
    vision_end_token="<|vision_end|>",
    image_token="<|image_pad|>",
    video_token="<|video_pad|>",
)


_QWEN_SIGHT = dict(
    depth=1, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=14, out_hidden_size=32
)


def _qwen(tokenizer: Any, vision: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _QWEN.items()}
    return dict(text_config=_text(tokenizer, rope_parameters=rope), vision_config=vision, **ids)


def _qwen_processor(processor: Any, tokenizer: Any, patch: int) -> Any:
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    options = dict(patch_size=patch, size=size)
    return processor(
        image_processor=tf.Qwen2VLImageProcessor(**options),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(**options),
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(_QWEN)
    vision = _QWEN_SIGHT | dict(window_size=56, fullatt_block_indexes=[0])
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = tf.Qwen2_5_VLConfig(**_qwen(tokenizer, vision, rope))
    return (
        tf.Qwen2_5_VLForConditionalGeneration(config),
        _qwen_processor(tf.Qwen2_5_VLProcessor, tokenizer, 14),
    )


def _qwen3_vl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(_QWEN)
    vision = _QWEN_SIGHT | dict(num_position_embeddings=64, deepstack_visual_indexes=[0])
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = tf.Qwen3VLConfig(**_qwen(tokenizer, vision, rope))
    return tf.Qwen3VLForConditionalGeneration(config), _qwen_processor(tf.Qwen3VLProcessor, tokenizer, 14)


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer(dict(image_token="<image>"))
    config = tf.LlavaConfig(
        text_config=_text(tokenizer, model_type="llama"),
        vision_config=_SIGHT | dict(model_type="clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    size = dict(height=56, width=56)
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    return tf.LlavaForConditionalGeneration(config), processor


def _paligemma() -> tuple[Any, Any]:
    tokenizer = _tokenizer(dict(image_token="<image>"))
    image = tf.SiglipImageProcessor(size=dict(height=56, width=56))
    image.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image_processor=image, tokenizer=tokenizer)
    config = tf.PaliGemmaConfig(
        text_config=_text(tokenizer, model_type="gemma"),
        vision_config=_SIGHT | dict(model_type="siglip_vision_model", projection_dim=32),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return tf.PaliGemmaForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    named = dict(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    tokenizer = _tokenizer(named)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = tf.Gemma3Config(
        text_config=_text(tokenizer, sliding_window=512, query_pre_attn_scalar=8),
        vision_config=_SIGHT,
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size=dict(height=56, width=56)),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_template("<start_of_image>"),
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    named = dict(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    tokenizer = _tokenizer(named)
    config = tf.InternVLConfig(
        text_config=_text(tokenizer, model_type="qwen2"),
        vision_config=_SIGHT | dict(image_size=(56, 56)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    size = dict(height=56, width=56)
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_template("<IMG_CONTEXT>"),
    )
    return tf.InternVLForConditionalGeneration(config), processor


def _glm4v() -> tuple[Any, Any]:
    named = dict(
        image_token="<|image|>",
        video_token="<|video|>",
        image_start_token="<|begin_of_image|>",
        image_end_token="<|end_of_image|>",
        video_start_token="<|begin_of_video|>",
        video_end_token="<|end_of_video|>",
    )
    tokenizer = _tokenizer(named)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = tf.Glm4vConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config=_QWEN_SIGHT | dict(image_size=56),
        **ids,
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    processor = tf.Glm4vProcessor(
        image_processor=tf.Glm4vImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=tf.Glm4vVideoProcessor(size=size),
        chat_template=chat_template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return tf.Glm4vForConditionalGeneration(config), processor


_BUILDERS = {
    "smolvlm": _smolvlm,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava": _llava,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "glm4v": _glm4v,
}
