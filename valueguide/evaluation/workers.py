"""A process pool for long jobs that notices when a worker dies, and says during which job.

`multiprocessing.Pool` waits for ever for the job of a worker that was killed (out of memory, a crash in
a graphics driver), so an evaluation over night would hang instead of stopping.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from valueguide.errors import EnvironmentSetupError, ValueguideError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_GRACE_S = 5.0


def run_jobs[Job, Result](
    start: Callable[[], Callable[[Job], Result]],
    jobs: Sequence[Job],
    workers: int,
    name: Callable[[Job], str],
) -> Iterator[Result]:
    """Results of `start()(job)` for every job, in the order in which they finish.

    start: picklable; called once in each new (spawned) process. With one worker or one job everything
    runs in this process, in order. Raises ValueguideError for a job's own ValueguideError, and
    EnvironmentSetupError when a worker died, both naming the job with `name`; RuntimeError with the
    worker's traceback for anything else.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from _in_this_process(start, jobs, name)
        return
    context = multiprocessing.get_context("spawn")
    todo, busy = list(reversed(jobs)), {}
    pool: dict[Connection, Any] = {}
    try:
        with _one_thread_each():
            for _ in range(min(workers, len(jobs))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(start, theirs), daemon=True)
                process.start()
                theirs.close()  # so that the worker's death ends the pipe
                pool[ours] = process
        for connection in pool:
            busy[connection] = todo.pop()
            connection.send(busy[connection])
        while busy:
            for ready in wait(list(busy)):
                connection = cast(Connection, ready)
                result = _receive(connection, pool[connection], name(busy.pop(connection)))
                if todo:
                    busy[connection] = todo.pop()
                    connection.send(busy[connection])
                yield result
    finally:
        for connection, process in pool.items():
            connection.close()
            process.terminate()
            process.join(_GRACE_S)
            if process.is_alive():
                process.kill()


def _in_this_process[Job, Result](
    start: Callable[[], Callable[[Job], Result]], jobs: Sequence[Job], name: Callable[[Job], str]
) -> Iterator[Result]:
    work = start() if jobs else None
    for job in jobs:
        assert work is not None
        try:
            yield work(job)
        except ValueguideError as error:
            raise type(error)(f"{name(job)}: {error}") from error


def _receive(connection: Connection, process: Any, job: str) -> Any:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join(_GRACE_S)
        raise EnvironmentSetupError(
            f"{job}: its worker process died with exit code {process.exitcode} (-9 is often a lack of "
            "memory: try fewer --workers). Finished episodes are kept; the same command goes on from here"
        ) from None
    if kind == "error":
        raise value[0](f"{job}: {value[1]}")
    if kind == "bug":
        raise RuntimeError(f"{job}: failed in a worker process\n{value}")
    return value


def _serve[Job, Result](start: Callable[[], Callable[[Job], Result]], connection: Connection) -> None:
    """A worker's life: build what jobs need, then answer each job until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    work = None
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            if work is None:
                work = start()
            answer: tuple[str, Any] = ("result", work(job))
        except ValueguideError as error:
            answer = ("error", (type(error), str(error)))
        except Exception:  # sent on whole: the parent raises it
            answer = ("bug", traceback.format_exc())
        connection.send(answer)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Numerical libraries read these when they load, so they must be set before a process starts."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
