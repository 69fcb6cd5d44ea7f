"""Numbered versions of a critic: published whole, promoted, run in shadow, rolled back, never seen half.

`critics/000001/` and so on, one complete critic folder each, and `versions.json`, which says who serves.
Folders appear by a rename and never change; the file is replaced by a rename. Any number of processes
may read without a lock; writers take turns by one. Needs no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from valueguide.critics.manifest import CONFIG, MANIFEST, WEIGHTS, read_json, read_manifest
from valueguide.data.layout import make_folder, write_json
from valueguide.disk import flush
from valueguide.errors import CheckpointError, ConfigError, mismatch
from valueguide.online.version_state import Change, VersionState

log = logging.getLogger("valueguide.online")
CRITICS, DRAFTS, CHECKS, STATE, LOCK = "critics", "drafts", "checks", "versions.json", "lock"
_NAME = re.compile(r"\d{6,}")
_DRAFT = "critic"
Role = Literal["serving", "shadow"]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Version:
    """One published critic, as its manifest says.

    number: its place, from 1. version: content hash. step: of its training, None where not recorded.
    published: UTC, ISO 8601. role: "serving", "shadow", "previous", "withdrawn" (rolled back) or "".
    problem: why its manifest cannot be read, or "". The weights' hash is compared by `verify`, not here.
    """

    number: int
    folder: Path
    version: str
    step: int | None
    published: str
    role: str
    problem: str = ""


class CriticVersions:
    """The versions in the folder `root`, which the first publication makes.

    keep: so many of the newest stay when a version is published. Whatever serves, runs in shadow, or would
        be rolled back to stays too, so a robot never loses what it runs.
    clock: seconds since 1970, for the history.
    """

    def __init__(self, root: str | Path, keep: int = 10, clock: Callable[[], float] = time.time) -> None:
        if keep < 1:
            raise ConfigError(mismatch("critic versions", "keep", "1 or more", keep))
        self.root, self.keep = Path(root).resolve(), keep
        self._clock = clock

    # Reading: no lock, nothing is written.

    def state(self) -> VersionState:
        """Who serves and how that came to be. Raises CheckpointError when `versions.json` is damaged."""
        path = self.root / STATE
        return VersionState.from_json(read_json(path), str(path)) if path.exists() else VersionState()

    def numbers(self) -> list[int]:
        """What is published, ascending; none without a folder."""
        try:
            names = os.listdir(self.root / CRITICS)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _NAME.fullmatch(name))

    def folder(self, number: int) -> Path:
        return self.root / CRITICS / f"{number:06d}"

    def verify(self, number: int) -> dict[str, Any]:
        """The manifest of a version whose files match their hashes. Raises CheckpointError naming what is
        missing or changed."""
        if number not in self.numbers():
            found = ", ".join(map(str, self.numbers())) or "none"
            raise CheckpointError(mismatch(str(self.root), f"version {number}", "a published one", found))
        return read_manifest(self.folder(number))

    def list(self) -> list[Version]:
        """All versions, ascending. Cheap: reads manifests, not weights."""
        state = self.state()
        found = (self._describe(number, state) for number in self.numbers())
        return [version for version in found if version is not None]

    def load(self, read: Callable[[Path], Loaded], which: Role = "serving") -> tuple[int, Loaded] | None:
        """(number, `read` of its folder), or None when there is no such version.

        read: such as `LearnedCritic.load`. A version that is replaced and removed while it is read is not
        an error: the new one is read. Otherwise raises what `read` raises.
        """
        while True:
            number = self._in_role(which)
            if number is None:
                return None
            try:
                return number, read(self.folder(number))
            except CheckpointError:
                if self._in_role(which) == number:
                    raise

    def report(self, number: int) -> dict[str, Any] | None:
        """What `save_report` kept, or None. Raises CheckpointError when it is damaged."""
        path = self._report_path(number)
        return read_json(path) if path.exists() else None

    # Writing: each call waits for its turn.

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A path of this folder's file system for a new critic, to be filled and given to `publish`.

        What is there at the end of the block, or when the process dies, is removed.
        """
        with self._refusing("no draft can be written here"):
            make_folder(self.root / DRAFTS)
            with self._turn():
                _remove_abandoned(self.root / DRAFTS)
                holder = Path(tempfile.mkdtemp(dir=self.root / DRAFTS))
                hold = os.open(holder, os.O_RDONLY)
                fcntl.flock(hold, fcntl.LOCK_EX)
        try:
            yield holder / _DRAFT
        finally:
            shutil.rmtree(holder, ignore_errors=True)
            os.close(hold)

    def publish(self, folder: str | Path) -> int:
        """Add a critic folder, or a draft, which is moved; returns its number. It does not serve yet.

        When this returns, the version survives a power failure; until then no reader sees any of it.
        Removes what is beyond `keep`. Raises CheckpointError when the folder is no complete critic, or the
        disk refuses; nothing is published then.
        """
        source = Path(folder).resolve()
        if source.is_relative_to(self.root / DRAFTS):
            return self._publish_draft(source)
        read_manifest(source)
        with self.draft() as draft:
            with self._refusing("not published"):
                draft.mkdir()
                for name in (WEIGHTS, CONFIG, MANIFEST):
                    shutil.copyfile(source / name, draft / name)
            return self._publish_draft(draft)

    def promote(
        self,
        number: int,
        reason: str = "",
        *,
        over: int | None | Literal["any"] = "any",
        force: bool = False,
    ) -> VersionState:
        """Let a version serve. One that serves already goes on, and nothing is noted.

        over: the version, or None, that must be serving now; for a caller that compared the two. force: also
        a version that was rolled back, with a reason. Raises ConfigError when these do not hold, and
        CheckpointError when the version is not complete.
        """
        with self._changing() as (state, write):
            self.verify(number)
            if over != "any" and over != state.serving:
                hint = "Another version was promoted meanwhile: check against that one"
                raise ConfigError(mismatch(f"version {number}", "serving version", over, state.serving, hint))
            if force and not reason:
                raise ConfigError(
                    mismatch(f"version {number}", "reason", "one for a forced promotion", "none")
                )
            if number in state.withdrawn and not force:
                raise ConfigError(
                    f"version {number}: it was rolled back: {state.why(number)}. Force it to try again"
                )
            if number == state.serving:
                return state
            return write(state.promoted(number, self._change("promote", number, state, reason, force)))

    def set_shadow(self, number: int | None) -> VersionState:
        """Let a version be scored beside the serving one without acting; None for no version.

        Raises ConfigError for the serving version, CheckpointError for an incomplete one.
        """
        with self._changing() as (state, write):
            if number is not None:
                self.verify(number)
            if number is not None and number == state.serving:
                raise ConfigError(mismatch("shadow", "version", "another than the serving one", number))
            return write(replace(state, shadow=number))

    def rollback(self, reason: str = "") -> VersionState:
        """Let the version serve that served before; the current one is withdrawn.

        Again: the one before that, at least three times if so many served. A damaged one is passed
        over. Raises CheckpointError when none is left; the serving version stays then.
        """
        with self._changing() as (state, write):
            for number in reversed(state.earlier):
                try:
                    self.verify(number)
                except CheckpointError as error:
                    log.warning("passed over in the rollback: %s", error)
                    continue
                return write(state.rolled_back(number, self._change("rollback", number, state, reason)))
            raise CheckpointError(f"{self.root}: no earlier version to roll back to from {state.serving}")

    def save_report(self, number: int, report: dict[str, Any]) -> None:
        """Keep the JSON-ready result of a check with its version. Raises CheckpointError."""
        with self._changing():
            self.verify(number)
            write_json(self._report_path(number), report)

    def _publish_draft(self, draft: Path) -> int:
        read_manifest(draft)
        with self._refusing("not published"):
            for path in (*draft.rglob("*"), draft):
                flush(path)
            make_folder(self.root / CRITICS)
            with self._turn():
                # A pruned number is not given again: the newest is never pruned, and history remembers.
                number = max([*self.numbers(), self.state().highest]) + 1
                draft.rename(self.folder(number))
                flush(self.root / CRITICS)
                try:
                    self._prune()
                except OSError as error:
                    log.warning("%s: old versions stay: %s", self.root, error)
        return number

    def _prune(self) -> None:
        """Moved away before it is deleted, so that no reader sees a version half gone."""
        old = set(self.numbers()[: -self.keep]) - self.state().in_use
        if not old:
            return
        trash = Path(tempfile.mkdtemp(dir=self.root / DRAFTS))
        for number in old:
            self.folder(number).rename(trash / f"{number}")
            self._report_path(number).unlink(missing_ok=True)
        shutil.rmtree(trash, ignore_errors=True)

    def _describe(self, number: int, state: VersionState) -> Version | None:
        folder = self.folder(number)
        try:
            published = _iso(folder.stat().st_mtime)
        except OSError:
            return None  # Pruned a moment ago.
        manifest, problem = {}, ""
        try:
            manifest = read_json(folder / MANIFEST)
        except CheckpointError as error:
            if not folder.exists():
                return None
            problem = str(error)
        version, step = str(manifest.get("version", "")), manifest.get("step")
        return Version(number, folder, version, step, published, state.role(number), problem)

    def _in_role(self, which: Role) -> int | None:
        state = self.state()
        return state.serving if which == "serving" else state.shadow

    def _change(
        self,
        action: Literal["promote", "rollback"],
        number: int,
        state: VersionState,
        reason: str,
        forced: bool = False,
    ) -> Change:
        return Change(action, number, state.serving, reason, _iso(self._clock()), forced)

    def _report_path(self, number: int) -> Path:
        return self.root / CHECKS / f"{number:06d}.json"

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[VersionState, Callable[[VersionState], VersionState]]]:
        """The state, which no one else changes meanwhile, and how to write the next."""

        def write(state: VersionState) -> VersionState:
            write_json(self.root / STATE, state.to_json())
            return state

        if not self.root.is_dir():
            raise CheckpointError(mismatch(str(self.root), "folder", "critic versions", "none"))
        with self._refusing("nothing was changed"), self._turn():
            yield self.state(), write

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other writer is at work. A killed writer's lock ends with it."""
        lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.root}: {what}: {error}") from error


def _remove_abandoned(drafts: Path) -> None:
    """Drafts that no living process holds, and what a killed one was deleting. Only with the lock."""
    for holder in drafts.iterdir():
        try:
            hold = os.open(holder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Its owner has just removed it.
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(holder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(hold)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
