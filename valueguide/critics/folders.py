"""Writes a folder as a whole: a draft beside it, flushed to the disk, then swapped in.

A process that dies at any moment leaves the old folder or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty draft folder that takes the place of `folder` if the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    draft = folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in (*draft.iterdir(), draft):
            _flush(path)
        _swap_in(draft, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap_in(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
    elif not _exchange(draft, folder):
        # File systems that cannot exchange two names: for an instant there is no folder of this name.
        old = draft.with_suffix(".old")
        folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (Linux's renameat2); False where that is not supported."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _remove_abandoned(folder: Path) -> None:
    """Drafts of processes that died while writing."""
    for draft in folder.parent.glob(f".{glob.escape(folder.name)}.*.new"):
        process = draft.suffixes[-2].removeprefix(".")
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(draft, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
