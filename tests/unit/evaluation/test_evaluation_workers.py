"""Worker processes: all jobs are done, and every way to die names its job."""

from __future__ import annotations

import os
from functools import partial

import evaluation_makers as makers
import pytest

from valueguide.errors import DataError, EnvironmentSetupError
from valueguide.evaluation.workers import run_jobs


def _name(job: int) -> str:
    return f"job {job}"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(workers: int) -> None:
    assert sorted(run_jobs(makers.double, list(range(7)), workers, _name)) == [0, 2, 4, 6, 8, 10, 12]


def test_one_worker_stays_here_and_two_do_not() -> None:
    assert set(run_jobs(makers.process_number, [1, 2], 1, _name)) == {os.getpid()}
    assert os.getpid() not in set(run_jobs(makers.process_number, [1, 2, 3], 2, _name))


def test_workers_use_one_thread_each_and_leave_the_parent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert list(run_jobs(makers.threads, [1, 2], 2, _name)) == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_killed_worker_is_an_error_that_names_its_job_and_not_a_hang() -> None:
    done = []
    with pytest.raises(EnvironmentSetupError, match="job 2: its worker process died with exit code -9"):
        done.extend(run_jobs(partial(makers.trouble, "killed"), [0, 1, 2, 3], 2, _name))


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_keeps_its_class_and_names_the_job(workers: int) -> None:
    with pytest.raises(DataError, match="^job 2: state: expected finite numbers, found NaN$"):
        list(run_jobs(partial(makers.trouble, "input"), [0, 2], workers, _name))


def test_a_bug_brings_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="(?s)job 2: failed.*ZeroDivisionError"):
        list(run_jobs(partial(makers.trouble, "bug"), [0, 2], 2, _name))


def test_a_worker_that_cannot_start_is_reported() -> None:
    with pytest.raises(DataError, match="critic: expected a folder"):
        list(run_jobs(makers.no_start, [0, 1], 2, _name))


def test_no_jobs_start_nothing() -> None:
    assert list(run_jobs(makers.no_start, [], 2, _name)) == []
