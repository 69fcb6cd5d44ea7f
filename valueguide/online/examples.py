"""What a policy can learn from: for each state the chunk that was planned or done there, from segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.online.segments import STORES, Segment, Store, segment_transitions
from valueguide.types import Float32, Observation

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PolicyExamples:
    """N states and the H steps that the policy might learn to plan there.

    segments: what the states lie in. segment, frame: int64 (N,), a state's segment and its step there.
    chunks: float32 (N, H, A), physical, zero where nothing is known.
    known: bool (N, H), the steps of `chunks` that are known, a prefix.
    store: int64 (N,), as in STORES. mc_return: float32 (N,), of the whole episode from here on, whoever
        commanded; -inf where unknown.
    """

    segments: Sequence[Segment]
    segment: Int64
    frame: Int64
    chunks: Float32
    known: NDArray[np.bool_]
    store: Int64
    mc_return: Float32

    def __len__(self) -> int:
        return len(self.segment)

    def in_store(self, store: Store) -> NDArray[np.bool_]:
        """bool (N,)."""
        return self.store == STORES.index(store)

    def observations(self, rows: Int64, back: int = 0) -> list[Observation]:
        """What was seen in these states, or `back` steps before, but not before their segment began."""
        return [self.segments[s].observation(f) for s, f in self._places(rows, back)]

    def names(self, rows: Int64, back: int = 0) -> list[tuple[str, int]]:
        """The episode and the step of each of `observations`."""
        found = [(self.segments[s], f) for s, f in self._places(rows, back)]
        return [(segment.episode, segment.first_step + frame) for segment, frame in found]

    def _places(self, rows: Int64, back: int) -> list[tuple[int, int]]:
        frames = np.maximum(self.frame[rows] - back, 0)
        return list(zip(self.segment[rows].tolist(), frames.tolist(), strict=True))


def policy_examples(
    segments: Iterable[Segment], horizon: int, gamma: float = 0.98, *, every_step: bool = True
) -> PolicyExamples:
    """The policy's states are those where it planned, with the whole plan; other commanders' states come
    with what they went on to do in their segment.

    every_step: all states of humans and experts; False lays their chunks end to end.
    Raises DataError when there is no state at all.
    """
    kept: list[Segment] = []
    parts: list[tuple[Int64, Int64, Float32, Int64, Float32]] = []
    for segment in segments:
        cut = segment_transitions(segment, horizon, gamma, every_step=every_step)
        count = len(cut.starts)
        parts.append(
            (
                np.full(count, len(kept), np.int64),
                cut.starts.astype(np.int64),
                cut.plans,
                np.full(count, STORES.index(segment.store), np.int64),
                cut.chunks.mc_return[cut.starts],
            )
        )
        kept.append(segment)
    if not sum(len(part[0]) for part in parts):
        raise DataError(mismatch("policy examples", "states", "1 or more", "none"))
    number, frame, plans, store, returns = (np.concatenate(column) for column in zip(*parts, strict=True))
    known = ~np.isnan(plans).any(-1)
    chunks = np.where(known[..., None], plans, np.float32(0.0))
    return PolicyExamples(kept, number, frame, chunks, known, store, returns)
