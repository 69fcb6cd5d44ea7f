"""One `Episode` checked against the spec and turned into the Arrow tables that the writer stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from valueguide.data.columns import IMAGE_TYPE, array_column, image_column
from valueguide.data.images import encode_image
from valueguide.data.schema import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, DatasetSpec
from valueguide.data.stats import Stats, array_stats, image_stats
from valueguide.errors import DataError, mismatch
from valueguide.types import SOURCES, Episode, Float32, Observation, Step


@dataclass(frozen=True)
class EncodedEpisode:
    """`columns` are the frames without the index columns, which depend on the dataset's state."""

    length: int
    columns: dict[str, pa.Array]
    tasks: list[str]
    final: dict[str, pa.Array]
    stats: Stats


def check_episode(episode: Episode, spec: DatasetSpec) -> None:
    """Raises DataError with one line naming the step and field that does not fit `spec`."""
    if not episode.steps:
        raise DataError("episode: it has no steps; nothing to store")
    for i, step in enumerate(episode.steps):
        where = f"episode step {i}"
        _check_observation(step.observation, spec, where)
        _check_vector(step.action, len(spec.action), where, "action")
        if not np.isfinite(step.reward):
            raise DataError(mismatch(where, "reward", "a finite number", step.reward))
        if step.source not in SOURCES:
            raise DataError(mismatch(where, "source", SOURCES, repr(step.source)))
        _check_plan(step, spec, where)
        if (step.terminated or step.truncated) and i + 1 < len(episode.steps):
            rest = len(episode.steps) - i - 1
            raise DataError(f"{where}: terminated or truncated, but {rest} more steps follow; split it there")
    _check_observation(episode.final_observation, spec, "episode final observation")


def _check_observation(observation: Observation, spec: DatasetSpec, where: str) -> None:
    _check_vector(observation.state, len(spec.state), where, "state")
    if spec.environment_state:
        if observation.environment_state is None:
            raise DataError(
                mismatch(where, "environment_state", f"{len(spec.environment_state)} values", "none")
            )
        _check_vector(observation.environment_state, len(spec.environment_state), where, "environment_state")
    if spec.image_format == "none":
        return
    if set(observation.images) != set(spec.cameras):
        raise DataError(mismatch(where, "cameras", sorted(spec.cameras), sorted(observation.images)))
    for camera, size in spec.cameras.items():
        image = observation.images[camera]
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            raise DataError(
                mismatch(where, f"image {camera!r}", f"uint8 {(*size, 3)}", f"{image.dtype} {image.shape}")
            )


def _check_vector(values: Float32, size: int, where: str, name: str) -> None:
    if np.shape(values) != (size,):
        raise DataError(mismatch(where, name, f"shape ({size},)", f"shape {np.shape(values)}"))
    if not np.all(np.isfinite(values)):
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(mismatch(where, name, "finite numbers", f"{values[bad]} in dimension {bad}"))


def _check_plan(step: Step, spec: DatasetSpec, where: str) -> None:
    action_dim = len(spec.action)
    if step.planned_chunk is not None:
        _check_within(step.planned_chunk, (spec.horizon, action_dim), where, "planned_chunk")
        if not np.all(np.isfinite(step.planned_chunk)):
            raise DataError(mismatch(where, "planned_chunk", "finite numbers", "NaN or infinity"))
    if not spec.k:
        return
    if step.candidates is not None:
        limit = (spec.k, spec.horizon, action_dim)
        _check_within(step.candidates.actions, limit, where, "candidates")
    if step.decision is None:
        return
    if not -(2**63) <= step.decision.seed < 2**63:
        raise DataError(mismatch(where, "decision seed", "a 64-bit integer", step.decision.seed))
    k = step.candidates.k if step.candidates is not None else 0
    scores, values = step.decision.scores, step.decision.values
    if scores is not None:
        _check_within(scores.q, (spec.members, k), where, "scores")
    if values is not None:
        _check_within(values, (k,), where, "values")


def _check_within(values: Float32, limit: tuple[int, ...], where: str, name: str) -> None:
    """The last dimension must match exactly; the others may be shorter and are padded when stored."""
    shape = np.shape(values)
    fits = len(shape) == len(limit) and all(0 < s <= most for s, most in zip(shape, limit, strict=True))
    if not fits or shape[-1] != limit[-1]:
        raise DataError(mismatch(where, name, f"at most shape {limit}", f"shape {shape}"))


def encode_episode(episode: Episode, spec: DatasetSpec) -> EncodedEpisode:
    """Check and encode. Raises DataError."""
    check_episode(episode, spec)
    steps = episode.steps
    features = spec.features()
    columns: dict[str, pa.Array] = {}
    stats: Stats = {}
    digest = hashlib.sha256()
    for camera in spec.stored_cameras:
        images = [step.observation.images[camera] for step in steps]
        encoded = [encode_image(image, spec.image_format) for image in images]
        for picture in encoded:
            digest.update(picture)
        names = [f"frame-{i:06d}.{spec.image_format}" for i in range(len(encoded))]
        columns[IMAGE_PREFIX + camera] = image_column(encoded, names)
        stats[IMAGE_PREFIX + camera] = image_stats(images)
    for name, values in _arrays(steps, spec).items():
        columns[name] = array_column(values, features[name])
        stats[name] = array_stats(values)
    for name, text in _texts(steps).items():
        columns[name] = pa.array(text, pa.string())
    return EncodedEpisode(
        length=len(steps),
        columns=columns,
        tasks=[step.observation.task or episode.task for step in steps],
        final=_final_row(episode, spec, digest),
        stats=stats,
    )


def _arrays(steps: list[Step], spec: DatasetSpec) -> dict[str, np.ndarray]:
    def each(value: Callable[[Step], Any], dtype: type) -> np.ndarray:
        return np.array([value(step) for step in steps], dtype)

    decisions = [step.decision for step in steps]
    arrays = {
        STATE: each(lambda s: s.observation.state, np.float32),
        ACTION: each(lambda s: s.action, np.float32),
        "next.reward": each(lambda s: s.reward, np.float32),
        "next.done": each(lambda s: s.terminated or s.truncated, np.bool_),
        "next.terminated": each(lambda s: s.terminated, np.bool_),
        "next.truncated": each(lambda s: s.truncated, np.bool_),
        "next.success": each(lambda s: s.success, np.bool_),
        "intervention": each(lambda s: s.intervention, np.bool_),
        "vg.source": each(lambda s: SOURCES.index(s.source), np.int64),
        "vg.stamp_ns": each(lambda s: s.observation.stamp_ns, np.int64),
        "vg.chunk_id": each(lambda s: s.chunk_id, np.int64),
        "vg.chunk_step": each(lambda s: s.chunk_step, np.int64),
        "vg.executed_length": each(lambda s: s.executed_length, np.int64),
        "vg.replan": each(lambda s: s.candidates is not None or s.decision is not None, np.bool_),
        "vg.index": np.array([-1 if d is None else d.index for d in decisions], np.int64),
        "vg.preferred": np.array([-1 if d is None else d.preferred for d in decisions], np.int64),
        "vg.seed": np.array([-1 if d is None else d.seed for d in decisions], np.int64),
        "vg.latency_s": np.array([0.0 if d is None else d.latency_s for d in decisions], np.float32),
        "vg.planned_chunk": np.stack(
            [_padded(s.planned_chunk, (spec.horizon, len(spec.action))) for s in steps]
        ),
    }
    if spec.environment_state:
        arrays[ENVIRONMENT_STATE] = each(lambda s: s.observation.environment_state, np.float32)
    if spec.k:
        shape = (spec.k, spec.horizon, len(spec.action))
        scores = [None if d is None or d.scores is None else d.scores.q for d in decisions]
        values = [None if d is None else d.values for d in decisions]
        arrays["vg.candidates"] = np.stack(
            [_padded(None if s.candidates is None else s.candidates.actions, shape) for s in steps]
        )
        arrays["vg.scores"] = np.stack([_padded(q, (spec.members, spec.k)) for q in scores])
        arrays["vg.values"] = np.stack([_padded(v, (spec.k,)) for v in values])
        arrays["vg.num_candidates"] = each(lambda s: s.candidates.k if s.candidates else 0, np.int64)
        arrays["vg.num_members"] = np.array([0 if q is None else len(q) for q in scores], np.int64)
    return arrays


def _padded(values: Float32 | None, shape: tuple[int, ...]) -> Float32:
    """`values` in the low corner of a NaN array: NaN means "there was none" in every vg array column."""
    full = np.full(shape, np.nan, np.float32)
    if values is not None:
        full[tuple(slice(size) for size in np.shape(values))] = values
    return full


def _texts(steps: list[Step]) -> dict[str, list[str]]:
    return {
        "vg.policy_version": [step.policy_version for step in steps],
        "vg.critic_version": [step.critic_version for step in steps],
        "vg.reason": ["" if step.decision is None else step.decision.reason for step in steps],
    }


def _final_row(episode: Episode, spec: DatasetSpec, digest: Any) -> dict[str, pa.Array]:
    """The sidecar row: the true last successor, the episode's facts and a digest of its pictures."""
    last = episode.final_observation
    row: dict[str, pa.Array] = {
        "task": pa.array([episode.task]),
        "final_task": pa.array([last.task]),
        "stamp_ns": pa.array([last.stamp_ns], pa.int64()),
        STATE: pa.array([np.asarray(last.state, np.float32)], pa.list_(pa.float32())),
    }
    if spec.environment_state:
        row[ENVIRONMENT_STATE] = pa.array(
            [np.asarray(last.environment_state, np.float32)], pa.list_(pa.float32())
        )
    for camera in spec.stored_cameras:
        picture = encode_image(last.images[camera], spec.image_format)
        digest.update(picture)
        row[IMAGE_PREFIX + camera] = pa.array([{"bytes": picture, "path": None}], IMAGE_TYPE)
    try:
        facts = json.dumps(episode.metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"episode metadata: not JSON-serialisable: {error}") from error
    row["metadata"] = pa.array([facts])
    row["digest"] = pa.array([digest.hexdigest()])
    return row
