"""From recorded episodes to the replay: each finished episode once, every n-th of them held out.

A ledger, one line an episode, says what was taken in. A line is written after the episode's segments are on
the disk; segments of an episode without a line are found again in the replay, so that a process that dies
anywhere in between neither loses one nor stores it twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from valueguide.data.growing import GrowingDataset
from valueguide.data.layout import make_folder
from valueguide.data.reader import EpisodeDataset
from valueguide.disk import flush
from valueguide.errors import DataError, ValueguideError
from valueguide.online.replay import ReplayReader, ReplayWriter
from valueguide.online.segments import Segment, Store, segments_of

log = logging.getLogger("valueguide.online")
LEDGER, REPLAY, HELD_OUT = "intake.jsonl", "replay", "held_out"


@dataclass(frozen=True)
class Taken:
    """An episode that is in the replay. steps: control steps in its segments.

    source: the dataset's folder. offline: imported once, not counted as recorded.
    """

    episode: str
    source: str
    steps: int
    segments: int
    offline: bool = False
    held_out: bool = False


class Ledger:
    """What was taken in, in the file `path`. Raises DataError when it is not a ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken: dict[str, Taken] = {}
        #: Episodes that are not offline, and control steps of those that are learned from.
        self.recorded_episodes, self.recorded_steps = 0, 0
        #: Offline datasets that were imported to their end.
        self.complete: set[str] = set()
        if path.exists():
            self._read()

    def note(self, entry: Taken) -> None:
        """Durable on return. Raises OSError; nothing is noted then."""
        self._append(asdict(entry))
        self._count(entry)

    def note_complete(self, source: str) -> None:
        """Durable on return. Raises OSError."""
        self._append({"complete": source})
        self.complete.add(source)

    def _count(self, entry: Taken) -> None:
        self.taken[entry.episode] = entry
        self.recorded_episodes += not entry.offline
        self.recorded_steps += 0 if entry.offline or entry.held_out else entry.steps

    def _append(self, line: dict[str, object]) -> None:
        content = json.dumps(line).encode() + b"\n"
        is_new = not self.path.exists()
        with open(self.path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, start)
                raise
        if is_new:
            flush(self.path.parent)

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # Cut off by a kill: it was not noted.
            os.truncate(self.path, whole)
        for number, text in enumerate(content[:whole].splitlines(), 1):
            try:
                line = json.loads(text)
                if "complete" in line:
                    self.complete.add(line["complete"])
                else:
                    self._count(Taken(**line))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{self.path}, line {number}: not a line of a ledger: {error}") from error


@dataclass(frozen=True)
class _Waiting:
    """Episode `place` of an open part of a dataset."""

    part: EpisodeDataset
    place: int
    episode: str
    source: str
    offline: bool


class Intake:
    """Takes episodes of `datasets` (recorded into) and `offline` (imported once) into `root`'s replays.

    hold_out: every so manieth recorded episode goes to held_out/ instead of replay/. max_bytes: of the
    replay, a `hold_out`th of it for the held-out ones; 0 for no bound.
    problems: what could not be taken in -> one line.
    """

    def __init__(
        self,
        root: Path,
        datasets: Iterable[str],
        offline: Iterable[str] = (),
        hold_out: int = 5,
        max_bytes: int = 0,
    ) -> None:
        make_folder(root)
        self.ledger = Ledger(root / LEDGER)
        self.hold_out = hold_out
        bounds = (max_bytes or None, max(1, max_bytes // hold_out) if max_bytes else None)
        self._writers = {
            held: ReplayWriter(root / name, bound)
            for held, name, bound in zip((False, True), (REPLAY, HELD_OUT), bounds, strict=True)
        }
        self._partly = self._stored_in_part(root)
        self._growing = [(GrowingDataset(path), False) for path in datasets]
        self._growing += [
            (one, True)
            for path in offline
            if str((one := GrowingDataset(path)).root) not in self.ledger.complete
        ]
        #: Offline datasets whose episodes have been lined up.
        self._begun: set[Path] = set()
        self._waiting: deque[_Waiting] = deque()
        self._failed: dict[str, str] = {}
        self._unreadable: dict[Path, str] = {}

    @property
    def waiting(self) -> int:
        """Finished episodes that are known and not taken in yet."""
        return len(self._waiting)

    @property
    def problems(self) -> dict[str, str]:
        damaged = {str(path): line for one, _ in self._growing for path, line in one.damaged.items()}
        unreadable = {str(path): line for path, line in self._unreadable.items()}
        return {**unreadable, **damaged, **self._failed}

    def counts(self) -> dict[str, int]:
        """Episodes by what became of them."""
        kinds = ("offline" if e.offline else "held_out" if e.held_out else "learned_from"
                 for e in self.ledger.taken.values())  # fmt: skip
        counted = Counter({"learned_from": 0, "held_out": 0, "offline": 0})
        counted.update(kinds)
        return {**counted, "waiting": len(self._waiting), "damaged": len(self.problems)}

    def look(self) -> bool:
        """Whether finished episodes wait; reads what datasets have grown by when none did.

        Raises OSError when the disk refuses.
        """
        if self._waiting:
            return True
        for dataset, offline in list(self._growing):
            if dataset.root in self._begun and not self._left_out(dataset):
                self.ledger.note_complete(str(dataset.root))
                self._growing.remove((dataset, offline))
                continue
            try:
                parts = dataset.look()
                self._unreadable.pop(dataset.root, None)
            except (DataError, OSError) as error:
                self._unreadable[dataset.root] = " ".join(str(error).split())
                continue
            for part in parts:
                self._line_up(part, dataset, offline)
            if offline and parts:
                self._begun.add(dataset.root)
        return bool(self._waiting)

    def take(self) -> Taken | None:
        """Take one waiting episode in; None when none waits, or it is damaged.

        Raises DataError or OSError when the disk refuses; the episode waits then.
        """
        if not self._waiting:
            return None
        first = self._waiting[0]
        try:
            store: Store | None = "offline" if first.offline else None
            segments = segments_of(
                first.part.to_episode(first.place),
                first.episode,
                store=store,
                has_final=bool(first.part.has_final[first.place]),
            )
        except (ValueguideError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            self._skip(first, error)
            return None
        held_out = not first.offline and (self.ledger.recorded_episodes + 1) % self.hold_out == 0
        try:
            self._store(segments, held_out)
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise
            self._skip(first, error)
            return None
        steps = sum(segment.steps for segment in segments)
        entry = Taken(first.episode, first.source, steps, len(segments), first.offline, held_out)
        self.ledger.note(entry)
        self._partly.difference_update({(segment.episode, segment.first_step) for segment in segments})
        self._waiting.popleft()
        return entry

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _line_up(self, part: EpisodeDataset, dataset: GrowingDataset, offline: bool) -> None:
        for place in range(part.episodes):
            episode = f"{dataset.root.name}:{part.episode_index[place]}:{episode_digest(part, place)}"
            if episode not in self.ledger.taken:
                self._waiting.append(_Waiting(part, place, episode, str(dataset.root), offline))

    def _store(self, segments: list[Segment], held_out: bool) -> None:
        for segment in segments:
            key = (segment.episode, segment.first_step)
            if key not in self._partly:
                self._writers[held_out].append(segment)
                self._partly.add(key)

    def _skip(self, waiting: _Waiting, error: Exception) -> None:
        self._waiting.popleft()
        line = " ".join(str(error).split())
        self._failed[waiting.episode] = f"{waiting.source}: episode {waiting.episode} skipped: {line}"
        log.warning("%s", self._failed[waiting.episode])

    def _left_out(self, dataset: GrowingDataset) -> bool:
        """Whether some of it could not be taken in: it is then tried again at the next start."""
        skipped = any(line.startswith(f"{dataset.root}: ") for line in self._failed.values())
        return skipped or bool(dataset.damaged)

    def _stored_in_part(self, root: Path) -> set[tuple[str, int]]:
        """(episode, first step) of stored segments whose episode has no line in the ledger."""
        found = set()
        for name in (REPLAY, HELD_OUT):
            reader = ReplayReader(root / name, verify=False)
            reader.refresh()
            found |= {
                (segment.episode, segment.first_step)
                for segment in reader.segments.values()
                if segment.episode not in self.ledger.taken
            }
        return found


def episode_digest(part: EpisodeDataset, place: int) -> str:
    """12 hex digits of what was done and what came of it, pictures aside."""
    rows = slice(int(part.episode_start[place]), int(part.episode_end[place]))
    facts = [part.instructions[part.instruction[rows.start]], part.metadata[place]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for values in (part.state, part.action, part.reward, part.terminated, part.success, part.source,
                   part.environment_state):  # fmt: skip
        if values is not None:
            digest.update(np.ascontiguousarray(values[rows]).tobytes())
    digest.update(np.ascontiguousarray(part.final_state[place]).tobytes())
    return digest.hexdigest()[:12]
