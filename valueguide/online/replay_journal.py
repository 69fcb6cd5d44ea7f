"""Which segments a learner could see at which training step, so that a resumed one sees the same."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valueguide.disk import flush
from valueguide.errors import DataError, mismatch


@dataclass(frozen=True)
class Entry:
    """From `step` on: `added` are visible, `removed` no longer, `instructions` were first seen in `added`."""

    step: int
    added: list[int]
    removed: list[int]
    instructions: list[str]


class Journal:
    """Entries in ascending order of their steps, kept in `path` as JSON lines when that is given.

    checked: the last step at which somebody looked, whether or not anything had changed; -1 before.
    Raises DataError when the file is not a journal.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.entries: list[Entry] = []
        self.checked = -1
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def note(self, entry: Entry) -> None:
        """Add what was found at `entry.step`; durable when this returns. Raises OSError."""
        if self.path is not None:
            self._append(self.path, [entry])
        self._take(entry)

    def visible_at(self, step: int) -> list[int]:
        """Ascending sequence numbers."""
        visible: set[int] = set()
        for entry in self.entries:
            if entry.step > step:
                break
            visible.update(entry.added)
            visible.difference_update(entry.removed)
        return sorted(visible)

    def position(self, step: int) -> int:
        """How many entries hold at `step`: equal positions see the same."""
        return sum(entry.step <= step for entry in self.entries)

    def state(self) -> dict[str, Any]:
        """JSON-ready, for `restore`."""
        return {"checked": self.checked, "entries": [asdict(entry) for entry in self.entries]}

    def restore(self, state: dict[str, Any]) -> None:
        """Begin with what `state` holds; a file that knows more than it, of later steps, stays in force.

        Raises DataError when the two contradict each other, OSError when the file cannot be written.
        """
        entries = [Entry(**entry) for entry in state["entries"]]
        common = min(len(entries), len(self.entries))
        missing, later = entries[common:], self.entries[common:]
        contradicted = any(e.step <= self.checked for e in missing) or any(
            e.step <= state["checked"] for e in later
        )
        if entries[:common] != self.entries[:common] or contradicted:
            where = str(self.path) if self.path else "replay journal"
            raise DataError(f"{where}: it belongs to another run than the saved state")
        if self.path is not None:
            looked = [Entry(state["checked"], [], [], [])] if state["checked"] > self.checked else []
            self._append(self.path, [*missing, *looked])
        for entry in missing:
            self._take(entry)
        self.checked = max(self.checked, state["checked"])

    def _take(self, entry: Entry) -> None:
        if entry.added or entry.removed:
            self.entries.append(entry)
        self.checked = max(self.checked, entry.step)

    def _append(self, path: Path, entries: list[Entry]) -> None:
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.writelines(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush(path.parent)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # A kill cut the last line off; what it announced was never drawn from.
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a replay journal: {error}") from error
            if entry.step < self.checked:
                raise DataError(
                    mismatch(f"{path}, line {number}", "step", f"{self.checked} or more", entry.step)
                )
            self._take(entry)
