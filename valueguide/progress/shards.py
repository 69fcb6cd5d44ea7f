"""One job shared out among processes that only share a folder: who does what, and locks that die with them.

`torchrun` (or anything else that sets RANK and WORLD_SIZE) starts the same command several times. No process
waits for another or talks to it: each takes its share and writes its own file, and whoever ends last sees
that everything is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from valueguide.errors import ConfigError, DataError, mismatch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """This process among `count`: rank 0 … count - 1; local_rank is the same on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.count and self.local_rank >= 0):
            raise ConfigError(mismatch("RANK, WORLD_SIZE", "values", "0 <= RANK < WORLD_SIZE", self))

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every count-th item. The shares of all places hold each item once."""
        return list(items[self.rank :: self.count])

    def device(self, name: str) -> str:
        """ "cuda" is one GPU for each process of a machine; other names stay."""
        return f"cuda:{self.local_rank}" if self.count > 1 and name == "cuda" else name


ALONE = Place()


def launched(environment: Mapping[str, str]) -> Place:
    """The place that torchrun states in RANK, WORLD_SIZE and LOCAL_RANK; ALONE without them.

    Raises ConfigError when they are no numbers or do not fit together.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [environment.get(name, "0") for name in names]
    if not all(value.isdecimal() for value in values):
        raise ConfigError(mismatch("environment", ", ".join(names), "whole numbers", ", ".join(values)))
    return Place(*(int(value) for value in values))


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Alone among the processes that hold `path`, which need not exist; waits until it is free.

    The lock is the file .<name>.lock beside it, which stays: removing it would let two hold it at once. A
    process that is killed lets go. Raises DataError when nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "ab")  # noqa: SIM115  closed below
    except OSError as error:
        raise DataError(f"{path}: cannot be written here: {error}. Choose another place") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_use(path: Path) -> bool:
    """Whether a process holds the lock of the file (see `try_lock`)."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
