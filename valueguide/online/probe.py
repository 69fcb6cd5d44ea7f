"""A probe: chunks that ran, with the returns that followed, kept so that all critics are asked the same.

For each state it also holds K chunks to tell apart, because a critic that ignores the action can rank states
well and is still of no use.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.layout import INFO
from valueguide.data.reader import EpisodeDataset
from valueguide.data.transitions import sparse_labels
from valueguide.errors import CheckpointError, ConfigError, DataError, mismatch
from valueguide.interfaces import BatchProposer
from valueguide.online.replay import SEGMENTS, ReplayReader
from valueguide.online.replay_loader import Labelling
from valueguide.online.segment_file import map_tensors, write_tensors
from valueguide.online.segments import Segment, Store, dataset_segments
from valueguide.types import Float32, Observation

FORMAT = "valueguide.probe/1"
#: Its name in a folder of critic versions.
PROBE = "probe.safetensors"
_IMAGE = "images."
_ARRAYS = ("chunks", "returns", "episode", "candidates")


@dataclass(frozen=True)
class Probe:
    """N states. Raises DataError if malformed.

    observations: N. chunks: float32 (N, E, A), physical, what was meant to run there.
    returns: float32 (N,), the discounted return that followed. episode: int64 (N,), states of one episode
        share a number, because they share its luck. candidates: float32 (N, K, E, A), K >= 2.
    facts: JSON-ready; where all this comes from.
    """

    observations: Sequence[Observation]
    chunks: Float32
    returns: Float32
    episode: NDArray[np.int64]
    candidates: Float32
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, shape = len(self.observations), self.candidates.shape
        fits = len(shape) == 4 and shape[1] >= 2 and self.chunks.shape == (n, *shape[2:]) and shape[0] == n
        if n < 2 or not fits or self.returns.shape != (n,) or self.episode.shape != (n,):
            found = f"{n}, {self.chunks.shape}, {self.returns.shape}, {self.episode.shape}, {shape}"
            wanted = "N >= 2, (N, E, A), (N,), (N,), (N, K >= 2, E, A)"
            raise DataError(mismatch("probe", "shapes", wanted, found))
        if not all(np.isfinite(values).all() for values in (self.chunks, self.returns, self.candidates)):
            raise DataError(mismatch("probe", "numbers", "finite ones", "NaN or infinity"))

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def tasks(self) -> list[str]:
        """The instruction of each state."""
        return [observation.task for observation in self.observations]

    @cached_property
    def digest(self) -> str:
        """12 hex digits of its content; two critics were asked the same when it is the same."""
        content = hashlib.sha256(json.dumps([self.tasks, self.facts], sort_keys=True).encode())
        for name, values in sorted(self._tensors().items()):
            content.update(f"{name} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return content.hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """One safetensors file, written whole. Raises DataError when the disk refuses."""
        metadata = {"format": FORMAT, "tasks": json.dumps(self.tasks), "facts": json.dumps(self.facts)}
        try:
            write_tensors(Path(path), self._tensors(), metadata)
        except OSError as error:
            raise DataError(f"{path}: probe not stored: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Raises DataError for a damaged file, CheckpointError when there is none."""
        try:
            tensors, metadata = map_tensors(Path(path))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: expected a probe, found no such file") from error
        if metadata.get("format") != FORMAT:
            raise DataError(mismatch(str(path), "format", FORMAT, repr(metadata.get("format"))))
        try:
            tasks, facts = json.loads(metadata["tasks"]), json.loads(metadata["facts"])
            images = {n.removeprefix(_IMAGE): v for n, v in tensors.items() if n.startswith(_IMAGE)}
            privileged = tensors.get("environment_state")
            observations = [
                Observation(
                    {camera: pictures[i] for camera, pictures in images.items()},
                    tensors["state"][i],
                    task,
                    environment_state=None if privileged is None else privileged[i],
                )
                for i, task in enumerate(tasks)
            ]
            arrays = {name: tensors[name] for name in _ARRAYS}
            return cls(observations, **arrays, facts=facts)  # type: ignore[arg-type]
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"{path}: damaged probe: {error}") from error

    def _tensors(self) -> dict[str, NDArray[Any]]:
        first = self.observations[0]
        tensors: dict[str, NDArray[Any]] = {
            "state": np.stack([o.state for o in self.observations]),
            **{name: getattr(self, name) for name in _ARRAYS},
        }
        if first.environment_state is not None:
            tensors["environment_state"] = np.array([o.environment_state for o in self.observations])
        for camera in first.images:
            tensors[_IMAGE + camera] = np.stack([o.images[camera] for o in self.observations])
        return tensors


def make_probe(
    segments: Iterable[Segment],
    labelling: Labelling,
    *,
    states: int = 256,
    k: int = 8,
    seed: int = 0,
    stores: Sequence[Store] = ("rollout",),
    proposer: BatchProposer | None = None,
    facts: dict[str, Any] | None = None,
) -> Probe:
    """At most `states` starts of chunks, as many of each task, drawn without replacement.

    labelling: its executed_length is E; its takeover rule says what a takeover was worth.
    stores: rollouts alone by default, because a critic judges the policy, not the people who helped it.
    proposer: makes the K candidates; without one they are chunks that ran in other states.
    Left out are chunks whose plan is not known to its end, or whose return is not (`realised_return`).
    Raises DataError when fewer than 2 are left.
    """
    if states < 2 or k < 2:
        raise ConfigError(mismatch("probe", "states and k", "2 or more", f"{states} and {k}"))
    rng = np.random.default_rng(seed)
    rows = _drawn((segment for segment in segments if segment.store in stores), labelling, states, rng)
    if len(rows) < 2:
        hint = "Finished rollouts are needed that were not trained on"
        raise DataError(mismatch("probe", f"chunks of {', '.join(stores)}", "2 or more", len(rows), hint))
    observations, chunks = [row.observation for row in rows], np.stack([row.chunk for row in rows])
    if proposer is None:
        candidates = chunks[_others([row.observation.task for row in rows], k, rng)]
    else:
        seeds = rng.integers(2**62, size=len(rows))
        candidates = proposer.propose(observations, k, seeds)[:, :, : labelling.executed_length]
    return Probe(
        observations,
        chunks,
        np.array([row.value for row in rows], np.float32),
        np.unique([row.episode for row in rows], return_inverse=True)[1].astype(np.int64),
        candidates,
        {
            "gamma": labelling.gamma,
            "takeover": labelling.takeover,
            "seed": seed,
            "candidates": "chunks of other states" if proposer is None else f"policy {proposer.version}",
            **(facts or {}),
        },
    )


def realised_return(segment: Segment, labelling: Labelling) -> Float32:
    """float32 (T,), what followed each step as the labels count it; -inf where that cannot be said.

    That is the episode's return, and at a takeover under the rule "failure" that of a failure there. Other
    segments that someone else went on from say nothing about who acted in them.
    """
    if segment.end == "takeover" and labelling.takeover == "failure":
        return sparse_labels(segment.steps, False, True, labelling.gamma, labelling.success_steps).mc_return
    if segment.end in ("takeover", "handback"):
        return np.full(segment.steps, -np.inf, np.float32)
    return labelling.apply(segment).chunks.mc_return


@dataclass(frozen=True)
class _Row:
    observation: Observation
    chunk: Float32
    value: float
    episode: str


def _drawn(
    segments: Iterable[Segment], labelling: Labelling, states: int, rng: np.random.Generator
) -> list[_Row]:
    """Streams, because the pictures of a whole dataset do not fit in memory: a row gets a random key, and
    the lowest of each task stay."""
    kept: dict[str, list[tuple[float, int, _Row]]] = {}
    for number, segment in enumerate(segments):
        made, value = labelling.apply(segment), realised_return(segment, labelling)
        for start, chunk in zip(made.starts, made.plans, strict=True):
            key, heap = -float(rng.random()), kept.setdefault(segment.task, [])
            if not np.isfinite(value[start]) or not np.isfinite(chunk).all():
                continue
            if len(heap) < states or key > heap[0][0]:
                row = _Row(
                    _copied(segment.observation(start)), chunk.copy(), float(value[start]), segment.episode
                )
                push = heapq.heappush if len(heap) < states else heapq.heappushpop
                push(heap, (key, number, row))
    ranked = [
        (rank, task, row)
        for task, heap in sorted(kept.items())
        for rank, (_, _, row) in enumerate(sorted(heap, key=lambda entry: -entry[0]))
    ]
    first = sorted(ranked, key=lambda entry: entry[:2])[:states]
    return [row for _, _, row in sorted(first, key=lambda entry: (entry[1], entry[0]))]


def _copied(observation: Observation) -> Observation:
    """Without the rest of its segment."""
    privileged = observation.environment_state
    return Observation(
        {camera: picture.copy() for camera, picture in observation.images.items()},
        observation.state.copy(),
        observation.task,
        environment_state=None if privileged is None else privileged.copy(),
    )


def _others(tasks: Sequence[str], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 (N, K), for each state K other states, of its task where there are as many."""
    names, chosen = np.array(tasks), []
    for i in range(len(tasks)):
        others = np.delete(np.arange(len(tasks)), i)
        same = others[names[others] == names[i]]
        pool = same if len(same) >= k else others
        chosen.append(rng.choice(pool, k, replace=len(pool) < k))
    return np.array(chosen, np.int64)


def segments_in(path: str | Path) -> Iterator[Segment]:
    """Of a replay folder, or of a dataset's episodes. Raises DataError for anything else."""
    root = Path(path)
    if (root / SEGMENTS).is_dir():
        reader = ReplayReader(root)
        reader.refresh()
        yield from reader.segments.values()
    elif (root / INFO).is_file():
        dataset = EpisodeDataset.open(root)
        for i in range(dataset.episodes):
            yield from dataset_segments(dataset, i)
    else:
        raise DataError(mismatch(str(path), "folder", "a replay or a LeRobotDataset v3", "neither"))
