"""Batches of chunk transitions for critic training: a pure function of (seed, step), prefetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from valueguide.data.plans import CHUNK_ID, plan_column, plan_starts, planned_chunks
from valueguide.data.prefetch import Prefetcher
from valueguide.data.reader import EpisodeDataset
from valueguide.data.shaping import shape_rewards
from valueguide.data.transitions import ChunkTransitions, episode_labels
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import ChunkBatch, Float32, UInt8

ObservationKind = Literal["images", "state", "features"]


class ImageSource(Protocol):
    """`EpisodeDataset` (decodes) or `FrameCache` (memory maps)."""

    def images(self, rows: NDArray[np.integer[Any]], camera: str) -> UInt8: ...


class ChunkLoader:
    """Draws chunk transitions uniformly with replacement.

    executed_length: E, the steps of a chunk that are executed and scored.
    observation: "images" fills images, "features" fills features, "state" fills environment_state
        where the dataset has one; proprioception (`state`) is always there.
    privileged: fill environment_state beside images or features too. Raises DataError where there is none.
    features: float32 (N + episodes, F) for observation="features".
    frames: where pictures come from, a `FrameCache` in training; by default they are decoded.
    episodes: indices to draw from (a training split); all by default.
    stop_at_source_change: end transitions at an intervention boundary (see ChunkTransitions).
    only_replans: start only where a plan starts, and stay within it; frames that belong to no plan
        (demonstrations, a human's steps) start transitions as usual.
    whole_plans: a chunk that a terminal state cut short is given as it was planned, where that is known
        (see ChunkTransitions.actions); what an objective needs that asks for the value of whole chunks.
    potential: float32 (N + episodes,), makes rewards dense, see `shape_rewards`.
    unshaped: how many steps of the dataset kept their reward for want of a potential; 0 without `potential`.
    starts: int64, the frames where transitions may start; those that would need a final observation
        which was never recorded (the last frame of a truncated episode of a plain LeRobotDataset) are out.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        executed_length: int,
        gamma: float = 0.98,
        batch_size: int = 256,
        seed: int = 0,
        observation: ObservationKind = "images",
        features: Float32 | None = None,
        success_steps: int = 3,
        *,
        frames: ImageSource | None = None,
        cameras: Sequence[str] | None = None,
        episodes: Sequence[int] | None = None,
        stop_at_source_change: bool = True,
        only_replans: bool = False,
        whole_plans: bool = False,
        privileged: bool = False,
        potential: Float32 | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(mismatch("chunk loader", "batch size", "1 or more", batch_size))
        if observation not in ("images", "state", "features"):
            raise ConfigError(
                mismatch("chunk loader", "observation", "images, state or features", observation)
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.instructions = dataset.instructions
        self.cameras = _cameras(dataset, cameras) if observation == "images" else []
        self._frames: ImageSource = frames if frames is not None else dataset
        self._features = _checked_features(dataset, features) if observation == "features" else None
        labels = episode_labels(
            dataset.episode_start,
            dataset.episode_end,
            dataset.episode_success,
            dataset.episode_terminated,
            gamma,
            success_steps,
        )
        self.unshaped = 0
        if potential is not None:
            shaped = shape_rewards(labels, dataset.episode_start, dataset.episode_end, potential, gamma)
            labels, self.unshaped = shaped.labels, shaped.unshaped
        self.transitions = ChunkTransitions.build(
            labels,
            dataset.episode_start,
            dataset.episode_end,
            executed_length,
            gamma,
            dataset.source if stop_at_source_change else None,
            chunk_id=plan_column(dataset, CHUNK_ID) if only_replans else None,
            has_final=dataset.has_final,
        )
        allowed = self.transitions.usable
        if only_replans:
            allowed = allowed & plan_starts(dataset)
        self.starts = _start_frames(dataset, episodes, allowed)
        self._planned = planned_chunks(dataset, executed_length) if whole_plans else None
        self._state = dataset.rows_of("state")
        recorded = dataset.environment_state is not None
        if privileged and not recorded:
            hint = "Record with --suite wxai-both"
            raise DataError(mismatch(str(dataset.root), "environment state", "one a frame", "none", hint))
        wanted = recorded and (privileged or observation == "state")
        self._environment_state = dataset.rows_of("environment_state") if wanted else None
        self._prefetcher = Prefetcher(lambda step: self.batch(step))

    def batch(self, step: int) -> ChunkBatch:
        """The batch of training step `step` >= 0: the same for the same seed, in any order of calls."""
        rng = np.random.default_rng([self.seed, step])
        return self.at(self.starts[rng.integers(len(self.starts), size=self.batch_size)])

    def at(self, starts: NDArray[np.int64]) -> ChunkBatch:
        """The transitions that start at the frames `starts`, int64 (B,), any of `self.starts`."""
        t = self.transitions
        following = t.successor[starts]
        planned = None if self._planned is None else self._planned[starts]
        actions, valid = t.actions(self.dataset.action, starts, planned)
        privileged, features = self._environment_state, self._features
        return ChunkBatch(
            state=self._state[starts],
            next_state=self._state[following],
            instruction=self.dataset.instruction[starts],
            actions=actions,
            valid=valid,
            reward=t.reward[starts],
            discount=t.discount[starts],
            mc_return=t.mc_return[starts],
            index=starts,
            next_index=following,
            images={camera: self._frames.images(starts, camera) for camera in self.cameras},
            next_images={camera: self._frames.images(following, camera) for camera in self.cameras},
            environment_state=None if privileged is None else privileged[starts],
            next_environment_state=None if privileged is None else privileged[following],
            features=None if features is None else features[starts],
            next_features=None if features is None else features[following],
        )

    @property
    def wait_share(self) -> float:
        """Share of the time since `iterate` began that the learner spent waiting for a batch."""
        return self._prefetcher.wait_share

    def iterate(self, start_step: int = 0, prefetch: int = 2) -> Iterator[ChunkBatch]:
        """Endless batches from `start_step` on, made in a background thread up to `prefetch` ahead.

        Close the generator (or let it go) to stop the thread. An error while making a batch is raised here.
        """
        return self._prefetcher.iterate(start_step, prefetch)


def _cameras(dataset: EpisodeDataset, cameras: Sequence[str] | None) -> list[str]:
    chosen = list(dataset.cameras if cameras is None else cameras)
    unknown = sorted(set(chosen) - set(dataset.cameras))
    if unknown or not chosen:
        raise DataError(
            mismatch(
                str(dataset.root),
                "cameras",
                f"some of {dataset.cameras}",
                unknown or "none",
                "" if chosen else "Use observation='state' for a dataset without pictures",
            )
        )
    return chosen


def _checked_features(dataset: EpisodeDataset, features: Float32 | None) -> Float32:
    if features is None or features.ndim != 2 or len(features) != dataset.rows:
        found = "none" if features is None else features.shape
        raise DataError(mismatch("chunk loader", "features", f"shape ({dataset.rows}, F)", found))
    return features


def _start_frames(
    dataset: EpisodeDataset, episodes: Sequence[int] | None, allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    frames = _episode_frames(dataset, episodes)
    starts = frames[allowed[frames]]
    if not starts.size:
        raise DataError(f"{dataset.root}: no transition starts in the {len(frames)} chosen frames")
    return starts


def _episode_frames(dataset: EpisodeDataset, episodes: Sequence[int] | None) -> NDArray[np.int64]:
    if episodes is None:
        return np.arange(dataset.frames)
    chosen = np.unique(np.asarray(episodes, np.int64))
    if not chosen.size or chosen[0] < 0 or chosen[-1] >= dataset.episodes:
        raise DataError(
            mismatch("chunk loader", "episodes", f"indices 0 … {dataset.episodes - 1}", list(episodes))
        )
    return np.concatenate([np.arange(dataset.episode_start[e], dataset.episode_end[e]) for e in chosen])
