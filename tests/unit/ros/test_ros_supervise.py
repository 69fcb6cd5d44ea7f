"""A child is started again when it dies, later each time, and ends in order when it should."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from valueguide.ros.supervise import Supervised

#: Says its number, then works until it is told to end, which it acknowledges in a file.
WORKER = """
import os, signal, sys, time
def end(*_):
    open({done!r}, "a").write("saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", os.getpriority(os.PRIO_PROCESS, 0), flush=True)
while True:
    time.sleep(0.01)
"""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Callable[..., tuple[Supervised, list[str]]]]:
    made: list[Supervised] = []

    def start(source: str, **settings: Any) -> tuple[Supervised, list[str]]:
        said: list[str] = []
        made.append(Supervised([sys.executable, "-c", source], said.append, clock=clock, **settings))
        made[-1].start()
        return made[-1], said

    yield start
    for child in made:
        child.close(0.0)


def until(condition: Callable[[], Any], child: Supervised, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        child.poll()
        assert time.monotonic() < limit, (child.problem, child.deaths)
        time.sleep(0.01)


def test_it_runs_at_a_lower_priority_and_ends_in_order(make, tmp_path: Path) -> None:
    child, said = make(WORKER.format(done=str(tmp_path / "done")), nice=7)
    until(lambda: said, child)
    assert said == [f"ready {min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)}"]
    assert child.pid is not None and not child.problem
    child.stop()
    child.stop()
    assert child.ending
    until(lambda: child.pid is None, child)
    assert (tmp_path / "done").read_text() == "saved\n", "told once, and waited for"
    assert (child.deaths, child.problem, child.ending) == (0, "", False)
    child.start()
    until(lambda: len(said) == 2, child)
    assert child.close(30.0) and (tmp_path / "done").read_text() == "saved\n" * 2


@pytest.mark.faults
def test_a_killed_child_is_started_again_after_a_while_and_later_each_time(make, clock, tmp_path) -> None:
    child, said = make(WORKER.format(done=str(tmp_path / "done")), retry_s=1.0, most_s=3.0)
    for number, wait in enumerate((1.0, 2.0, 3.0, 3.0), start=1):
        until(lambda number=number: len(said) == number, child)
        os.kill(child.pid, signal.SIGKILL)
        until(lambda: child.pid is None, child)
        assert child.problem == "died, SIGKILL" and child.deaths == number
        clock.now += wait - 0.1
        child.poll()
        assert child.pid is None
        clock.now += 0.1
        child.poll()
        assert child.pid is not None
    clock.now += 61
    child.poll()
    assert not child.problem, "it is well"
    until(lambda: len(said) == 5, child)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: child.pid is None, child)
    clock.now += 1.0
    child.poll()
    assert child.pid is not None, "it had lived long: no longer wait than the first"


def test_its_last_words_are_the_problem(make) -> None:
    child, _ = make("import sys; print('one'); sys.exit('error: no such critic')")
    until(lambda: child.deaths, child)
    assert child.problem == "died, exit status 1: error: no such critic"


def test_a_stop_while_it_is_waiting_to_start_again_leaves_nothing_to_run(make, clock) -> None:
    child, _ = make("import sys; sys.exit(3)")
    until(lambda: child.deaths, child)
    child.stop()
    clock.now += 100
    child.poll()
    assert child.pid is None and child.close(1.0)


def test_a_start_while_it_is_ending_waits_for_its_end(make, tmp_path) -> None:
    child, said = make(WORKER.format(done=str(tmp_path / "done")))
    until(lambda: said, child)
    first = child.pid
    child.stop()
    child.start()
    until(lambda: len(said) == 2, child)
    assert child.pid != first and (child.deaths, child.problem) == (0, "")


def test_one_that_does_not_end_is_killed(make) -> None:
    source = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    child, said = make(source)
    until(lambda: said, child)
    assert not child.close(0.2) and child.pid is None


def test_a_program_that_is_not_there_is_a_problem_and_no_error(clock) -> None:
    child = Supervised(["/no/such/program"], print, clock=clock)
    child.start()
    assert "not started" in child.problem and child.pid is None
