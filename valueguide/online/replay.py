"""A replay: a folder of segments that several processes fill while a learner reads.

`segments/<sequence>-<store>.safetensors`, one file a segment, and `spec.json`, the shapes they share. Files
appear whole, by a rename, and never change. Writers take turns by a lock on the folder, so sequence numbers
appear in ascending order; the newest of a store is never evicted, so no number is given twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from valueguide.data.layout import TEMPORARY, make_folder, read_json, write_json
from valueguide.disk import flush
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.online.segment_file import read_segment, write_segment
from valueguide.online.segments import STORES, Segment, Store
from valueguide.types import Observation

log = logging.getLogger("valueguide.online")
SEGMENTS, SPEC, LOCK = "segments", "spec.json", "lock"
_FORMAT = 1
_NAME = re.compile(rf"(\d{{12}})-({'|'.join(STORES)})\.safetensors")
_FRAME_BITS = 20
#: With one bound for the whole folder, the oldest of the first store that has any to spare goes.
EVICTION_ORDER: tuple[Store, ...] = ("rollout", "correction", "offline")


def state_id(sequence: int, frame: int) -> int:
    """The id of the observation before step `frame` of a segment; T is the one after its last step."""
    return sequence << _FRAME_BITS | frame


def from_state_id(number: int) -> tuple[int, int]:
    """(sequence, frame) of `state_id`."""
    return number >> _FRAME_BITS, number & (1 << _FRAME_BITS) - 1


@dataclass(frozen=True)
class SegmentFile:
    """One file of a replay, by its name."""

    path: Path
    sequence: int
    store: Store


class ReplayWriter:
    """Appends segments to the replay in `root`, which it makes if needed. Use from one thread.

    max_bytes: a bound on the segments' files, kept whenever `append` has returned, save that the newest
        segment of each store stays. A mapping bounds single stores, whose oldest segments go first; a
        number bounds the whole folder, where the oldest rollouts go first, then the oldest corrections,
        then offline segments. None: no bound.
    Raises DataError when the folder cannot be used, ConfigError for an unknown store or a bound below 1.
    """

    def __init__(self, root: str | Path, max_bytes: Mapping[Store, int] | int | None = None) -> None:
        self.root = Path(root).resolve()
        self.max_bytes = max_bytes
        for store, bound in _bounds(max_bytes).items():
            if store not in (*STORES, "all") or bound < 1:
                expected = f"1 or more for some of {STORES}"
                raise ConfigError(mismatch("replay", "max_bytes", expected, f"{bound} for {store!r}"))
        try:
            make_folder(self.root / SEGMENTS)
            self._lock: int | None = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            with self._turn():
                _remove_leftovers(self.root)
        except OSError as error:
            raise DataError(f"{self.root}: cannot write a replay here: {error}") from error

    def append(self, segment: Segment) -> int:
        """Store the segment durably; returns its sequence number.

        Raises DataError when its shapes are not the replay's, when it alone is over the bound, and when the
        disk refuses; nothing is stored then, what was there is untouched, and appending may go on.
        """
        self._check_size(segment)
        try:
            with self._turn():
                self._check_shapes(segment)
                files = list_files(self.root)
                sequence = max((file.sequence for file in files), default=-1) + 1
                path = self.root / SEGMENTS / f"{sequence:012d}-{segment.store}.safetensors"
                write_segment(path, segment)
                self._bound([*files, SegmentFile(path, sequence, segment.store)])
        except OSError as error:
            hint = "Stored segments are safe; free space and go on"
            raise DataError(f"{self.root}: segment not stored: {error}. {hint}") from error
        return sequence

    def close(self) -> None:
        """Release the folder. Everything appended is already on disk."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> ReplayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other writer is at work. A killed writer's lock ends with it."""
        if self._lock is None:
            raise DataError(f"{self.root}: the replay is closed")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _check_size(self, segment: Segment) -> None:
        where, most = str(self.root), (1 << _FRAME_BITS) - 1
        if segment.steps > most:
            raise DataError(mismatch(where, "steps of a segment", f"at most {most}", segment.steps))
        bounds = _bounds(self.max_bytes)
        bound = min((bounds[kind] for kind in ("all", segment.store) if kind in bounds), default=None)
        if bound is not None and segment.nbytes > bound:
            raise DataError(
                mismatch(where, "bytes of a segment", f"at most {bound} (max_bytes)", segment.nbytes)
            )

    def _check_shapes(self, segment: Segment) -> None:
        if not (self.root / SPEC).exists():
            write_json(self.root / SPEC, {"format": _FORMAT, **segment.shapes()})
        difference = _difference(_spec(self.root), segment)
        if difference:
            raise DataError(f"{self.root}: the segment does not fit: {difference}. Use another folder")

    def _bound(self, files: list[SegmentFile]) -> None:
        """Evict the oldest until the bounds hold; the newest of each store stays, whatever its size."""
        bounds = _bounds(self.max_bytes)
        if not bounds:
            return
        sizes = {file.path: file.path.stat().st_size for file in files}
        evicted = False
        for kind, bound in bounds.items():
            mine = [file for file in files if kind in ("all", file.store)]
            total = sum(sizes[file.path] for file in mine)
            for file in _by_eviction(mine):
                if total <= bound:
                    break
                file.path.unlink()
                total -= sizes[file.path]
                evicted = True
        if evicted:
            flush(self.root / SEGMENTS)


class ReplayReader:
    """What a replay holds, seen through memory maps; writers may go on.

    segments: sequence number -> segment, ascending. Arrays lie in the maps: a segment that is still
        referred to stays readable after its file was evicted. A map a segment, so at most about 60 000
        segments (the kernel's vm.max_map_count).
    damaged: file name -> what is wrong. Such files are reported, left out and never touched.
    verify: compare each file's checksum when it is first seen, which reads it once.
    """

    def __init__(self, root: str | Path, verify: bool = True) -> None:
        self.root = Path(root).resolve()
        self.verify = verify
        self.segments: dict[int, Segment] = {}
        self.damaged: dict[str, str] = {}

    def refresh(self) -> tuple[list[int], list[int]]:
        """Look again; returns the sequence numbers that are new, and those whose files are gone.

        Raises DataError when `spec.json` is damaged or of another version. No folder yet: nothing there.
        """
        files = list_files(self.root)
        spec = _spec(self.root) if files else {}
        added = []
        for file in files:
            if file.sequence in self.segments or file.path.name in self.damaged:
                continue
            segment = self._open(file, spec)
            if segment is not None:
                self.segments[file.sequence] = segment
                added.append(file.sequence)
        there = {file.sequence for file in files}
        removed = [sequence for sequence in self.segments if sequence not in there]
        for sequence in removed:
            del self.segments[sequence]
        return added, removed

    def observation(self, number: int) -> Observation:
        """The observation with this `state_id`, as in a batch's `index` and `next_index`.

        Raises DataError when its segment is not there (any more).
        """
        sequence, frame = from_state_id(number)
        segment = self.segments.get(sequence)
        if segment is None or frame > segment.steps:
            raise DataError(f"{self.root}: no segment holds the state {number}")
        return segment.observation(frame)

    def _open(self, file: SegmentFile, spec: dict[str, Any]) -> Segment | None:
        try:
            segment = read_segment(file.path, self.verify)
            difference = _difference(spec, segment)
            if difference or segment.store != file.store:
                raise DataError(f"{file.path}: {difference or f'it belongs to the store {segment.store}'}")
        except FileNotFoundError:
            return None  # Evicted a moment ago.
        except DataError as error:
            self.damaged[file.path.name] = str(error)
            log.warning("left out of the replay: %s", error)
            return None
        return segment


def list_files(root: Path) -> list[SegmentFile]:
    """The segment files of a replay in ascending order of their sequence numbers; none without a folder."""
    try:
        names = os.listdir(root / SEGMENTS)
    except FileNotFoundError:
        return []
    found = [(name, match) for name in names if (match := _NAME.fullmatch(name))]
    return [
        SegmentFile(root / SEGMENTS / name, int(match[1]), _store(match[2])) for name, match in sorted(found)
    ]


def _store(name: str) -> Store:
    return next(store for store in STORES if store == name)


def _by_eviction(files: list[SegmentFile]) -> list[SegmentFile]:
    """Those that may go, the first to go first."""
    return [
        file
        for store in EVICTION_ORDER
        for file in sorted((f for f in files if f.store == store), key=lambda f: f.sequence)[:-1]
    ]


def _bounds(max_bytes: Mapping[Store, int] | int | None) -> dict[str, int]:
    """Store, or "all", -> bytes."""
    if max_bytes is None:
        return {}
    return (
        {"all": max_bytes}
        if isinstance(max_bytes, int)
        else {str(store): size for store, size in max_bytes.items()}
    )


def _spec(root: Path) -> dict[str, Any]:
    spec = read_json(root / SPEC)
    found = spec.pop("format", None) if isinstance(spec, dict) else None
    if found != _FORMAT:
        raise DataError(mismatch(str(root / SPEC), "format", _FORMAT, found))
    return spec


def _difference(spec: dict[str, Any], segment: Segment) -> str | None:
    for name, size in segment.shapes().items():
        if spec.get(name) != size:
            return f"{name}: expected {spec.get(name)}, found {size}"
    return None


def _remove_leftovers(root: Path) -> None:
    """Delete what killed writers left half-written. Only with the lock: others are not writing then."""
    for path in (root / SEGMENTS).glob(f".*{TEMPORARY}"):
        path.unlink()
