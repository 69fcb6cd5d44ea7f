"""A LeRobot policy as a `Policy`: physical numbers in and out, K seeded candidates, own history."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    PolicyProcessorPipeline,
    RelativeActionsProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
)
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.policies.sampling import make_sampler
from valueguide.policies.sampling.noise import RowNoise
from valueguide.types import Candidates, Observation

_REMEMBERED_TEXTS = 256
_PADDING_CAMERA = f"{OBS_IMAGES}.empty_camera_"


@dataclass
class _Frame:
    """One observation and, once it was needed, what the pre-processor made of it."""

    observation: Observation
    batch: dict[str, Any] | None = None


class LeRobotPolicy:
    """Implements `valueguide.interfaces.Policy` for every LeRobot policy type.

    horizon, action_dim: steps and numbers of one candidate. history: observation steps that the
    policy looks at. cameras: camera name -> (height, width). state_dim: length of the state that the
    policy declares (with the environment state appended on checkpoints that do so).
    needs_environment_state: whether `Observation.environment_state` is required.
    version: short content hash. metadata: what was stored with the checkpoint.
    """

    def __init__(
        self,
        policy: PreTrainedPolicy,
        preprocessor: PolicyProcessorPipeline,
        postprocessor: PolicyProcessorPipeline,
        version: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        config = policy.config
        self.policy, self.version, self.metadata = policy, version, metadata or {}
        self._preprocessor, self._postprocessor = preprocessor, postprocessor
        self._appends = any(isinstance(step, AppendEnvironmentState) for step in preprocessor.steps)
        # Actions relative to the state become absolute with the state that was pre-processed last.
        self._relative = any(
            isinstance(step, RelativeActionsProcessorStep) and step.enabled for step in preprocessor.steps
        )
        self.action_dim = int(config.action_feature.shape[0])
        self.state_dim = int(config.robot_state_feature.shape[0]) if config.robot_state_feature else 0
        self.needs_environment_state = self._appends or config.env_state_feature is not None
        self._camera_keys = _camera_keys(config.image_features, preprocessor)
        self.cameras = {name: shape for name, (_, shape) in self._camera_keys.items()}
        for step in preprocessor.steps:
            if isinstance(step, TokenizerProcessorStep):
                step.input_tokenizer = _RememberingTokenizer(step.input_tokenizer)
        self._sampler = make_sampler(policy)
        self.history = self._sampler.history
        # Frames are pre-processed when they are first needed: not at all between replans if history is 1.
        self._frames: deque[_Frame] = deque(maxlen=self.history)
        self.horizon = self._sampler.horizon or self._probe_horizon()

    def reset(self) -> None:
        """Forget the observation history; call at the start of an episode."""
        self._frames.clear()

    def fork(self) -> LeRobotPolicy:
        """The same policy for an episode that runs beside this one: own history, shared networks."""
        twin = copy.copy(self)
        twin._frames = deque(maxlen=self.history)
        return twin

    def observe(self, observation: Observation) -> None:
        """Add one control step. Raises DataError when the observation does not fit the policy."""
        self._check(observation)
        # Drivers and renderers reuse their buffers, and frames are pre-processed later: keep copies.
        extra = observation.environment_state
        kept = replace(
            observation,
            images={name: observation.images[name].copy() for name in self.cameras},
            state=np.array(observation.state),
            environment_state=None if extra is None else np.array(extra),
        )
        self._frames.append(_Frame(kept))

    def sample(self, k: int, seed: int) -> Candidates:
        """K chunks, float32 (K, H, A), physical. Candidate i depends on the seed and i, not on K."""
        if k < 1:
            raise ConfigError(mismatch("sample", "K", "at least 1 candidate", k))
        if seed < 0:
            raise ConfigError(mismatch("sample", "seed", "0 or more", seed))
        if not self._frames:
            raise DataError(
                "sample: expected an observation since the last reset, found none. Call observe first"
            )
        with torch.inference_mode():
            for frame in self._frames:
                if frame.batch is None or (self._relative and frame is self._frames[-1]):
                    frame.batch = self._preprocess(frame.observation)
            frames: list[Any] = [frame.batch for frame in self._frames]
            # A cold start repeats the first observation, as LeRobot's own queues do.
            frames = [frames[0]] * (self.history - len(frames)) + frames
            actions = self._sampler([dict(frame) for frame in frames], k, RowNoise(seed))
            actions = self._postprocessor(actions)
        return Candidates(actions.float().cpu().numpy())

    def _preprocess(self, observation: Observation) -> dict[str, Any]:
        batch: dict[str, Any] = {"task": observation.task}
        if self.state_dim:
            batch[OBS_STATE] = torch.tensor(observation.state, dtype=torch.float32)
        if self.needs_environment_state:
            batch[OBS_ENV_STATE] = torch.tensor(observation.environment_state, dtype=torch.float32)
        for name, (key, _) in self._camera_keys.items():
            pixels = np.ascontiguousarray(observation.images[name].transpose(2, 0, 1))
            batch[key] = torch.tensor(pixels).float().div_(255.0)
        return self._preprocessor(batch)

    def _check(self, observation: Observation) -> None:
        for name, (height, width) in self.cameras.items():
            if name not in observation.images:
                found = sorted(observation.images) or "no images"
                raise DataError(mismatch("observation.images", "cameras", sorted(self.cameras), found))
            image = observation.images[name]
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                wanted, found = f"uint8 ({height}, {width}, 3)", f"{image.dtype} {image.shape}"
                raise DataError(mismatch(f"observation.images[{name!r}]", "image", wanted, found))
        extra = observation.environment_state
        if self.needs_environment_state and extra is None:
            raise DataError(mismatch("observation.environment_state", "value", "an array", "None"))
        state = np.asarray(observation.state)
        joined = state if not self._appends or extra is None else np.concatenate([state, extra])
        if self.state_dim and joined.shape != (self.state_dim,):
            where = "observation.state with environment_state" if self._appends else "observation.state"
            raise DataError(mismatch(where, "shape", (self.state_dim,), joined.shape))
        for name, values in (("state", state), ("environment_state", extra)):
            if values is not None and not np.isfinite(values).all():
                raise DataError(
                    mismatch(f"observation.{name}", "values", "finite numbers", "NaN or infinity")
                )
        feature = self.policy.config.env_state_feature
        if feature is not None and extra is not None and extra.shape != tuple(feature.shape):
            raise DataError(
                mismatch("observation.environment_state", "shape", tuple(feature.shape), extra.shape)
            )

    def _probe_horizon(self) -> int:
        """Chunk length of a policy type whose configuration does not say it: sample once and look."""
        return int(self.warm_up(1).actions.shape[1])

    def warm_up(self, k: int) -> Candidates:
        """Sample K chunks for a blank observation, so that the first real one pays for no allocation.

        Forgets the observation history.
        """
        feature = self.policy.config.env_state_feature
        blank = Observation(
            images={name: np.zeros((*size, 3), np.uint8) for name, size in self.cameras.items()},
            state=np.zeros(self.state_dim, np.float32),
            task="",
            environment_state=np.zeros(feature.shape if feature else 0, np.float32),
        )
        self.reset()
        self.observe(blank)
        candidates = self.sample(k, 0)
        self.reset()
        return candidates


def _camera_keys(
    features: dict[str, Any], preprocessor: PolicyProcessorPipeline
) -> dict[str, tuple[str, tuple[int, int]]]:
    """Camera name -> (batch key before any renaming, (height, width))."""
    original: dict[str, str] = {}
    for step in preprocessor.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            original = {new: old for old, new in step.rename_map.items()}
    cameras = {}
    for key, feature in features.items():
        if key.startswith(_PADDING_CAMERA):
            continue  # smolvla, pi0 and pi05 fill these in themselves
        source = original.get(key, key)
        name = source.removeprefix(f"{OBS_IMAGES}.").removeprefix("observation.")
        cameras[name] = source, (int(feature.shape[1]), int(feature.shape[2]))
    return cameras


class _RememberingTokenizer:
    """A tokenizer that keeps its results for the texts it saw last: instructions change rarely."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        # The step that calls this always passes the same options.
        key = tuple(texts)
        if key not in self._known:
            self._known[key] = self._tokenizer(texts, **options)
            if len(self._known) > _REMEMBERED_TEXTS:
                self._known.popitem(last=False)
        return self._known[key]
