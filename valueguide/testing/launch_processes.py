"""Processes of a launch: started together, their output kept, reported when they die, all stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from valueguide.errors import EnvironmentSetupError

_POLL_S = 0.02


@dataclass(frozen=True)
class Command:
    """name: unique in the launch, "policy-2". line: the program and its arguments."""

    name: str
    line: list[str]


class Processes:
    """Runs commands side by side; each one's stdout and stderr go to `folder`/name.log, and to `echo`.

    `process` maps a command's name to its Popen. Each leads a process group of its own, so that what it
    started is stopped with it. Raises EnvironmentSetupError when one cannot be started.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        environment: Mapping[str, str],
        folder: Path,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self.process: dict[str, subprocess.Popen[str]] = {}
        self._folder, self._echo = folder, echo
        self._readers: list[threading.Thread] = []
        self._reported: set[str] = set()
        try:
            for command in commands:
                self._start(command, {**environment, "PYTHONUNBUFFERED": "1"})
        except OSError as error:
            self.stop(0.0)
            raise EnvironmentSetupError(f"launch: {error.filename}: {error.strerror}") from error

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def named(self, node: str) -> subprocess.Popen[str]:
        """The process of a node by the name in the launch file, without its number."""
        return next(p for name, p in self.process.items() if name.rsplit("-", 1)[0] == node)

    def died(self) -> list[str]:
        """One line for every process that has ended since the last call: its name and exit status."""
        ended = [
            name for name, p in self.process.items() if name not in self._reported and p.poll() is not None
        ]
        self._reported.update(ended)
        return [f"{name}: process has died, exit status {self.process[name].returncode}" for name in ended]

    def wait(self) -> None:
        """Until all have ended; says through `echo` who ended."""
        while True:
            for line in self.died():
                if self._echo is not None:
                    self._echo(line)
            if len(self._reported) == len(self.process):
                return
            time.sleep(_POLL_S)

    def stop(self, grace_s: float = 10.0) -> dict[str, int]:
        """SIGINT to all, then SIGKILL to what is left after the grace. Returns exit statuses by name."""
        for process in self.process.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        limit = time.monotonic() + grace_s
        while any(p.poll() is None for p in self.process.values()) and time.monotonic() < limit:
            time.sleep(_POLL_S)
        for process in self.process.values():
            # The group, for a node that has ended may have left children behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)
        self._reported.update(self.process)
        return {name: process.returncode for name, process in self.process.items()}

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        path = self._folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _start(self, command: Command, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            command.line,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.process[command.name] = process
        reader = threading.Thread(target=self._read, args=(command.name, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self._folder / f"{name}.log").open("w") as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if self._echo is not None:
                    self._echo(f"[{name}] {line.rstrip()}")
