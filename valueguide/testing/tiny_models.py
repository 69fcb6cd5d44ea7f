"""Tiny real models for tests: LeRobot's own classes with random weights, no Hub, about a second each.

tiny = make_tiny_policy("smolvla", tmp_path)
policy = tiny.adapter()                       # a LeRobotPolicy
tiny.save(tmp_path / "checkpoint")            # a folder that load_policy takes
policy.observe(tiny_observation(seed=1))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMProcessor
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.clip_assets import build_clip_folder, train_bpe
from valueguide.policies.load import save_policy
from valueguide.types import Observation

POLICY_TYPES = ("act", "diffusion", "multi_task_dit", "pi0", "pi05", "smolvla")
STATE_DIM, ACTION_DIM, HORIZON = 6, 4, 8
CAMERAS = {"front": (64, 64), "wrist": (64, 64)}
SENTENCES = (
    "put the carrot on the plate",
    "open the drawer",
    "Task: push it, State: 0 1 2 3 4 5 6 7 8 9;\nAction: ",
)


@dataclass(frozen=True)
class TinyPolicy:
    """A policy with its processors."""

    policy: PreTrainedPolicy
    preprocessor: PolicyProcessorPipeline
    postprocessor: PolicyProcessorPipeline

    def adapter(self, **options: Any) -> LeRobotPolicy:
        """The policy behind valueguide's interface. It shares this policy's modules."""
        return LeRobotPolicy(self.policy, self.preprocessor, self.postprocessor, **options)

    def save(self, folder: Path, metadata: dict[str, Any] | None = None) -> str:
        """Write a checkpoint; returns its version."""
        return save_policy(self.policy, self.preprocessor, self.postprocessor, folder, metadata=metadata)


def tiny_observation(seed: int = 0, task: str = SENTENCES[0], environment_dim: int = 0) -> Observation:
    """A random observation that every tiny policy accepts."""
    rng = np.random.default_rng(seed)
    return Observation(
        images={name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in CAMERAS.items()},
        state=rng.normal(size=STATE_DIM).astype(np.float32),
        task=task,
        environment_state=rng.normal(size=environment_dim).astype(np.float32) if environment_dim else None,
    )


def make_tiny_policy(policy_type: str, folder: Path, seed: int = 0, **config: Any) -> TinyPolicy:
    """A random policy of one of POLICY_TYPES. `folder` receives the CLIP, SmolVLM or tokenizer files it
    stands on; `config` overrides fields of the LeRobot configuration."""
    with torch.random.fork_rng(devices=[]), shrunken_pi():
        torch.manual_seed(seed)
        settings = _BUILDERS[policy_type](folder) | _features() | {"device": "cpu", "push_to_hub": False}
        configuration = make_policy_config(policy_type, **(settings | config))
        policy = get_policy_class(policy_type)(configuration)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if "adaLN_modulation" in name:
                    weight.normal_(std=0.2)  # initialised to zero, which would hide the condition
        with _local_tokenizer(folder / "tokenizer"):
            processors = make_pre_post_processors(configuration, dataset_stats=_statistics(configuration))
    return TinyPolicy(policy.to(configuration.device).eval(), *processors)


@contextlib.contextmanager
def shrunken_pi() -> Iterator[None]:
    """Inside, pi0 and pi05 are built with toy widths: LeRobot hard-codes sizes of billions."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    with contextlib.ExitStack() as stack:
        for module in (modeling_pi0, modeling_pi05):
            # 8 heads, because the training pass of LeRobot has that number written in.
            size = module.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=16)
            shrunken = {
                "get_gemma_config": lambda variant, size=size: size,
                "PaliGemmaForConditionalGenerationWithPiGemma": _shrinking(
                    module.PaliGemmaForConditionalGenerationWithPiGemma
                ),
                "PiGemmaForCausalLM": _shrinking(module.PiGemmaForCausalLM),
            }
            stack.enter_context(mock.patch.multiple(module, **shrunken))
        yield


def build_smolvlm_folder(out: Path) -> Path:
    """Configuration, tokenizer and processor of a toy SmolVLM2; no weights."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>"]
    image = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
    }
    bpe = train_bpe(SENTENCES, 400, [*specials, *image.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens=image | {"end_of_utterance_token": "<end_of_utterance>"},
    )
    text = dict(
        model_type="llama",
        vocab_size=bpe.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    SmolVLMConfig(
        image_token_id=bpe.token_to_id("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        text_config=text,
        vision_config=vision,
    ).save_pretrained(out)
    edge = {"longest_edge": 64}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=edge, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=edge, max_image_size=edge, video_sampling={"max_frames": 8, "fps": 1}
        ),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ).save_pretrained(out)
    return out


def _features() -> dict[str, Any]:
    inputs = {OBS_STATE: PolicyFeature(FeatureType.STATE, (STATE_DIM,))}
    for name, size in CAMERAS.items():
        inputs[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, *size))
    return {
        "input_features": inputs,
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    }


def _statistics(config: Any) -> dict[str, dict[str, Tensor]]:
    """Not the identity, so that a forgotten (un)normalisation shows."""
    stats = {}
    for key, feature in (config.input_features | config.output_features).items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else tuple(feature.shape)
        low, high = torch.full(shape, -3.0), torch.full(shape, 4.0)
        mean, std = torch.full(shape, 0.4), torch.full(shape, 0.3)
        quantiles = {"q01": low, "q99": high}
        stats[key] = {"min": low, "max": high, "mean": mean, "std": std} | quantiles
    return stats


def _act(folder: Path) -> dict[str, Any]:
    return dict(
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=2,
        n_vae_encoder_layers=1,
        latent_dim=8,
    )


def _diffusion(folder: Path) -> dict[str, Any]:
    return dict(
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=HORIZON - 1,
        drop_n_last_frames=0,
        down_dims=(16, 32),
        n_groups=4,
        diffusion_step_embed_dim=16,
        spatial_softmax_num_keypoints=4,
        pretrained_backbone_weights=None,
        use_group_norm=True,
        crop_shape=None,
        noise_scheduler_type="DDIM",
        num_inference_steps=3,
    )


def _multi_task_dit(folder: Path) -> dict[str, Any]:
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    clip = build_clip_folder(
        folder / "clip",
        SENTENCES,
        vision=tower | dict(image_size=64, patch_size=16),
        text=tower | dict(max_position_embeddings=32),
        vocab_size=300,
        projection_dim=32,
    )
    return dict(
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=HORIZON - 1,
        objective="flow_matching",
        num_integration_steps=3,
        noise_scheduler_type="DDIM",
        num_inference_steps=3,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        timestep_embed_dim=16,
        image_crop_shape=None,
        tokenizer_max_length=24,
        vision_encoder_name=str(clip),
        text_encoder_name=str(clip),
    )


def _smolvla(folder: Path) -> dict[str, Any]:
    return dict(
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        max_state_dim=8,
        max_action_dim=8,
        resize_imgs_with_padding=(64, 64),
        tokenizer_max_length=24,
        num_steps=3,
        vlm_model_name=str(build_smolvlm_folder(folder / "smolvlm")),
        load_vlm_weights=False,
        num_vlm_layers=4,
        self_attn_every_n_layers=2,
    )


def _pi(folder: Path) -> dict[str, Any]:
    bpe = train_bpe(SENTENCES, 300, ["<pad>", "<eos>"])
    PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "tokenizer"
    )
    return dict(
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        max_state_dim=8,
        max_action_dim=8,
        num_inference_steps=3,
        image_resolution=(56, 56),
        tokenizer_max_length=48,
    )


_BUILDERS = {
    "act": _act,
    "diffusion": _diffusion,
    "multi_task_dit": _multi_task_dit,
    "pi0": _pi,
    "pi05": _pi,
    "smolvla": _smolvla,
}


def _shrinking(model_class: Any) -> Any:
    """A constructor that makes vocabulary and vision tower small first."""

    def construct(config: Any) -> Any:
        text = getattr(config, "text_config", config)
        text.vocab_size = 320
        if hasattr(config, "vision_config"):
            vision = config.vision_config
            vision.hidden_size, vision.intermediate_size, vision.projection_dim = 32, 64, text.hidden_size
            vision.num_hidden_layers, vision.num_attention_heads = 1, 2
            config.projection_dim = text.hidden_size
        return model_class(config=config)

    return construct


@contextlib.contextmanager
def _local_tokenizer(folder: Path) -> Iterator[None]:
    """pi0 and pi05 name a gated Hub tokenizer in their code; inside, they get the one in `folder`."""

    def step(*args: Any, tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(*args, tokenizer_name=str(folder), **options)

    with (
        mock.patch("lerobot.policies.pi0.processor_pi0.TokenizerProcessorStep", step),
        mock.patch("lerobot.policies.pi05.processor_pi05.TokenizerProcessorStep", step),
    ):
        yield
