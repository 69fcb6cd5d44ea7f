"""`Supervised`: a child process of low priority that is started again when it dies, and ended in order.

For work beside a running graph that must not disturb it: what the child does, and how it ends, costs its
parent a look now and then. No ROS.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from valueguide.errors import EnvironmentSetupError

_LINES = 20
#: A child that lived for so long is started again at once when it dies.
_LONG_S = 60.0


def spawn(line: Sequence[str], nice: int) -> subprocess.Popen[str]:
    """A child with stdout and stderr in one pipe, which hears no signal of a terminal. nice: added to ours.

    Raises EnvironmentSetupError.
    """
    try:
        process = subprocess.Popen(
            list(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # Ctrl-C in a terminal goes to its parent alone, which ends it in order
        )
    except OSError as error:
        raise EnvironmentSetupError(f"{line[0]}: not started: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # it may have ended; and who may not change priorities goes on as is
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    return process


class Supervised:
    """line: the program and its arguments. say: gets each line that it prints, in a thread of its own.

    retry_s: seconds until it is started again; twice as many after each death, at most `most_s`.
    One thread calls `start`, `poll` and `stop`; the attributes may be read from any.
    """

    def __init__(
        self,
        line: Sequence[str],
        say: Callable[[str], None],
        nice: int = 10,
        retry_s: float = 1.0,
        most_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line, self._say, self._nice, self._clock = list(line), say, nice, clock
        self._retry_s, self._most_s = retry_s, most_s
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=_LINES)
        self._reader: threading.Thread | None = None
        self._wait_s, self._started, self._again = retry_s, 0.0, 0.0
        self._told = False
        #: Whether it should run; how often it died; and how it died last, "" while it is well.
        self.wanted, self.deaths, self.problem = False, 0, ""

    @property
    def pid(self) -> int | None:
        """Of the running child."""
        return self._process.pid if self._process is not None else None

    @property
    def ending(self) -> bool:
        """It was told to stop and has not ended yet."""
        return self._process is not None and not self.wanted

    def start(self) -> None:
        """Let it run from now on. A child that is still ending is waited for by `poll`."""
        if not self.wanted:
            self.wanted, self._again, self._wait_s = True, self._clock(), self._retry_s
            self.problem = ""
        self.poll()

    def poll(self) -> None:
        """Look once: whether it died, and whether it is time to start it again. Never waits, never raises."""
        now = self._clock()
        if self._process is not None and self._process.poll() is not None:
            self._ended(self._process.returncode, now)
        if self._process is not None and self.problem and now - self._started > _LONG_S:
            self.problem = ""
        if self._process is None and self.wanted and now >= self._again:
            self._spawn(now)

    def stop(self) -> None:
        """Tell it to end (SIGTERM); `poll` sees when it has."""
        if self._process is not None and not self._told:
            self._told = True
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        self.wanted = False
        self.poll()

    def close(self, grace_s: float) -> bool:
        """Stop and wait; False when it had to be killed after `grace_s`."""
        self.stop()
        if self._process is None:
            return True
        in_time = True
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            in_time = False
            self._process.kill()
            self._process.wait()
        self.poll()
        return in_time

    def _spawn(self, now: float) -> None:
        self._said.clear()
        try:
            self._process = spawn(self._line, self._nice)
        except EnvironmentSetupError as error:
            self._failed(str(error), now)
            return
        self._started = now
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for text in process.stdout:
                if text := text.rstrip():
                    self._said.append(text)
                    self._say(text)

    def _ended(self, status: int, now: float) -> None:
        if self._reader is not None:
            self._reader.join(timeout=1.0)  # its last words
        self._process = None
        if self._told:
            self._told, self._again = False, now
            return
        if now - self._started > _LONG_S:
            self._wait_s = self._retry_s
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        last = f": {self._said[-1]}" if self._said and status > 0 else ""
        self.deaths += 1
        self._failed(f"died, {how}{last}", now)

    def _failed(self, why: str, now: float) -> None:
        self.problem = why
        self._again = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._most_s)
