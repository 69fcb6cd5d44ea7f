"""Many clips through one estimator, a few at a time; what is finished is kept whatever happens next."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.estimate import Estimator
from valueguide.progress.request import Clip, RequestFailed
from valueguide.progress.rows import Key, Row, RowFile, estimate_row, failed_row

_FAILURES_IN_A_ROW = 8


@dataclass(frozen=True)
class Job:
    """One clip to estimate.

    key: episode, camera, variant. clip: makes the clip when its turn comes; may raise DataError.
    facts: entries for its row.
    """

    key: Key
    clip: Callable[[], Clip]
    facts: Row = field(default_factory=dict)


def run_jobs(
    jobs: Iterable[Job], estimator: Estimator, rows: RowFile, workers: int, done: Callable[[Row], None]
) -> None:
    """Estimates every job whose row is not finished; `done` sees each row after it is on disk.

    Raises RequestFailed when 8 jobs (or twice `workers`) in a row brought nothing: whatever answers is then
    gone, and the rest is left to a later run. Other errors of the estimator end the run at once. Workers
    are daemons: an interrupt does not wait for answers that may never come.
    """
    if workers < 1:
        raise ConfigError(mismatch("progress", "workers", "1 or more", workers))
    left = (job for job in jobs if not rows.finished(job.key))
    limit = max(_FAILURES_IN_A_ROW, 2 * workers)
    failures = 0
    for row in _in_threads(left, lambda job: _row(job, estimator), workers):
        rows.add(row)
        done(row)
        failures = failures + 1 if row["status"] == "failed" else 0
        if failures >= limit:
            raise RequestFailed(f"gave up after {failures} failures in a row; the last: {why(row)}")


def why(row: Row) -> str:
    """The last reason that a row gives for missing values, "" when it gives none."""
    reasons = [*row["reasons"], *(reason for shuffle in row["shuffles"] for reason in shuffle["reasons"])]
    return reasons[-1] if reasons else ""


def _row(job: Job, estimator: Estimator) -> Row:
    try:
        clip = job.clip()
    except DataError as error:
        return {**failed_row(job.key, str(error)), **job.facts}
    return estimate_row(job.key, clip.task, estimator.estimate(clip), job.facts)


def _in_threads(jobs: Iterator[Job], work: Callable[[Job], Row], workers: int) -> Iterator[Row]:
    """Results in the order in which they are finished. Jobs are taken only as threads become free."""
    results: queue.Queue[Any] = queue.Queue(maxsize=1)  # no thread runs ahead of what is on disk
    lock, stopped, end = threading.Lock(), threading.Event(), object()

    def give(result: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(result, timeout=0.1)

    def serve() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    job = next(jobs, None)
                if job is None:
                    break
                give(work(job))
            give(end)
        except BaseException as error:  # given to the caller, whichever it is
            give(error)

    for _ in range(workers):
        threading.Thread(target=serve, daemon=True).start()
    running = workers
    try:
        while running:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is end:
                running -= 1
            else:
                yield result
    finally:
        stopped.set()
