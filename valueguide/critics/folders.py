"""Writes a folder as a whole: a draft beside it, flushed to the disk, then swapped in.

A process that dies at any moment leaves the old folder or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from valueguide.disk import exchange_names, flush


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty draft folder that takes the place of `folder` if the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore_interrupted(folder)
    _remove_abandoned(folder)
    draft = folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in (*draft.iterdir(), draft):
            flush(path)
        _swap_in(draft, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def restore_interrupted(folder: Path) -> None:
    """Put the old folder back if a process died between the two renames of `_swap_in`."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
            flush(folder.parent)


def _swap_in(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
    elif not exchange_names(draft, folder):
        # File systems that cannot exchange two names: for an instant there is no folder of this name.
        old = draft.with_suffix(".old")
        folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


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
