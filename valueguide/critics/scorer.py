"""`LearnedCritic`: a loaded critic as an `interfaces.Critic`, physical numbers in, Q values out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valueguide.critics.checkpoint import LoadedCritic, load_exactly
from valueguide.critics.config import CriticSpec
from valueguide.critics.language import InstructionTable, SentenceEncoder
from valueguide.critics.trainer import build_inputs
from valueguide.errors import CheckpointError, ConfigError, DataError, mismatch
from valueguide.types import Float32, Observation, Scores, UInt8

_PIXEL_MEAN = _PIXEL_STD = 0.5


class LearnedCritic:
    """Scores chunks with the target network; action-free work happens once, in `encode`.

    version: content hash. action_dim, executed_length: of the chunks it scores. spread_limit: the
    ensemble spread above which its scores should not be trusted, or None when it was not calibrated.
    tower: the frozen vision tower of `frozen_clip`, or None.
    """

    def __init__(
        self, loaded: LoadedCritic, where: str, encoder: SentenceEncoder | None = None, device: str = "cpu"
    ) -> None:
        """where: the folder, for messages. encoder: for instructions that training did not see."""
        self._device = _usable_device(device)
        self.spec: CriticSpec = loaded.spec
        self.manifest = loaded.manifest
        self.version = loaded.version
        self.action_dim = loaded.spec.action_dim
        self.executed_length = loaded.spec.executed_length
        self.spread_limit: float | None = loaded.manifest.get("spread_limit")
        self._kind = loaded.network_config.encoder
        self._network = loaded.network.eval().requires_grad_(False).to(self._device)
        self._normalizers = loaded.normalizers
        threshold = float(loaded.manifest.get("instruction_similarity", 0.0))
        self._instructions = InstructionTable(loaded.instructions, loaded.embeddings, encoder, threshold)
        self.tower = _build_tower(loaded, where).to(self._device) if self._kind == "frozen_clip" else None

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LearnedCritic:
        """Read and verify a critic folder. Raises CheckpointError (see `checkpoint`), or ConfigError when
        this machine has no such device."""
        _usable_device(device)
        return cls(LoadedCritic(Path(path)), str(path), device=device)

    def check_compatible(
        self,
        action_names: tuple[str, ...] | None = None,
        cameras: dict[str, tuple[int, int]] | None = None,
        state_dim: int | None = None,
        horizon: int | None = None,
        state_names: tuple[str, ...] | None = None,
    ) -> None:
        """Refuse a robot or policy that this critic was not made for. Raises CheckpointError, one line."""
        where, spec = f"critic {self.version}", self.spec
        if action_names is not None and tuple(action_names) != spec.action_names:
            raise CheckpointError(mismatch(where, "action names", spec.action_names, tuple(action_names)))
        if state_dim is not None and state_dim != spec.state_dim:
            raise CheckpointError(mismatch(where, "state size", spec.state_dim, state_dim))
        if state_names and spec.state_names and tuple(state_names) != spec.state_names:
            raise CheckpointError(mismatch(where, "state names", spec.state_names, tuple(state_names)))
        if horizon is not None and horizon < spec.executed_length:
            raise CheckpointError(mismatch(where, "planned steps", f">= {spec.executed_length}", horizon))
        for name, size in spec.cameras.items() if cameras is not None else ():
            found = (cameras or {}).get(name)
            if found is None or tuple(found) != tuple(size):
                raise CheckpointError(mismatch(where, f"camera {name!r}", size, found or "no such camera"))

    def check_instruction(self, instruction: str) -> None:
        """Raises ConfigError when the instruction belongs to no task that the critic knows."""
        self._instructions.embed(instruction)

    def encode(self, observation: Observation) -> Tensor:
        """(1, F), or (M, 1, F) with own encoders. Raises DataError for a wrong or non-finite observation,
        ConfigError for a foreign task."""
        return self._encode_all([observation])

    def _encode_all(self, observations: Sequence[Observation]) -> Tensor:
        """(B, F), or (M, B, F) with own encoders."""
        for observation in observations:
            self._check(observation)
        images = {name: np.stack([o.images[name] for o in observations]) for name in self.spec.cameras}
        features = self.vision_features(images) if self.tower is not None else None
        privileged = [o.environment_state for o in observations if o.environment_state is not None]
        return self._encode(
            [o.task for o in observations],
            np.stack([o.state for o in observations]),
            np.stack(privileged) if len(privileged) == len(observations) else None,
            features,
            images,
        )

    def _encode(
        self,
        tasks: list[str],
        state: Float32,
        environment_state: Float32 | None,
        features: Float32 | None = None,
        images: dict[str, UInt8] | None = None,
    ) -> Tensor:
        """The network's encoding of B observations, all arrays with a leading B, physical."""
        language = torch.from_numpy(np.stack([self._instructions.embed(t) for t in tasks])).to(self._device)
        with torch.inference_mode():
            inputs = build_inputs(
                self._kind,
                self._normalizers,
                language=language,
                state=state,
                environment_state=environment_state,
                features=features,
                images=images or {},
            )
            return self._network.encode(inputs)

    def score(self, features: Any, actions: Float32) -> Scores:
        """actions: float32 (K, H, A), physical, H >= E; the first E steps are scored. q: (M, K)."""
        if actions.ndim != 3:
            wanted = f"(K >= 1, H >= {self.executed_length}, {self.action_dim})"
            raise DataError(mismatch("critic", "candidate shape", wanted, actions.shape))
        return Scores(self._score(features, actions[None])[:, 0])

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        """K chunks for each of B observations in one pass, (B, K, H, A), physical. q: float32 (M, B, K).

        As `encode` and `score` one by one, up to rounding; raises what they raise.
        """
        if actions.ndim != 4 or len(actions) != len(observations):
            wanted = f"({len(observations)}, K, H, {self.action_dim})"
            raise DataError(mismatch("critic", "candidate shape", wanted, actions.shape))
        return self._score(self._encode_all(observations), actions)

    def _score(self, features: Tensor, actions: Float32) -> Float32:
        """actions: (B, K, H, A) for B encoded observations. q: (M, B, K)."""
        steps, shape = self.executed_length, actions.shape
        if not shape[1] or shape[2] < steps or shape[3] != self.action_dim:
            wanted = f"(K >= 1, H >= {steps}, {self.action_dim})"
            raise DataError(mismatch("critic", "candidate shape", wanted, shape[1:]))
        with torch.inference_mode():
            chunk = self._normalizers.action(torch.tensor(actions[:, :, :steps], device=self._device))
            return self._network.score_many(features, chunk).cpu().numpy()

    def score_states(
        self, tasks: list[str], state: Float32, environment_state: Float32, actions: Tensor
    ) -> Tensor:
        """Q (M, B, P) in B privileged states at once, for critics that see no pictures.

        tasks: B instructions. state, environment_state: (B, S), (B, N). actions: physical (B, P, E, A).
        """
        if self._kind != "state":
            raise ConfigError(mismatch(f"critic {self.version}", "encoder", "state", self._kind))
        encoded = self._encode(tasks, state, environment_state)
        with torch.inference_mode():
            return self._network.score_many(encoded, self._normalizers.action(actions.to(self._device)))

    @property
    def clip_rate(self) -> float:
        """Share of action numbers outside the training range so far."""
        return self._normalizers.action.clip_rate

    @torch.inference_mode()
    def vision_features(self, images: dict[str, UInt8]) -> Float32:
        """uint8 (B, H, W, 3) per camera -> float32 (B, cameras * D), cameras in the spec's order.

        The class tokens of the frozen tower, as `ChunkBatch.features` carries them. Raises ConfigError for
        a critic without a tower.
        """
        if self.tower is None:
            raise ConfigError(mismatch("critic", "encoder with vision features", "frozen_clip", self._kind))
        stacked = np.stack([images[name] for name in self.spec.cameras], axis=1)
        pixels = torch.from_numpy(stacked).to(self._device).movedim(-1, -3).float().div_(255.0)
        tokens = self.tower(
            pixel_values=((pixels - _PIXEL_MEAN) / _PIXEL_STD).flatten(0, 1)
        ).last_hidden_state
        return tokens[:, 0].reshape(len(stacked), -1).cpu().numpy()

    def _check(self, observation: Observation) -> None:
        spec = self.spec
        for name, (height, width) in spec.cameras.items():
            image = observation.images.get(name)
            if image is None:
                found = sorted(observation.images) or "no images"
                raise DataError(mismatch("critic input", "cameras", sorted(spec.cameras), found))
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                shape = f"{image.dtype} {image.shape}"
                raise DataError(
                    mismatch("critic input", f"image {name!r}", f"uint8 {height, width, 3}", shape)
                )
        needed: list[tuple[str, Float32 | None, int]] = [("state", observation.state, spec.state_dim)]
        if spec.environment_state_dim:
            needed.append(("environment_state", observation.environment_state, spec.environment_state_dim))
        for name, values, size in needed:
            if values is None or values.shape != (size,):
                size_found = "none" if values is None else values.shape
                raise DataError(mismatch("critic input", name, f"{size} values", size_found))
            if not np.isfinite(values).all():
                raise DataError(mismatch("critic input", name, "finite numbers", "NaN or infinity"))


def _usable_device(name: str) -> torch.device:
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ConfigError(mismatch("critic", "device", "cpu or cuda", repr(name)))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(mismatch("critic", "device", "cpu on this machine, which has no usable GPU", name))
    return torch.device(name)


def _build_tower(loaded: LoadedCritic, where: str) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if not loaded.tower_config:
        raise CheckpointError(f"{where}: a frozen_clip critic without the configuration of its vision tower")
    tower = CLIPVisionModel(CLIPVisionConfig(**loaded.tower_config))
    load_exactly(tower, loaded.tower_weights, Path(where))
    return tower.eval().requires_grad_(False)
