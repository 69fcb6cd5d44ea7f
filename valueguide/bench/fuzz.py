"""Fuzzing of what comes over a network, guided by the lines that are reached: crashes, hangs, memory.

Each target runs in a process of its own with a limit on its memory, so that a crash in C code, a loop without
end or an allocation without bound is seen and counted instead of ending the run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from valueguide.bench.fuzz_targets import TARGETS, Sample, Target
from valueguide.errors import ConfigError, DataError, mismatch

#: Share of the messages that each target gets; our own format has the most to go wrong.
SHARES = {"wire": 0.6, "openpi": 0.2, "groot": 0.2}
_HANG_S, _BEAT_S = 20.0, 0.5
_MEMORY_LIMIT, _KEPT_CRASHES, _LARGEST_CORPUS = 1 << 30, 10, 1000
_TRACED_EVERY = 500
_TOOL = 4


@dataclass
class Outcome:
    """Of one target. crashes: what was raised besides DataError, with the message as hex.

    slowest_ms: processor time of one message. peak_allocated: largest number of bytes that Python and numpy
    held for one message, of every 500th, and per_byte that divided by the message's length (at least 1 kB).
    rss_mb: resident memory after a tenth of the messages and at the end. lines: reached, of all.
    """

    messages: int = 0
    accepted: int = 0
    refused: int = 0
    crashes: list[dict[str, str]] = field(default_factory=list)
    crash_count: int = 0
    hangs: int = 0
    slowest_ms: float = 0.0
    peak_allocated: int = 0
    per_byte: float = 0.0
    rss_mb: list[float] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    corpus: int = 0
    seconds: float = 0.0


class LineCoverage:
    """Which lines of some modules have run, by sys.monitoring: a line costs something the first time only."""

    def __init__(self, modules: tuple[ModuleType, ...]) -> None:
        self._codes = [code for module in modules for code in _codes(module)]
        self.total = sum(len({line for _, _, line in code.co_lines() if line}) for code in self._codes)
        self._seen: set[tuple[CodeType, int]] = set()

    def __enter__(self) -> LineCoverage:
        monitoring = sys.monitoring
        monitoring.use_tool_id(_TOOL, "valueguide fuzz")
        monitoring.register_callback(_TOOL, monitoring.events.LINE, self._saw)
        for code in self._codes:
            monitoring.set_local_events(_TOOL, code, monitoring.events.LINE)
        return self

    def __exit__(self, *_: object) -> None:
        for code in self._codes:
            sys.monitoring.set_local_events(_TOOL, code, 0)
        sys.monitoring.free_tool_id(_TOOL)

    @property
    def reached(self) -> int:
        return len(self._seen)

    def _saw(self, code: CodeType, line: int) -> Any:
        self._seen.add((code, line))
        return sys.monitoring.DISABLE


def _codes(module: ModuleType) -> Iterator[CodeType]:
    """Every function's code in a module's own file, inner ones too."""
    for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        for value in vars(owner).values():
            code = getattr(value, "__code__", None)
            if isinstance(code, CodeType) and code.co_filename == module.__file__:
                yield code
                yield from _inner(code)


def _inner(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner(constant)


def run(messages: int, seed: int, targets: tuple[str, ...], note: Callable[[int], None]) -> dict[str, Any]:
    """Fuzz `messages` in all, split by SHARES. note: called with the number of further messages done.

    Returns target -> Outcome as a dictionary, and "total". The same arguments give the same messages.
    """
    unknown = set(targets) - set(TARGETS)
    if unknown or not targets or messages < len(targets):
        raise ConfigError(mismatch("fuzz", "targets, messages", f"some of {sorted(TARGETS)}", targets))
    whole = sum(SHARES[name] for name in targets)
    out: dict[str, Any] = {}
    for name in targets:
        count = max(1, round(messages * SHARES[name] / whole))
        out[name] = asdict(_in_own_process(name, seed, count, note))
    total = ("messages", "accepted", "refused", "crash_count", "hangs")
    out["total"] = {key: sum(out[name][key] for name in targets) for key in total}
    return out


def _in_own_process(name: str, seed: int, count: int, note: Callable[[int], None]) -> Outcome:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(name, seed, count, theirs), daemon=True)
    process.start()
    theirs.close()
    done, outcome = 0, Outcome()
    limit_s = 10 * _HANG_S  # imports on a busy machine
    try:
        while True:
            if not ours.poll(limit_s):
                outcome.hangs += 1
                return outcome
            limit_s = _HANG_S
            outcome = ours.recv()
            note(outcome.messages - done)
            done = outcome.messages
            if done >= count:
                return outcome
    except (EOFError, ConnectionResetError):
        process.join(5)
        outcome.crash_count += 1
        died = f"the process died, exit code {process.exitcode}"
        outcome.crashes.append({"error": died, "message": f"after message {done} with seed {seed}"})
        return outcome
    finally:
        process.kill()
        process.join()


def _child(name: str, seed: int, count: int, parent: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders of pictures complain there, a million times
    limit = _pages()[0] + _MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fuzz(TARGETS[name](), seed, count, parent.send)


def fuzz(target: Target, seed: int, count: int, beat: Callable[[Outcome], None]) -> Outcome:
    """Fuzz in this process. beat: called now and then with what was found so far, and at the end.

    Raises DataError when a message that is meant to be valid is refused.
    """
    draw, outcome, corpus = random.Random(seed), Outcome(), target.valid()
    started = last = time.monotonic()
    with LineCoverage(tuple(target.modules)) as coverage:
        for sample in corpus:
            target.read(sample)
        while outcome.messages < count:
            sample = target.mutate(draw.choice(corpus), draw)
            before = coverage.reached
            _one(target, sample, outcome)
            if coverage.reached > before and len(corpus) < _LARGEST_CORPUS:
                corpus.append(sample)
            if outcome.messages == max(1, count // 10):
                outcome.rss_mb = [_pages()[1] / 1e6]
            if time.monotonic() - last > _BEAT_S and outcome.messages < count:
                last = time.monotonic()
                beat(outcome)
    outcome.rss_mb.append(_pages()[1] / 1e6)
    outcome.lines, outcome.corpus = [coverage.reached, coverage.total], len(corpus)
    outcome.seconds = time.monotonic() - started
    beat(outcome)
    return outcome


def _one(target: Target, sample: Sample, outcome: Outcome) -> None:
    traced = outcome.messages % _TRACED_EVERY == 0
    if traced:
        tracemalloc.start()
    started = time.thread_time()
    try:
        target.read(sample)
        outcome.accepted += 1
    except DataError:
        outcome.refused += 1
    except Exception as error:  # any other is what fuzzing looks for
        outcome.crash_count += 1
        if len(outcome.crashes) < _KEPT_CRASHES:
            where = f"{type(error).__name__}: {str(error)[:200]}"
            outcome.crashes.append({"error": where, "message": " ".join(f.hex() for f in sample)[:4000]})
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        outcome.peak_allocated = max(outcome.peak_allocated, peak)
        outcome.per_byte = max(outcome.per_byte, peak / max(1000, sum(map(len, sample))))
    else:
        outcome.slowest_ms = max(outcome.slowest_ms, 1e3 * (time.thread_time() - started))
    outcome.messages += 1


def _pages() -> tuple[int, int]:
    """Bytes of address space and of resident memory."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()
