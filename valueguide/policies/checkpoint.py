"""Policy checkpoints on disk: relocatable, hashed, written atomically, verified before use.

A folder is what LeRobot writes (config.json, model.safetensors, policy_preprocessor.json,
policy_postprocessor.json and their state), plus

- `clip/`, `smolvlm/` or `tokenizer/`: the configuration and tokenizer that the policy was built
  from, without weights (they are in model.safetensors), so that the folder can be moved;
- `manifest.json`: SHA-256 of every file, the version made from them, and training metadata.

A folder without a manifest is a plain LeRobot checkpoint and loads as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from valueguide.errors import CheckpointError, mismatch

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
#: Policy type -> (bundled folder, configuration fields that hold its path). Other types: "tokenizer".
BUNDLED = {
    "multi_task_dit": ("clip", ("vision_encoder_name", "text_encoder_name")),
    "smolvla": ("smolvlm", ("vlm_model_name",)),
}
_FORMAT = 1
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".pt", ".pth")


def bundle_of(policy_type: str) -> tuple[str, tuple[str, ...]]:
    """Name of the folder bundled with this policy type, and the config fields that point to it."""
    return BUNDLED.get(policy_type, ("tokenizer", ()))


def save_policy(
    policy: PreTrainedPolicy,
    preprocessor: PolicyProcessorPipeline,
    postprocessor: PolicyProcessorPipeline,
    folder: Path | str,
    clip_folder: Path | str | None = None,
    metadata: dict[str, Any] | None = None,
    half: bool = False,
) -> str:
    """Write a relocatable checkpoint; an existing one is replaced in one step. Returns its version.

    clip_folder: where the bundled configuration and tokenizer come from; default: the folder that the
    policy's configuration or its tokenizer step names, if it is a local one.
    metadata: JSON-serialisable training facts (action names, cameras, suite, ...).
    half: store the weights in 16 bits, for half the size; they are computed with in 32 bits all the same.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(draft, ignore_errors=True)
    policy.save_pretrained(draft)
    if half:
        weights = {n: t.half() if t.is_floating_point() else t for n, t in load_file(draft / WEIGHTS).items()}
        save_file(weights, draft / WEIGHTS)
    preprocessor.save_pretrained(draft, config_filename=PREPROCESSOR)
    postprocessor.save_pretrained(draft, config_filename=POSTPROCESSOR)
    _bundle(draft, Path(clip_folder) if clip_folder else None)
    files = _hashes(draft)
    version = version_of(files)
    manifest = {"format": _FORMAT, "version": version, "files": files, "metadata": metadata or {}}
    _write_json(draft / MANIFEST, manifest)
    _replace(draft, folder)
    return version


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected a file, found none. Is this a LeRobot policy folder?"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: expected JSON, found {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(mismatch(str(path), "content", "a JSON object", type(value).__name__))
    return value


def verify_files(folder: Path) -> tuple[str, dict[str, Any]]:
    """Check every file against the manifest, if there is one. Returns (version, metadata)."""
    found = _hashes(folder)
    if not (folder / MANIFEST).exists():
        return version_of(found), {}
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(mismatch(str(folder / MANIFEST), "format", _FORMAT, manifest.get("format")))
    for field, kind in (("version", str), ("files", dict), ("metadata", dict)):
        if not isinstance(manifest.get(field), kind):
            wrong = type(manifest.get(field)).__name__
            raise CheckpointError(mismatch(str(folder / MANIFEST), field, kind.__name__, wrong))
    if manifest["version"] != version_of(manifest["files"]):
        wanted = version_of(manifest["files"])
        raise CheckpointError(mismatch(str(folder / MANIFEST), "version", wanted, manifest["version"]))
    for name, expected in manifest["files"].items():
        if name not in found:
            raise CheckpointError(f"{folder / name}: expected a file (listed in {MANIFEST}), found none")
        if found[name] != expected:
            what = mismatch(str(folder / name), "sha256", expected[:12], found[name][:12])
            raise CheckpointError(f"{what}. The file is damaged or was edited: copy the checkpoint again")
    return manifest["version"], manifest["metadata"]


def version_of(files: dict[str, str]) -> str:
    """12 hexadecimal digits that stand for the content of all files."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def load_weights(policy: PreTrainedPolicy, path: Path) -> None:
    """Fill every tensor of the policy from a safetensors file.

    LeRobot loads non-strictly, and pi0 and pi05 even go on with random weights. Here a missing or
    truncated file, a missing, unexpected or misshapen tensor is a CheckpointError naming the file.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: expected the policy's weights, found no file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected intact safetensors, found {_first_line(error)}") from None
    rename = getattr(policy, "_fix_pytorch_state_dict_keys", None)
    if rename is not None:
        # pi0 and pi05: checkpoints ported from OpenPI carry other names.
        state = rename(state, policy.config)
        state = {key if key.startswith("model.") else f"model.{key}": value for key, value in state.items()}
    _check_tensors(policy, state, path)
    policy.load_state_dict(state, strict=False)


def _check_tensors(policy: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = policy.state_dict()
    # Tied tensors are stored once; any one of their names will do.
    stored_at = {expected[name].data_ptr() for name in state if name in expected}
    missing = [
        n for n, t in expected.items() if n not in state and t.data_ptr() not in stored_at and t.numel()
    ]
    if missing:
        raise CheckpointError(
            mismatch(str(path), "tensors", f"{len(expected)} tensors", f"no {_some(missing)}")
        )
    unexpected = [name for name in state if name not in expected]
    if unexpected:
        raise CheckpointError(
            mismatch(str(path), "tensors", "only the policy's", f"also {_some(unexpected)}")
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = tuple(expected[name].shape), tuple(tensor.shape)
            raise CheckpointError(mismatch(str(path), f"shape of {name}", *shapes))
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(mismatch(str(path), name, "finite numbers", "NaN or infinity"))


def _bundle(draft: Path, source: Path | None) -> None:
    """Copy configuration and tokenizer in, and make the JSON files point to the copy by its name."""
    config, steps = read_json(draft / CONFIG), read_json(draft / PREPROCESSOR)
    name, fields = bundle_of(config["type"])
    tokenizers = [s["config"] for s in steps["steps"] if s.get("registry_name") == "tokenizer_processor"]
    named = [config[field] for field in fields] + [t.get("tokenizer_name") for t in tokenizers]
    if source is None:
        source = next((Path(n) for n in named if n and Path(n).is_dir()), None)
    if "pretrained_path" in config:
        config["pretrained_path"] = None
    if source is not None:
        (draft / name).mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix not in _WEIGHT_SUFFIXES:
                shutil.copyfile(file, draft / name / file.name)
        config.update(dict.fromkeys(fields, name))
        for tokenizer in tokenizers:
            tokenizer["tokenizer_name"] = name
    _write_json(draft / CONFIG, config)
    _write_json(draft / PREPROCESSOR, steps)


def _hashes(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but the manifest and hidden files."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and str(name) != MANIFEST and not any(p.startswith(".") for p in name.parts):
            with path.open("rb") as file:
                hashes[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _replace(draft: Path, folder: Path) -> None:
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
