"""What crash-safe writing stands on: flushing a path to the disk, and swapping two names at once."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power failure. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange_names(first: Path, second: Path) -> bool:
    """Swap two existing names in one step (Linux's renameat2); False where that is not supported."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0
