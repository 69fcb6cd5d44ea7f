"""Critic checkpoints: a folder of safetensors, config.yaml and a manifest that is checked on load.

Two kinds share the helpers here: a finished critic (what a robot loads) and a training state (what an
interrupted run continues from). Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.folders import replacing
from valueguide.critics.language import DEFAULT_SIMILARITY
from valueguide.critics.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    WEIGHTS,
    digest,
    read_json,
    read_manifest,
    sha256,
)
from valueguide.critics.networks import CriticNetwork
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.errors import CheckpointError, ConfigError, mismatch

TRAINING_TENSORS, TRAINING_STATE = "training.safetensors", "training.json"
_TOWER = "tower."


def save_critic(
    folder: Path,
    trainer: CriticTrainer,
    instructions: list[str],
    facts: dict[str, Any],
    tower: nn.Module | None = None,
    tower_config: dict[str, Any] | None = None,
    half: bool = False,
) -> str:
    """Write a finished critic, replacing an old one in one step. Returns its version (content hash).

    The target network's weights are saved: they are what scores. tower: the frozen vision tower of
    `frozen_clip`, with its configuration. facts: JSON-serialisable (dataset id, metrics, spread_limit).
    half: store the numbers in 16 bits, for half the size; they are computed with in 32 bits all the same.
    """
    tensors = {f"critic.{name}": value for name, value in trainer.target.state_dict().items()}
    tensors["instructions"] = trainer.embeddings
    if tower is not None:
        tensors |= {_TOWER + name: value for name, value in tower.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    config = {
        "spec": _plain(trainer.spec),
        "network": _plain(trainer.network),
        "train": _plain(trainer.config),
        "tower": tower_config,
    }
    normalizers = _normalizers_json(trainer.normalizers)
    with replacing(Path(folder)) as draft:
        _save_tensors(draft / WEIGHTS, tensors)
        (draft / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        files = {name: sha256(draft / name) for name in (WEIGHTS, CONFIG)}
        manifest = {
            "format": FORMAT,
            "version": digest(files)[:12],
            "files": files,
            "normalizers": normalizers,
            "instructions": instructions,
            "inputs_sha256": digest([normalizers, instructions]),
            "instruction_similarity": DEFAULT_SIMILARITY,
            "step": trainer.step,
            "made_with": {name: importlib.metadata.version(name) for name in ("valueguide", "torch")},
            **facts,
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, default=float))
    return str(manifest["version"])


class LoadedCritic:
    """The verified content of a critic folder; see `scorer.LearnedCritic` for scoring with it."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError naming the file that is missing, changed, truncated or does not fit."""
        self.manifest = read_manifest(folder)
        self.version: str = self.manifest["version"]
        config = _read_config(folder / CONFIG)
        self.spec, self.network_config, self.tower_config = config
        tensors = load_tensors(folder / WEIGHTS)
        self.network = CriticNetwork(self.spec, self.network_config)
        load_exactly(self.network, _part(tensors, "critic."), folder / WEIGHTS)
        self.tower_weights = _part(tensors, _TOWER)
        self.instructions: list[str] = self.manifest["instructions"]
        if len(tensors.get("instructions", ())) != len(self.instructions):
            raise CheckpointError(f"{folder / WEIGHTS}: expected one embedding for each instruction")
        # A copy: the tensors lie in the mapped file, and one that is truncated later would end the process.
        self.embeddings = tensors["instructions"].float().clone().numpy()
        raw, where = self.manifest["normalizers"], folder / MANIFEST
        try:
            self.normalizers = Normalizers(
                **{k: Normalizer.from_json(v, f"{where}: {k}") for k, v in raw.items()}
            )
        except TypeError as error:
            raise CheckpointError(f"{where}: normalizers: {error}") from error


def save_training(folder: Path, trainer: CriticTrainer) -> None:
    """Everything that `resume_training` needs to continue bit for bit; replaces `folder` in one step."""
    with replacing(Path(folder)) as draft:
        write_training(draft, trainer)


def write_training(folder: Path, trainer: CriticTrainer) -> None:
    """The files of `save_training` into an existing folder, which the caller makes appear as a whole."""
    tensors = {"generator": trainer.generator.get_state(), "global_rng": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(trainer.device)
    tensors |= {f"target.{n}": v for n, v in trainer.target.state_dict().items()}
    for name, module in trainer.modules.items():
        tensors |= {f"{name}.{n}": v for n, v in module.state_dict().items()}
        for index, state in trainer.optimisers[name].state_dict()["state"].items():
            tensors |= {f"optimiser.{name}.{index}.{key}": value for key, value in state.items()}
    counts = {n: [z.seen, z.clipped] for n, z in vars(trainer.normalizers).items() if z is not None}
    _save_tensors(folder / TRAINING_TENSORS, tensors)
    state = {
        "step": trainer.step,
        "device": trainer.device.type,
        "counts": counts,
        "spec": _plain(trainer.spec),
        "network": _plain(trainer.network),
        "train": _plain(trainer.config),
        "sha256": sha256(folder / TRAINING_TENSORS),
        "inputs_sha256": _inputs_digest(trainer),
    }
    (folder / TRAINING_STATE).write_text(json.dumps(state, indent=1))


def resume_training(folder: Path, trainer: CriticTrainer) -> None:
    """Put a freshly built trainer into the saved state; CheckpointError when settings differ."""
    path = folder / TRAINING_STATE
    state = read_json(path)
    for name, value in (("spec", trainer.spec), ("network", trainer.network), ("train", trainer.config)):
        if _with_defaults(state.get(name), value) != _plain(value):
            raise CheckpointError(
                mismatch(str(path), f"{name} settings", state.get(name), _plain(value), "Use a new --out")
            )
    # The random streams of a GPU cannot be continued on a CPU, nor the other way round.
    device = state.get("device", "cpu")
    if device != trainer.device.type:
        hint = f"Continue with --device {device}, or use a new --out"
        raise CheckpointError(mismatch(str(path), "device", device, trainer.device.type, hint))
    for name in ("step", "counts", "sha256"):
        if name not in state:
            raise CheckpointError(f"{path}: field {name!r} is missing")
    if state.get("inputs_sha256", _inputs_digest(trainer)) != _inputs_digest(trainer):
        raise CheckpointError(
            f"{path}: expected the data of the interrupted run, found other normalisers or instructions. "
            "Use a new --out"
        )
    if sha256(folder / TRAINING_TENSORS) != state["sha256"]:
        raise CheckpointError(f"{folder / TRAINING_TENSORS}: the content does not match its recorded hash")
    tensors = load_tensors(folder / TRAINING_TENSORS)
    load_exactly(trainer.target, _part(tensors, "target."), folder / TRAINING_TENSORS)
    for name, module in trainer.modules.items():
        load_exactly(module, _part(tensors, f"{name}."), folder / TRAINING_TENSORS)
        load_optimiser(trainer.optimisers[name], _part(tensors, f"optimiser.{name}."))
    trainer.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["global_rng"])
    if trainer.device.type == "cuda" and "cuda_rng" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_rng"], trainer.device)
    for name, (seen, clipped) in state["counts"].items():
        normalizer = getattr(trainer.normalizers, name)
        normalizer.seen, normalizer.clipped = seen, clipped
    trainer.step = int(state["step"])


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError when the file is missing or truncated."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected complete safetensors, found {error}") from error


def load_optimiser(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """flat: what the optimiser keeps of each parameter, as "<number>.<name>" -> tensor."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: missing tensors {missing[:3]}, unexpected tensors {extra[:3]}")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                mismatch(str(path), f"shape of {name}", tuple(own[name].shape), tuple(value.shape))
            )
    module.load_state_dict(tensors)


def _read_config(path: Path) -> tuple[CriticSpec, NetworkConfig, dict[str, Any] | None]:
    try:
        raw = yaml.safe_load(path.read_text())
        spec = dict(raw["spec"])
        for names in ("action_names", "state_names"):
            spec[names] = tuple(spec.get(names, ()))
        spec["cameras"] = {name: tuple(size) for name, size in spec["cameras"].items()}
        network = dict(raw["network"])
        network["value_range"] = tuple(network["value_range"])
        return CriticSpec(**spec), NetworkConfig(**network), raw.get("tower")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: expected a critic configuration, found {error}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _plain(value: CriticSpec | NetworkConfig | TrainConfig) -> dict[str, Any]:
    """A dataclass as JSON-like data (lists instead of tuples), so that it compares after a round trip."""
    return json.loads(json.dumps(asdict(value)))


def _with_defaults(saved: Any, value: CriticSpec | NetworkConfig | TrainConfig) -> Any:
    """Settings that an older version saved, completed by the defaults of fields that are newer than it."""
    known = {f.name: f.default for f in fields(value) if f.default is not MISSING}
    return json.loads(json.dumps(known)) | saved if isinstance(saved, dict) else saved


def _normalizers_json(normalizers: Normalizers) -> dict[str, Any]:
    return {name: value.to_json() for name, value in vars(normalizers).items() if value is not None}


def _inputs_digest(trainer: CriticTrainer) -> str:
    """Of what a resumed run must see alike: normalisers and instruction embeddings."""
    embeddings = hashlib.sha256(trainer.embeddings.cpu().numpy().tobytes()).hexdigest()
    return digest([_normalizers_json(trainer.normalizers), embeddings])


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # Scalars and shared storage are legal in a module but not in the file.
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)
