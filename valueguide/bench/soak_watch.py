"""What a process holds at a moment: memory, open files, threads. From Linux's /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from valueguide.errors import ConfigError, mismatch

_PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """private, pss, rss: MB. private is what this process wrote, in memory or swapped out, and what a leak
    adds to; pages of files do not count, which are shared or not by who else runs. Of what is shared, such
    as the code of libraries, pss has this process's part and rss all of it. files: open ones, sockets and
    pipes too."""

    private: float
    pss: float
    rss: float
    files: int
    threads: int


def usage(pid: int) -> Usage:
    """Of a process that this user may look into. Raises ConfigError when it is gone, or there is no /proc."""
    folder = _PROC / str(pid)
    try:
        sizes = _kilobytes((folder / "smaps_rollup").read_text())
        return Usage(
            private=(sizes["Private_Dirty"] + sizes.get("Swap", 0)) / 1024,
            pss=sizes["Pss"] / 1024,
            rss=sizes["Rss"] / 1024,
            files=len(os.listdir(folder / "fd")),
            threads=len(os.listdir(folder / "task")),
        )
    except (OSError, KeyError) as error:
        wanted = f"one with {folder}/smaps_rollup"
        raise ConfigError(mismatch("soak", f"process {pid}", wanted, error)) from None


def _kilobytes(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
