"""Chunks of the current policy at successor states, the costly half of a chunked TD target.

A state is asked about once a policy version; answers are kept. `TargetBatches` asks in the background,
while the learner takes its gradient steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from valueguide.critics.proposals import Proposals
from valueguide.data.prefetch import Prefetcher
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.interfaces import BatchProposer
from valueguide.types import ChunkBatch, Float32, Observation

Int64 = NDArray[np.int64]
#: Batch and some of its rows, int64 (R,) -> the R observations after their chunks.
Observe = Callable[[ChunkBatch, Int64], Sequence[Observation]]

_WHERE = "policy targets"


def observe_successors(instructions: Sequence[str]) -> Observe:
    """Reads the observations out of the batch itself: its `next_` pictures, states and instructions.

    instructions: the sentences that `ChunkBatch.instruction` points into. A batch of cached features lacks
    the pictures that a policy sees; such a learner passes an `Observe` of its own.
    """

    def observe(batch: ChunkBatch, rows: Int64) -> list[Observation]:
        privileged = batch.next_environment_state
        return [
            Observation(
                images={camera: pictures[row] for camera, pictures in batch.next_images.items()},
                state=batch.next_state[row],
                task=instructions[int(batch.instruction[row])],
                environment_state=None if privileged is None else privileged[row],
            )
            for row in rows
        ]

    return observe


class PolicyTargets:
    """Proposals at the successor states of batches, each made once a policy version.

    proposer: the current policy; assign another, or change its `version`, and nothing of the old one is
        returned any more. k: P, chunks a state. batch_size: the most states in one call of the policy.
    capacity: states whose chunks are kept, the least recently used ones are dropped first; a state takes
        4 * P * E * A bytes.
    calls: how often the policy was called. hits, misses: rows that were answered from memory, and rows
        that the policy was asked about.

    The chunks of a state depend on (seed, version, id) and its observation, not on the batch it came in.
    Calls from several threads wait for each other.
    """

    def __init__(
        self,
        proposer: BatchProposer,
        k: int = 8,
        seed: int = 0,
        batch_size: int = 64,
        capacity: int = 200_000,
    ) -> None:
        for name, value in (("k", k), ("batch_size", batch_size), ("capacity", capacity)):
            if value < 1:
                raise ConfigError(mismatch(_WHERE, name, "1 or more", value))
        if seed < 0:
            raise ConfigError(mismatch(_WHERE, "seed", "0 or more", seed))
        self.proposer, self.k, self.seed = proposer, k, seed
        self.batch_size, self.capacity = batch_size, capacity
        self.calls, self.hits, self.misses = 0, 0, 0
        #: Seconds in ended calls, and when the one that runs began; one value, as other threads read it.
        self._policy_clock: tuple[float, float | None] = (0.0, None)
        self._began: float | None = None
        self._lock = threading.Lock()
        self._kept_for: tuple[str, int] = ("", 0)
        self._kept: OrderedDict[int, Float32] = OrderedDict()

    @property
    def hit_rate(self) -> float:
        """Share of the rows with a successor that needed no policy call."""
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def policy_s(self) -> float:
        """Seconds in the policy so far, those of a call that still runs among them."""
        ended, since = self._policy_clock
        return ended if since is None else ended + time.monotonic() - since

    @property
    def policy_share(self) -> float:
        """Seconds in policy calls over seconds since the first batch, in [0, 1]."""
        elapsed = 0.0 if self._began is None else time.monotonic() - self._began
        return self.policy_s / elapsed if elapsed > 0 else 0.0

    def propose(self, batch: ChunkBatch, observe: Observe) -> Proposals:
        """`Proposals.following`: float32 (B, P, E, A), physical, the first E steps of the policy's chunks.

        Rows whose discount is 0 have no successor: the policy is not asked, and they hold zeros. `observe` is
        called for the rows that are not known yet, at most `batch_size` at a time. Raises DataError when the
        batch does not name its successors or the policy's chunks do not fit it.
        """
        return self.propose_with_version(batch, observe)[1]

    def propose_with_version(self, batch: ChunkBatch, observe: Observe) -> tuple[str, Proposals]:
        """As `propose`, and the version of the policy that proposed."""
        ids = _successor_ids(batch)
        with self._lock:
            if self._began is None:
                self._began = time.monotonic()
            while True:
                proposer, version = self.proposer, self.proposer.version
                following = self._following(proposer, version, batch, ids, observe)
                # A learner may have put another policy in place meanwhile.
                if self.proposer.version == version:
                    return version, Proposals(following=following)

    def remembered(self) -> tuple[Int64, Float32]:
        """What is known of the present policy: ids (n,), least recently used first; chunks (n, P, E, A).

        Matrix libraries round rows by how many are computed together, and which states a batch asks about
        depends on what is known. So a run that goes on bit for bit hands this to `remember`; that it was
        taken some batches later than the state of the learner does no harm while nothing was dropped.
        """
        with self._lock:
            if not self._kept or self._kept_for[0] != self.proposer.version:
                return np.zeros(0, np.int64), np.zeros((0, self.k, 0, 0), np.float32)
            return np.fromiter(self._kept, np.int64), np.stack(list(self._kept.values()))

    def remember(self, ids: Int64, chunks: Float32) -> None:
        """Take over what another one of the same policy, seed and P `remembered`. DataError for another P."""
        if chunks.ndim != 4 or chunks.shape[:2] != (len(ids), self.k):
            raise DataError(
                mismatch(_WHERE, "remembered chunks", f"({len(ids)}, {self.k}, E, A)", chunks.shape)
            )
        with self._lock:
            self._kept_for = (self.proposer.version, chunks.shape[2])
            self._kept = OrderedDict(zip(ids.tolist(), chunks, strict=True))

    def _following(
        self, proposer: BatchProposer, version: str, batch: ChunkBatch, ids: Int64, observe: Observe
    ) -> Float32:
        rows, steps, size = batch.actions.shape
        if self._kept_for != (version, steps):
            self._kept_for = (version, steps)
            self._kept.clear()
        following = np.zeros((rows, self.k, steps, size), np.float32)
        needed = np.flatnonzero(batch.discount > 0)
        known = np.array([int(i) in self._kept for i in ids[needed]], bool)
        for row in needed[known]:
            self._kept.move_to_end(int(ids[row]))
            following[row] = self._kept[int(ids[row])]
        unknown = needed[~known]
        states, first, inverse = np.unique(ids[unknown], return_index=True, return_inverse=True)
        made = np.empty((len(states), self.k, steps, size), np.float32)
        for start in range(0, len(states), self.batch_size):
            part = slice(start, start + self.batch_size)
            observations = list(observe(batch, unknown[first[part]]))
            seeds = self._seeds(version, states[part])
            if len(seeds) == 1 < self.batch_size:
                # Matrix libraries round a single row in another way than one of many: with a second one, a
                # run that is resumed without its memory computes the same numbers bit for bit.
                observations, seeds = observations * 2, np.repeat(seeds, 2)
            made[part] = self._ask(proposer, observations, seeds, steps, size)[: len(states[part])]
        following[unknown] = made[inverse]
        for state, chunks in zip(states, made, strict=True):
            self._kept[int(state)] = chunks.copy()
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        self.hits, self.misses = self.hits + len(needed) - len(states), self.misses + len(states)
        return following

    def _ask(
        self,
        proposer: BatchProposer,
        observations: Sequence[Observation],
        seeds: Int64,
        steps: int,
        size: int,
    ) -> Float32:
        ended, began = self._policy_clock[0], time.monotonic()
        self._policy_clock = (ended, began)
        try:
            chunks = proposer.propose(observations, self.k, seeds)
        finally:
            self._policy_clock = (ended + time.monotonic() - began, None)
        self.calls += 1
        shape = (len(seeds), self.k, max(chunks.shape[2], steps) if chunks.ndim == 4 else steps, size)
        if chunks.shape != shape or chunks.dtype != np.float32:
            wanted = f"float32 ({len(seeds)}, {self.k}, H >= {steps}, {size})"
            raise DataError(mismatch(_WHERE, "chunks", wanted, f"{chunks.dtype} {chunks.shape}"))
        if not np.isfinite(chunks).all():
            raise DataError(mismatch(_WHERE, "chunks", "finite numbers", "NaN or infinity"))
        return chunks[:, :, :steps]

    def _seeds(self, version: str, states: Int64) -> Int64:
        word = int.from_bytes(hashlib.sha256(version.encode()).digest()[:8])
        drawn = [
            int(np.random.SeedSequence((self.seed, word, int(state))).generate_state(1, np.uint64)[0]) >> 1
            for state in states
        ]
        return np.array(drawn, np.int64)


class TargetBatches:
    """Numbered batches with their proposals; the policy is asked in the background thread.

    make: training step -> batch, as `ChunkMixture.batch`.
    """

    def __init__(self, make: Callable[[int], ChunkBatch], targets: PolicyTargets, observe: Observe) -> None:
        def attach(step: int) -> tuple[ChunkBatch, str, Proposals]:
            batch = make(step)
            return (batch, *targets.propose_with_version(batch, observe))

        self._targets, self._observe = targets, observe
        self._prefetcher = Prefetcher(attach)

    @property
    def wait_share(self) -> float:
        """Share of the time since `iterate` began that the learner spent waiting for an item."""
        return self._prefetcher.wait_share

    def iterate(self, start_step: int = 0, prefetch: int = 2) -> Generator[tuple[ChunkBatch, Proposals]]:
        """Endless (batch, proposals) from `start_step` on, made up to `prefetch` ahead.

        Proposals that were made ahead are made anew when the policy has changed since. A policy that draws
        from torch's global random stream (LeRobot types without a sampler of their own) disturbs the draws of
        dropout in the learner meanwhile; its proposals are not affected. Close the generator (or let it go)
        to stop the thread. An error in the thread is raised here.
        """
        with contextlib.closing(self._prefetcher.iterate(start_step, prefetch)) as items:
            for batch, version, proposals in items:
                if version != self._targets.proposer.version:
                    proposals = self._targets.propose(batch, self._observe)
                yield batch, proposals


def _successor_ids(batch: ChunkBatch) -> Int64:
    if batch.next_index is None:
        raise DataError(mismatch(_WHERE, "next_index", "the ids of the successor states", "none"))
    if (batch.next_index[batch.discount > 0] < 0).any():
        raise DataError(mismatch(_WHERE, "next_index", "ids of 0 or more", int(batch.next_index.min())))
    return batch.next_index
