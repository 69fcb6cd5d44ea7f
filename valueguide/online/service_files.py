"""Small files of a learner's folder: its status, its name, and the lock that keeps a second one out."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from pathlib import Path
from typing import Any

from valueguide.data.layout import read_json, write_json
from valueguide.errors import ConfigError, DataError

STATUS, LOCK = "status.json", "learner.lock"
_TRIES, _BETWEEN_S = 5, 0.1


def read_status(out: str | Path) -> dict[str, Any]:
    """What the learner in `out` last wrote, and `running`, whether one works there now.

    Raises DataError when no learner ever did.
    """
    root = Path(out)
    status: dict[str, Any] = read_json(root / STATUS)
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY)
    except OSError:
        return {**status, "running": False}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return {**status, "running": False}
    except BlockingIOError:
        return {**status, "running": True}
    finally:
        os.close(descriptor)


def lock_folder(root: Path) -> int:
    """A descriptor that holds the folder until it is closed, or its process dies. Raises ConfigError."""
    path = root / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(_TRIES):  # whoever reads the status holds it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(_BETWEEN_S)
    os.close(descriptor)
    raise ConfigError(f"{root}: another learner works here. Stop it, or use another --out")


def learner_name(path: Path) -> str:
    """Of the learner whose file this is, made at its first start. Raises DataError."""
    if not path.exists():
        write_json(path, {"name": uuid.uuid4().hex[:12]})
    name = read_json(path).get("name")
    if not name:
        raise DataError(f"{path}: field 'name' is missing")
    return str(name)
