"""Loads any LeRobot policy, from a folder or a Hub id, with its own processors, and checks it first."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lerobot.policies  # noqa: F401  (registers the policy types)
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.import_utils import register_third_party_plugins
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

import valueguide.policies.processors  # noqa: F401  (registers the steps that our checkpoints use)
from valueguide.errors import CheckpointError
from valueguide.policies import checkpoint
from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.checkpoint import save_policy

__all__ = ["load_policy", "save_policy"]

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load_policy(path_or_hub_id: str | Path, device: str = "cpu") -> LeRobotPolicy:
    """A policy ready to sample from, in evaluation mode, frozen.

    path_or_hub_id: a folder as `lerobot-train` writes (`.../pretrained_model`), one written by
    `save_policy`, or the id of a Hub repository. Raises CheckpointError with one line that names the
    file when anything is missing, damaged or does not fit.
    """
    folder = _local_folder(path_or_hub_id)
    version, metadata = checkpoint.verify_files(folder)
    register_third_party_plugins()
    config = _read_config(folder, device)
    policy = _construct(config, folder)
    checkpoint.load_weights(policy, folder / checkpoint.WEIGHTS)
    policy.to(device).eval().requires_grad_(False)
    preprocessor, postprocessor = _load_processors(config, folder, device)
    return LeRobotPolicy(policy, preprocessor, postprocessor, version=version, metadata=metadata)


def _local_folder(path_or_hub_id: str | Path) -> Path:
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        hint = ". A policy server proposes for eval and for the node policy only" if "://" in name else ""
        raise CheckpointError(
            f"{name}: expected a policy folder or a Hub id (owner/name), found neither{hint}"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HFValidationError) as error:
        # OSError covers "offline", "not in the cache", "no such repository" and HTTP errors.
        reason = type(error).__name__
        raise CheckpointError(
            f"{name}: expected a policy folder or a reachable Hub repository, found neither ({reason}). "
            "Check the spelling and the network, or pass a local folder"
        ) from error


def _read_config(folder: Path, device: str) -> PreTrainedConfig:
    path = folder / checkpoint.CONFIG
    raw = checkpoint.read_json(path)
    if raw.get("use_peft"):
        raise CheckpointError(
            f"{path}: expected full weights, found a PEFT adapter. Merge it into its base first"
        )
    try:
        config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--device={device}"])
    except Exception as error:  # draccus raises many kinds; all of them mean that the file is wrong
        raise CheckpointError(f"{path}: expected a LeRobot policy configuration: {_reason(error)}") from error
    name, fields = checkpoint.bundle_of(config.type)
    if (folder / name).is_dir():
        for field in fields:
            setattr(config, field, str(folder / name))
    return config


def _construct(config: PreTrainedConfig, folder: Path) -> PreTrainedPolicy:
    """The policy with whatever weights its constructor gives it; all of them are overwritten next."""
    half = False
    if config.type == "smolvla":
        # LeRobot keeps a pre-trained language model in bfloat16, one built from its configuration in float32.
        half, config.load_vlm_weights = config.load_vlm_weights, False
    try:
        # Constructors print; standard output belongs to the caller's results.
        with (
            contextlib.redirect_stdout(sys.stderr),
            _without_backbone_weights(config),
            torch.random.fork_rng(devices=[]),
        ):
            policy = get_policy_class(config.type)(config)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: cannot build a {config.type} policy: {_reason(error)}. "
            "A backbone or tokenizer it names may be neither a local folder nor reachable"
        ) from error
    if half:
        policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    return policy


@contextlib.contextmanager
def _without_backbone_weights(config: PreTrainedConfig) -> Iterator[None]:
    """Backbones are built from their configuration only: their weights are in model.safetensors too."""
    if getattr(config, "pretrained_backbone_weights", None) is not None:  # act, diffusion, vqbet: torchvision
        config.pretrained_backbone_weights = None
    if config.type != "multi_task_dit":
        yield
        return
    from lerobot.policies.multi_task_dit import modeling_multi_task_dit as module

    # The policy's constructor has no option for this; it reads the weights through these two names.
    original = module.CLIPVisionModel, module.CLIPTextModel
    module.CLIPVisionModel = SimpleNamespace(
        from_pretrained=lambda name: CLIPVisionModel(CLIPVisionConfig.from_pretrained(name))
    )
    module.CLIPTextModel = SimpleNamespace(
        from_pretrained=lambda name: CLIPTextModel(CLIPTextConfig.from_pretrained(name))
    )
    try:
        yield
    finally:
        module.CLIPVisionModel, module.CLIPTextModel = original


def _load_processors(config: PreTrainedConfig, folder: Path, device: str) -> tuple[Any, Any]:
    name, _ = checkpoint.bundle_of(config.type)
    overrides: list[dict[str, dict[str, Any]]] = []
    for file in (checkpoint.PREPROCESSOR, checkpoint.POSTPROCESSOR):
        listed = checkpoint.read_json(folder / file).get("steps")
        if not isinstance(listed, list) or not all(isinstance(step, dict) for step in listed):
            raise CheckpointError(f"{folder / file}: steps: expected a list of processor steps, found none")
        steps = {step.get("registry_name") for step in listed}
        overrides.append({})
        if file == checkpoint.PREPROCESSOR and "device_processor" in steps:
            overrides[-1]["device_processor"] = {"device": device}
        if "tokenizer_processor" in steps and (folder / name).is_dir():
            overrides[-1]["tokenizer_processor"] = {"tokenizer_name": str(folder / name)}
    try:
        return make_pre_post_processors(
            config, str(folder), preprocessor_overrides=overrides[0], postprocessor_overrides=overrides[1]
        )
    except Exception as error:  # LeRobot raises bare errors of any kind for damaged processor files
        raise CheckpointError(f"{folder}: cannot load the policy's processors: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
