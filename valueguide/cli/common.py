"""What every command shares: progress that suits a terminal or a log, and where shipped models are."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

CHECKPOINTS = Path(__file__).resolve().parents[2] / "sim" / "assets" / "checkpoints"
_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Counts finished work; `note` adds a short word about its state."""

    def update(self, count: int) -> None: ...

    def note(self, text: str) -> None: ...


class _Bar:
    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def update(self, count: int) -> None:
        self._bar.update(count)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text)


class _Lines:
    """Plain lines for logs, at most one every ten seconds."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done, self._text = total, unit, 0, ""
        self._last = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._last = now
            print(
                f"{self._done}/{self._total} {self._unit} {self._text}".rstrip(), file=sys.stderr, flush=True
            )

    def note(self, text: str) -> None:
        self._text = text


@contextlib.contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Progress]:
    """A bar on a terminal, occasional lines otherwise; both on stderr."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(total, unit)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the program as Ctrl-C does, so that the processes that it started end with it.

    Of no effect outside the main thread, which alone may say what a signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def shipped(suite: str, kind: str) -> str:
    """Path of a shipped checkpoint. suite: "wxai" or "wxai-state"; kind: "policy", "critic" or, of "wxai"
    only, "progress"."""
    return str(CHECKPOINTS / suite / kind)
