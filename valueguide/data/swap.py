"""Exchanging two folders in one step, and undoing an exchange that a crash interrupted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from valueguide.disk import exchange_names, flush


def aside(root: Path) -> Path:
    """Where the old folder waits while `exchange` has to use two renames."""
    return root.with_name(f".{root.name}.before")


def restore_interrupted(root: Path) -> None:
    """Put the old folder back if a crash fell between the two renames of `exchange`."""
    if not root.exists() and aside(root).exists():
        os.rename(aside(root), root)
        flush(root.parent)


def exchange(root: Path, replacement: Path) -> None:
    """Put `replacement` (a sibling) at `root` and delete what was there.

    Linux swaps the two names atomically. File systems that cannot do so get two renames; a crash
    between them is undone by `restore_interrupted`. Raises OSError.
    """
    if exchange_names(root, replacement):
        old = replacement
    else:
        old = aside(root)
        os.rename(root, old)
        try:
            os.rename(replacement, root)
        except OSError:
            os.rename(old, root)
            raise
    flush(root.parent)
    shutil.rmtree(old)
