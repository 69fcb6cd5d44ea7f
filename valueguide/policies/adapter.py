"""A LeRobot policy as a `Policy` and a `BatchProposer`: physical numbers in and out, seeded candidates."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
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
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.policies.sampling import make_sampler
from valueguide.policies.sampling.noise import StackedNoise
from valueguide.policies.tokens import RememberingTokenizer
from valueguide.types import Candidates, Float32, Observation, UInt8

_PADDING_CAMERA = f"{OBS_IMAGES}.empty_camera_"


@dataclass
class _Frame:
    """One observation and, once it was needed, what the pre-processor made of it."""

    observation: Observation
    batch: dict[str, Any] | None = None


class LeRobotPolicy:
    """Implements `interfaces.Policy` and `interfaces.BatchProposer` for every LeRobot policy type.

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
        self._relative = [
            step
            for step in preprocessor.steps
            if isinstance(step, RelativeActionsProcessorStep) and step.enabled
        ]
        self.action_dim = int(config.action_feature.shape[0])
        self.state_dim = int(config.robot_state_feature.shape[0]) if config.robot_state_feature else 0
        self.needs_environment_state = self._appends or config.env_state_feature is not None
        self._camera_keys = _camera_keys(config.image_features, preprocessor)
        self.cameras = {name: shape for name, (_, shape) in self._camera_keys.items()}
        #: Camera -> its key in what `preprocess` returns.
        self.image_keys = dict(zip(self.cameras, _own_keys(config.image_features), strict=True))
        for step in preprocessor.steps:
            if isinstance(step, TokenizerProcessorStep):
                step.input_tokenizer = RememberingTokenizer(step.input_tokenizer)
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
        _check_request("sample", k, np.array([seed]))
        if not self._frames:
            raise DataError(
                "sample: expected an observation since the last reset, found none. Call observe first"
            )
        with torch.inference_mode():
            for frame in self._frames:
                if frame.batch is None or (self._relative and frame is self._frames[-1]):
                    frame.batch = self._preprocess([frame.observation])
            frames: list[Any] = [frame.batch for frame in self._frames]
            actions = self._sample(frames, k, [seed])
        return Candidates(actions)

    def propose(
        self,
        observations: Sequence[Observation] | Sequence[Sequence[Observation]],
        k: int,
        seeds: NDArray[np.int64],
    ) -> Float32:
        """K chunks for each of B unrelated observations, float32 (B, K, H, A), physical.

        observations: of a policy with a history, the last observations of each row, oldest first, as many
            as `history` or fewer at an episode's start. seeds: int64 (B,), 0 or more.
        Row i is what `reset`, `observe(observations[i])` and `sample(k, seeds[i])` give, to float
        tolerance, whatever the other rows and K are; this policy's own history is left alone. One forward
        pass serves all rows, except of policy types without a sampler of their own (see docs/policies.md),
        which are asked row by row. Memory grows with B: ask for as many rows as fit. Raises DataError when
        an observation does not fit the policy, ConfigError for single observations of a policy with a
        history.
        """
        _check_request("propose", k, seeds)
        windows = [self._window(row) for row in observations]
        if len(windows) != len(seeds):
            raise ConfigError(mismatch("propose", "seeds", f"{len(windows)}, one a row", len(seeds)))
        if not windows:
            return np.zeros((0, k, self.horizon, self.action_dim), np.float32)
        with torch.inference_mode():
            # Oldest first: relative actions become absolute with the states of the last frame.
            frames = [self._preprocess([w[step] for w in windows]) for step in range(self.history)]
            actions = self._sample(frames, k, [int(seed) for seed in seeds])
        return actions.reshape(len(windows), k, *actions.shape[1:])

    def _window(self, row: Observation | Sequence[Observation]) -> list[Observation]:
        """One row of `propose` as `history` observations."""
        if isinstance(row, Observation):
            if self.history > 1:
                wanted = f"sequences of up to {self.history} observations, oldest first"
                raise ConfigError(
                    mismatch("propose", "rows of a policy with a history", wanted, "single ones")
                )
            row = [row]
        if not 1 <= len(row) <= self.history:
            raise ConfigError(mismatch("propose", "observations a row", f"1 to {self.history}", len(row)))
        for observation in row:
            self._check(observation)
        return _padded(list(row), self.history)

    def _sample(self, frames: list[dict[str, Any]], k: int, seeds: list[int]) -> Float32:
        """frames: pre-processed, each of B rows, the newest one last. Returns (B * K, H, A), physical."""
        # Samplers may change what they are given, and `observe` keeps frames for later calls.
        copies = [dict(frame) for frame in _padded(frames, self.history)]
        actions = self._sampler(copies, k, StackedNoise(seeds))
        for step in self._relative:
            if len(seeds) > 1:
                step._last_state = step._last_state.repeat_interleave(k, 0)
        return self._postprocessor(actions).float().cpu().numpy()

    def _preprocess(self, observations: list[Observation]) -> dict[str, Any]:
        """What the policy's pre-processor makes of B observations."""
        extra = [o.environment_state for o in observations if o.environment_state is not None]
        return self.preprocess(
            [o.task for o in observations],
            np.stack([o.state for o in observations]),
            np.stack(extra) if self.needs_environment_state else None,
            {name: np.stack([o.images[name] for o in observations]) for name in self.cameras},
        )

    def preprocess(
        self,
        tasks: Sequence[str],
        state: Float32,
        environment_state: Float32 | None = None,
        images: dict[str, UInt8] | None = None,
        actions: Float32 | None = None,
    ) -> dict[str, Any]:
        """The policy's own pre-processor on B rows at once: renamed, normalised, tokenised, on its device.

        tasks: B instructions. state, environment_state: (B, S), (B, N); images: camera -> uint8
        (B, height, width, 3), of which those that the policy lacks are left out; actions: (B, T, A).
        All physical, and not checked here.
        """
        batch: dict[str, Any] = {"task": list(tasks)}
        if self.state_dim:
            batch[OBS_STATE] = torch.tensor(state, dtype=torch.float32)
        if self.needs_environment_state:
            batch[OBS_ENV_STATE] = torch.tensor(environment_state, dtype=torch.float32)
        for name, (key, _) in self._camera_keys.items():
            if images and name in images:
                pixels = np.ascontiguousarray(images[name].transpose(0, 3, 1, 2))
                batch[key] = torch.tensor(pixels).float().div_(255.0)
        if actions is not None:
            batch[ACTION] = torch.tensor(actions, dtype=torch.float32)
        return self._preprocessor(batch)

    @property
    def processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """The pre- and the post-processor, for saving them beside changed weights."""
        return self._preprocessor, self._postprocessor

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
    for key in _own_keys(features):
        source, feature = original.get(key, key), features[key]
        name = source.removeprefix(f"{OBS_IMAGES}.").removeprefix("observation.")
        cameras[name] = source, (int(feature.shape[1]), int(feature.shape[2]))
    return cameras


def _own_keys(features: dict[str, Any]) -> list[str]:
    """smolvla, pi0 and pi05 fill padding cameras in themselves."""
    return [key for key in features if not key.startswith(_PADDING_CAMERA)]


def _padded(frames: list[Any], history: int) -> list[Any]:
    """A cold start repeats the first observation, as LeRobot's own queues do."""
    return [frames[0]] * (history - len(frames)) + frames


def _check_request(where: str, k: int, seeds: NDArray[np.int64]) -> None:
    if k < 1:
        raise ConfigError(mismatch(where, "K", "at least 1 candidate", k))
    if seeds.ndim != 1 or (seeds < 0).any():
        found = seeds.shape if seeds.ndim != 1 else int(seeds.min())
        raise ConfigError(mismatch(where, "seed", "0 or more", found))
