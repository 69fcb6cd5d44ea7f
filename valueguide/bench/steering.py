"""Cost of guidance: scoring K chunks, K = 16 against K = 1, and the critic's share of a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from valueguide.bench.measure import medians, peak_memory_mb
from valueguide.critics.config import CriticSpec, NetworkConfig
from valueguide.critics.encoders import Inputs
from valueguide.critics.networks import CriticNetwork
from valueguide.types import Observation

_LANGUAGE = 512


def encode_once(repeats: int = 3, device: str = "cpu", chunks: int = 50, side: int = 224) -> dict[str, Any]:
    """Full-size critic, one picture of `side` pixels: encoding it once against once for each of the chunks.

    Baseline: the repeated picture of the public V-GPS evaluation code, in one batch.
    """
    spec = CriticSpec(1, tuple("xyzrpw") + ("g",), 0, 0, {"front": (side, side)})
    network = CriticNetwork(spec, NetworkConfig("resnet34_film", use_state=False, language_dim=_LANGUAGE))
    network.eval().to(device)
    picture = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, device=device)
    language = torch.randn(1, _LANGUAGE, device=device)
    actions = torch.rand(chunks, 1, 7, device=device) * 2 - 1
    valid = torch.ones(chunks, 1, dtype=torch.bool, device=device)

    def inputs(count: int) -> Inputs:
        images = {"front": picture.expand(count, -1, -1, -1)}
        return Inputs(language.expand(count, -1), torch.zeros(count, 0, device=device), images=images)

    # A GPU works on after a call returns; bringing the scores back waits for it.
    @torch.inference_mode()
    def once() -> torch.Tensor:
        return network(network.encode(inputs(1)).expand(chunks, -1), actions, valid).cpu()

    @torch.inference_mode()
    def repeated() -> torch.Tensor:
        return network(network.encode(inputs(chunks)), actions, valid).cpu()

    difference = float((once() - repeated()).abs().max())
    seconds = medians({"once": once, "repeated": repeated}, repeats, warm_up=0)
    return {
        "k": chunks,
        "seconds": seconds,
        "speedup": seconds["repeated"] / seconds["once"],
        "largest_difference": difference,
        "peak_memory_mb": peak_memory_mb(),
    }


def candidates_of(policy: Any, observation: Observation, ks: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Seconds of one decision's sampling for each K, and each as a ratio to the first."""
    policy.reset()
    policy.observe(observation)
    # A new observation each time, as on a robot: nothing of the prefix survives between decisions.
    functions = {f"k={k}": (lambda k=k: (policy.observe(observation), policy.sample(k, 0))) for k in ks}
    seconds = medians(functions, repeats)
    base = seconds[f"k={ks[0]}"]
    return {
        "seconds": seconds,
        "ratio": {name: value / base for name, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def critic_share(policy: Any, critic: Any, observation: Observation, k: int, repeats: int) -> dict[str, Any]:
    """The critic's part of one guided decision: (encode + score) / (sample + encode + score)."""
    policy.reset()
    policy.observe(observation)
    actions = policy.sample(k, 0).actions

    def sample() -> object:
        policy.observe(observation)
        return policy.sample(k, 0)

    seconds = medians(
        {"policy": sample, "critic": lambda: critic.score(critic.encode(observation), actions)}, repeats
    )
    total = seconds["policy"] + seconds["critic"]
    return {"k": k, "seconds": seconds, "critic_share": seconds["critic"] / total}


def real_size_smolvla(folder: Path, device: str = "cpu") -> Any:
    """A SmolVLA of its published size with random weights, for two 512-pixel pictures.

    The published one has 450 M parameters; 95 M are its vocabulary's, of which a decision reads a few rows,
    so a toy vocabulary stands in for it.
    """
    import json

    from valueguide.testing.tiny_models import build_smolvlm_folder, make_tiny_policy

    backbone = build_smolvlm_folder(folder / "smolvlm-real")
    path = backbone / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].update(hidden_size=960, intermediate_size=2560, num_hidden_layers=16,
                                 num_attention_heads=15, num_key_value_heads=5, head_dim=64)  # fmt: skip
    config["vision_config"].update(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                   num_attention_heads=12, image_size=512, patch_size=16)  # fmt: skip
    config["scale_factor"] = 4
    path.write_text(json.dumps(config))
    tiny = make_tiny_policy(
        "smolvla",
        folder,
        vlm_model_name=str(backbone),
        chunk_size=50,
        n_action_steps=50,
        max_state_dim=32,
        max_action_dim=32,
        resize_imgs_with_padding=(512, 512),
        tokenizer_max_length=48,
        num_steps=10,
        num_vlm_layers=16,
        device=device,
    )
    return tiny.adapter()


def random_observation(policy: Any, seed: int = 0, task: str = "pick up the can") -> Observation:
    """Random pictures and states of the sizes that a policy wants."""
    rng = np.random.default_rng(seed)
    images = {n: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for n, size in policy.cameras.items()}
    return Observation(images, rng.random(policy.state_dim, dtype=np.float32), task)
