"""Batches of chunk transitions from a growing replay: a pure function of (seed, step, visible segments)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.data.loader import ObservationKind
from valueguide.data.prefetch import Prefetcher
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.online.replay import ReplayReader
from valueguide.online.replay_draw import DEFAULT_RATIOS, Population, checked_ratios
from valueguide.online.replay_journal import Entry, Journal
from valueguide.online.replay_rows import Drawable, Rows
from valueguide.online.segments import (
    STORES,
    Segment,
    SegmentTransitions,
    Store,
    TakeoverRule,
    segment_transitions,
)
from valueguide.types import SOURCES, ChunkBatch, Float32, UInt8

log = logging.getLogger("valueguide.online")
Int64 = NDArray[np.int64]
#: (sequence number, segment) -> float32 (T+1, F); called once for each segment that is drawn from.
FeatureSource = Callable[[int, Segment], Float32]


@dataclass(frozen=True, kw_only=True)
class ReplayBatch(ChunkBatch):
    """A `ChunkBatch` that also says where its rows come from. `index`, `next_index` are `state_id`s.

    cut: bool (B,), a takeover cut the policy's plan short; see `SegmentTransitions`.
    source: int64 (B,), who acted, as in types.SOURCES. store: int64 (B,), as in segments.STORES.
    """

    cut: NDArray[np.bool_]
    source: Int64
    store: Int64


@dataclass(frozen=True)
class Labelling:
    """How segments become transitions; see `segment_transitions` for each."""

    executed_length: int
    gamma: float = 0.98
    success_steps: int = 3
    takeover: TakeoverRule = "failure"
    every_step: bool = True

    def apply(self, segment: Segment) -> SegmentTransitions:
        return segment_transitions(
            segment,
            self.executed_length,
            self.gamma,
            self.success_steps,
            self.takeover,
            every_step=self.every_step,
        )


class ReplayLoader:
    """Draws transitions with replacement from the segments that `reader` sees.

    observation, cameras, privileged: as in `ChunkLoader`.
    ratios: store -> share of the rows. A store without transitions gives its share to the others;
        `shares` says what is in force.
    half_life: segments of a store, or of every store, after which one is half as likely; 0: uniform.
    features: for observation="features" where segments hold none.
    refresh_every: steps between looks at the folder. What one finds holds from its step on.
    journal: a file that keeps what was found when, so that steps done after the last saved state are drawn
        again as they were. Without it that is known up to the saved state only.
    instructions: texts that keep the first places of `instructions`, such as a checkpoint's.
    rows: those of the `batch_size` rows drawn for a step that this loader's batches hold; all by default.
    """

    def __init__(
        self,
        reader: ReplayReader,
        labelling: Labelling,
        batch_size: int = 256,
        seed: int = 0,
        observation: ObservationKind = "images",
        *,
        ratios: Mapping[Store, float] = DEFAULT_RATIOS,
        half_life: Mapping[Store, float] | float = 0.0,
        features: FeatureSource | None = None,
        cameras: Sequence[str] | None = None,
        privileged: bool = False,
        refresh_every: int = 50,
        journal: str | Path | None = None,
        instructions: Sequence[str] = (),
        rows: slice | None = None,
    ) -> None:
        for name, value in (("batch size", batch_size), ("refresh_every", refresh_every)):
            if value < 1:
                raise ConfigError(mismatch("replay loader", name, "1 or more", value))
        if observation not in ("images", "state", "features"):
            expected = "images, state or features"
            raise ConfigError(mismatch("replay loader", "observation", expected, observation))
        self.reader = reader
        self.labelling = labelling
        self.batch_size, self.seed, self.refresh_every = batch_size, seed, refresh_every
        self.observation: ObservationKind = observation
        self.privileged = privileged
        self.ratios = checked_ratios(ratios)
        self.half_life = _half_lives(half_life)
        self._chosen_cameras, self._mine = cameras, rows or slice(None)
        self._features = features
        self._feature_rows: dict[int, Float32] = {}
        self._journal = Journal(journal)
        self._known: dict[int, Drawable] = {}
        self._current: tuple[int, list[Drawable], Population] | None = None
        self._mutex = threading.Lock()  # batches are made in a thread, states are saved from another
        self._prefetcher = Prefetcher(lambda step: self.batch(step))
        self.instructions = list(dict.fromkeys(instructions))
        for entry in self._journal.entries:
            self._learn(entry.instructions)

    def batch(self, step: int) -> ReplayBatch:
        """The batch of training step `step` >= 0.

        The first call for a step settles, for every later call, which segments it may draw from.
        Raises DataError while no visible segment holds a transition of a store with a share.
        """
        with self._mutex:
            self._look(step)
            drawables, population = self._population(step)
        if population.empty:
            stores = [store for store, ratio in self.ratios.items() if ratio > 0]
            raise DataError(f"{self.reader.root}: no transition of the stores {stores} yet; collect first")
        rng = np.random.default_rng([self.seed, step])
        chosen, place = population.draw(rng, self.batch_size)
        return self._gather(drawables, chosen[self._mine], place[self._mine])

    @property
    def ready(self) -> bool:
        """Whether there is something to draw; looks at the folder without settling any step."""
        with self._mutex:
            self.reader.refresh()
            visible = {s: self._drawable(s, segment) for s, segment in self.reader.segments.items()}
            return not self._build(list(visible.values())).empty

    @property
    def shares(self) -> dict[Store, float]:
        """Share of the rows of the last batch that each store gave, in expectation."""
        return dict(self._current[2].shares) if self._current else {}

    @property
    def transitions(self) -> dict[Store, int]:
        """How many transitions the last batch was drawn from, by store."""
        counts: dict[Store, int] = dict.fromkeys(STORES, 0)
        for one in self._current[1] if self._current else []:
            counts[one.segment.store] += one.count
        return counts

    @property
    def wait_share(self) -> float:
        """Share of the time since `iterate` began that the learner spent waiting for a batch."""
        return self._prefetcher.wait_share

    def iterate(self, start_step: int = 0, prefetch: int = 2) -> Iterator[ChunkBatch]:
        """As `ChunkLoader.iterate`; the batches are `ReplayBatch`es."""
        return self._prefetcher.iterate(start_step, prefetch)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; with it, a new loader over the same folder draws every settled step again."""
        with self._mutex:
            return {"settings": self._settings(), "journal": self._journal.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume. Raises ConfigError when a setting differs, DataError for the journal of another run."""
        for name, value in self._settings().items():
            if state["settings"][name] != value:
                raise ConfigError(mismatch("replay loader state", name, value, state["settings"][name]))
        with self._mutex:
            self._journal.restore(state["journal"])
            self._current = None
            for entry in self._journal.entries:
                self._learn(entry.instructions)

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "refresh_every": self.refresh_every,
            "ratios": {**self.ratios},
            "half_life": {**self.half_life},
            "labelling": {**vars(self.labelling)},
        }

    def _look(self, step: int) -> None:
        """Settle what is visible at `step`, unless it was settled before."""
        point = step - step % self.refresh_every
        if point <= self._journal.checked:
            return
        self.reader.refresh()
        before = set(self._journal.visible_at(point))
        added = [sequence for sequence in self.reader.segments if sequence not in before]
        removed = sorted(before - set(self.reader.segments))
        if self._build([self._drawable(s, one) for s, one in self.reader.segments.items()]).empty:
            return
        texts = list(dict.fromkeys(self.reader.segments[sequence].task for sequence in added))
        new = [text for text in texts if text not in self.instructions]
        self._journal.note(Entry(point, added, removed, new))
        self._learn(new)
        for sequence in [s for s in self._known if s not in self.reader.segments]:
            del self._known[sequence]
            self._feature_rows.pop(sequence, None)

    def _population(self, step: int) -> tuple[list[Drawable], Population]:
        position = self._journal.position(step)
        if self._current is not None and self._current[0] == position:
            return self._current[1:]
        visible = self._journal.visible_at(step)
        if any(s not in self._known and s not in self.reader.segments for s in visible):
            self.reader.refresh()
        found, missing = [], []
        for sequence in visible:
            segment = self.reader.segments.get(sequence)
            if sequence in self._known or segment is not None:
                found.append(self._drawable(sequence, segment))
            else:
                missing.append(sequence)
        if missing:
            log.warning(
                "%s: segments %s are gone, so step %d is not drawn as it was", self.reader.root, missing, step
            )
        population = self._build(found)
        before = self._current[2].shares if self._current else self.ratios
        if population.shares != before:
            log.info("%s: shares %s of the ratios %s", self.reader.root, population.shares, self.ratios)
        self._current = (position, found, population)
        return found, population

    def _drawable(self, sequence: int, segment: Segment | None) -> Drawable:
        if sequence not in self._known:
            assert segment is not None
            self._known[sequence] = Drawable(sequence, segment, self.labelling.apply(segment))
        return self._known[sequence]

    def _build(self, drawables: list[Drawable]) -> Population:
        stores = [one.segment.store for one in drawables]
        counts = [one.count for one in drawables]
        return Population.build(stores, counts, self.ratios, self.half_life)

    def _learn(self, texts: list[str]) -> None:
        self.instructions.extend(text for text in texts if text not in self.instructions)

    def _gather(self, drawables: list[Drawable], chosen: Int64, place: Int64) -> ReplayBatch:
        """The rows, segment by segment; only the frames that are drawn are read from the maps."""
        out = Rows(chosen)
        images: dict[str, UInt8] = {}
        next_images: dict[str, UInt8] = {}
        segments = []
        for number, rows in out.groups():
            one, mine = drawables[number], place[rows]
            segments.append(one.segment)
            for name, values in one.columns.items():
                out.put(name, values[mine])
            frames, following = one.frames[mine], one.following[mine]
            for name, values in self._vectors(one).items():
                out.put(name, values[frames])
                out.put("next_" + name, values[following])
            if self.observation == "images":
                for camera in self._cameras(one.segment):
                    pictures = one.segment.images[camera]
                    for into, which in ((images, frames), (next_images, following)):
                        if camera not in into:
                            into[camera] = np.empty((len(chosen), *pictures.shape[1:]), np.uint8)
                        into[camera][rows] = pictures[which]
        return ReplayBatch(
            **out.arrays(),
            instruction=out.labels([self.instructions.index(segment.task) for segment in segments]),
            source=out.labels([SOURCES.index(segment.source) for segment in segments]),
            store=out.labels([STORES.index(segment.store) for segment in segments]),
            images=images,
            next_images=next_images,
        )

    def _vectors(self, one: Drawable) -> dict[str, Float32]:
        segment = one.segment
        vectors = {"state": segment.state}
        if segment.environment_state is not None and (self.privileged or self.observation == "state"):
            vectors["environment_state"] = segment.environment_state
        elif self.privileged:
            raise DataError(mismatch(str(self.reader.root), "environment state", "one a frame", "none"))
        if self.observation == "features":
            vectors["features"] = self._features_of(one)
        return vectors

    def _cameras(self, segment: Segment) -> list[str]:
        chosen = list(segment.images if self._chosen_cameras is None else self._chosen_cameras)
        unknown = sorted(set(chosen) - set(segment.images))
        if unknown or not chosen:
            expected = f"some of {sorted(segment.images)}"
            raise DataError(mismatch(str(self.reader.root), "cameras", expected, unknown or "none"))
        return chosen

    def _features_of(self, one: Drawable) -> Float32:
        if one.segment.features is not None:
            return one.segment.features
        if self._features is None:
            raise DataError(mismatch(str(self.reader.root), "features", "stored, or features=…", "neither"))
        if one.sequence not in self._feature_rows:
            made = self._features(one.sequence, one.segment)
            if made.ndim != 2 or len(made) != one.segment.steps + 1:
                expected = f"shape ({one.segment.steps + 1}, F)"
                raise DataError(mismatch(f"segment {one.sequence}", "features", expected, made.shape))
            self._feature_rows[one.sequence] = made
        return self._feature_rows[one.sequence]


def _half_lives(half_life: Mapping[Store, float] | float) -> dict[Store, float]:
    each = dict(half_life) if isinstance(half_life, Mapping) else dict.fromkeys(STORES, float(half_life))
    if set(each) - set(STORES) or not all(np.isfinite(v) and v >= 0 for v in each.values()):
        raise ConfigError(mismatch("replay", "half_life", f"0 or more for some of {STORES}", each))
    return each
