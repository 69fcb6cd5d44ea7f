"""`Terminal`: the program `keyboard` on a pseudo-terminal, for tests that type and read."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import termios
import time
from pathlib import Path
from typing import Any


class Terminal:
    """The keyboard program on a pseudo-terminal."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [str(program)], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        self.screen = ""

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self) -> None:
        while select.select([self._master], [], [], 0.02)[0]:
            self.screen += os.read(self._master, 65536).decode(errors="replace")

    def until(self, pattern: str, timeout: float = 15.0, typing: str = "") -> None:
        """Wait for new output that matches, typing a key again and again as a held key does."""
        seen, limit = len(self.screen), time.monotonic() + timeout
        while not re.search(pattern, self.screen[seen:]):
            assert time.monotonic() < limit, f"no {pattern!r} in {self.screen[-2000:]!r}"
            assert self.process.poll() is None, self.screen
            if typing:
                self.type(typing)
            self.read()
            time.sleep(0.03)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)
