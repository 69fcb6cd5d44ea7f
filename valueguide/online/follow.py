"""Follows a folder of critic versions: which one is to serve and which one is in shadow, loaded and checked.

For a robot that runs while a learner publishes and people promote and roll back. Needs no torch itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from valueguide.critics.manifest import CONFIG, MANIFEST, WEIGHTS, read_json
from valueguide.errors import CheckpointError
from valueguide.online.version_state import VersionState
from valueguide.online.versions import STATE, CriticVersions, Role

ROLES: tuple[Role, ...] = ("serving", "shadow")
#: Inode, time of change in ns and size of each file, None where it cannot be seen.
Mark = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Held[Loaded]:
    """number: of the version. content: what `load` made of its folder. mark: of its files before that."""

    number: int
    content: Loaded
    mark: Mark


class VersionFollower[Loaded]:
    """What of the folder `root` is loaded. One thread may call it; others may read the attributes.

    load: makes something of a version's folder, and raises when it cannot be used here, whatever the error.
    serving, shadow: what is held, if anything. A version that cannot be loaded, or that was refused, leaves
        `serving` as it was and `shadow` empty. It is tried again only when it is put into its role anew or
        its files change.
    before: what `serving` was before. previous: content hash of what a rollback leads to, or "".
    troubles: where -> why, as long as it holds.
    """

    def __init__(self, root: str | Path, load: Callable[[Path], Loaded]) -> None:
        self.versions = CriticVersions(root)
        self.serving: Held[Loaded] | None = None
        self.shadow: Held[Loaded] | None = None
        self.before: Held[Loaded] | None = None
        self.previous = ""
        self.troubles: dict[str, str] = {}
        self._load = load
        self._state = VersionState()
        self._state_mark: Mark = ()
        self._refused: dict[Role, tuple[int, Mark]] = {}

    def poll(self) -> bool:
        """Look once; True when `serving`, `shadow` or `previous` changed: then look again, there may be more.

        Reads nothing but the ages of a few files when nothing changed.
        """
        try:
            changed = self._read_state()
        except (CheckpointError, OSError) as error:
            self.troubles["folder"] = str(error)
            return False
        self.troubles.pop("folder", None)
        # One at a time, so that what is to serve need not wait for what is only to be scored beside it.
        return any(self._follow(role) for role in ROLES) or changed

    def refuse(self, role: Role, held: Held[Loaded], instead: Held[Loaded] | None, reason: str) -> None:
        """What was loaded turned out useless: `instead` is held. Nothing if it has left the role."""
        if self.before is held:
            self.before = None
        if getattr(self, role) is held:
            setattr(self, role, instead)
            self._refused[role] = (held.number, held.mark)
            self.troubles[role] = f"version {held.number} is not used: {reason}"

    def _read_state(self) -> bool:
        """Whether `previous` changed. Raises CheckpointError or OSError."""
        mark = _mark(self.versions.root, (STATE,))
        if mark == self._state_mark and "folder" not in self.troubles:
            return False
        state = self.versions.state()
        before, self.previous = self.previous, self._version(state.previous)
        self._state, self._state_mark = state, mark
        return before != self.previous

    def _version(self, number: int | None) -> str:
        if number is None:
            return ""
        try:
            return str(read_json(self.versions.folder(number) / MANIFEST)["version"])
        except (CheckpointError, KeyError):
            return ""

    def _follow(self, role: Role) -> bool:
        """Whether another is held in this role now."""
        wanted: int | None = getattr(self._state, role)
        held: Held[Loaded] | None = getattr(self, role)
        if wanted is None:
            return self._let_go(role, held)
        mark = _mark(self.versions.folder(wanted), (MANIFEST, CONFIG, WEIGHTS))
        if held is not None and (held.number, held.mark) == (wanted, mark):
            self._settled(role)
            return False
        if self._refused.get(role) == (wanted, mark):
            return False
        try:
            found = self._known(wanted, mark) or Held(wanted, self._load(self.versions.folder(wanted)), mark)
        except Exception as error:  # whatever is wrong with a version, the robot goes on with the present one
            return self._failed(role, held, wanted, mark, error)
        if role == "serving":
            self.before = held
        setattr(self, role, found)
        self._settled(role)
        return True

    def _known(self, number: int, mark: Mark) -> Held[Loaded] | None:
        """From another role: a promotion from the shadow and a rollback then take no time."""
        for held in (self.serving, self.shadow, self.before):
            if held is not None and (held.number, held.mark) == (number, mark):
                return held
        return None

    def _let_go(self, role: Role, held: Held[Loaded] | None) -> bool:
        self._settled(role)
        if role == "serving":
            if held is not None:
                self.troubles[role] = f"{self.versions.root}: no version serves any more"
            return False
        self.shadow = None
        return held is not None

    def _failed(
        self, role: Role, held: Held[Loaded] | None, wanted: int, mark: Mark, error: Exception
    ) -> bool:
        if _mark(self.versions.root, (STATE,)) != self._state_mark:
            # Replaced, and perhaps removed, while it was read: the next look sees what is wanted now.
            return False
        self._refused[role] = (wanted, mark)
        why = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        same = held is not None and held.number == wanted
        verdict = "goes on as it was loaded" if same else "is not used"
        self.troubles[role] = f"version {wanted} {verdict}: {why}"
        if role == "shadow" and not same:
            self.shadow = None
            return held is not None
        return False

    def _settled(self, role: Role) -> None:
        self.troubles.pop(role, None)
        self._refused.pop(role, None)


def _mark(folder: Path, names: tuple[str, ...]) -> Mark:
    """Of these files; changes when one is replaced, changed or gone."""
    found: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            stat = os.stat(folder / name)
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)
