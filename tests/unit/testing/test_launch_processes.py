"""Processes of a launch: kept output, stopped with SIGINT, killed when that does not help, reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from valueguide.errors import EnvironmentSetupError
from valueguide.testing.launch_processes import Command, Processes
from valueguide.testing.waiting import until

_until = partial(until, wait_s=5.0, look_s=0.01)

_POLITE = "trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.05; done"
_DEAF = "trap '' INT; echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    """start(name=shell script, ...) -> its processes."""
    running: list[Processes] = []

    def make(echo: Callable[[str], None] | None = None, **scripts: str) -> Processes:
        commands = [Command(f"{name}-1", ["sh", "-c", script]) for name, script in scripts.items()]
        running.append(Processes(commands, dict(os.environ), tmp_path, echo))
        return running[-1]

    yield make
    for processes in running:
        processes.stop(0.0)


def _gone(pid: int) -> bool:
    """True for a process that has ended, though nobody may have asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_sigint_ends_them_and_all_that_they_said_is_kept(start) -> None:
    heard: list[str] = []
    processes = start(heard.append, a=_POLITE, b=_POLITE)
    _until(lambda: all("ready" in processes.log(name) for name in ("a-1", "b-1")))
    assert processes.stop() == {"a-1": 0, "b-1": 0}
    assert processes.log("a-1").splitlines() == ["ready", "bye"]
    assert "[a-1] ready" in heard and "[b-1] bye" in heard


def test_what_does_not_listen_is_killed_after_the_grace(start) -> None:
    processes = start(deaf=_DEAF)
    _until(lambda: "ready" in processes.log("deaf-1"))
    began = time.monotonic()
    assert processes.stop(grace_s=0.3) == {"deaf-1": -signal.SIGKILL}
    assert 0.3 <= time.monotonic() - began < 3.0


@pytest.mark.parametrize("leader", [_POLITE, "exit 3"])
def test_children_of_a_process_do_not_outlive_it(start, leader: str) -> None:
    processes = start(a=f"sh -c '{_DEAF.replace(chr(39), chr(34))}' & echo child $!; {leader}")
    _until(lambda: "child" in processes.log("a-1") and "ready" in processes.log("a-1"))
    child = int(processes.log("a-1").split("child ")[1].split()[0])
    assert not _gone(child)
    processes.stop(grace_s=1.0)
    _until(lambda: _gone(child))


def test_a_death_is_reported_once_with_name_and_status(start) -> None:
    processes = start(good=_POLITE, bad="exit 7")
    _until(lambda: processes.named("bad").poll() is not None)
    assert processes.died() == ["bad-1: process has died, exit status 7"]
    assert processes.died() == []
    assert processes.stop()["bad-1"] == 7


def test_wait_returns_when_all_have_ended_and_says_who(start) -> None:
    heard: list[str] = []
    start(heard.append, a="exit 0", b="kill -9 $$").wait()
    assert "a-1: process has died, exit status 0" in heard
    assert "b-1: process has died, exit status -9" in heard


def test_one_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    commands = [
        Command("a-1", ["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]),
        Command("b-1", [str(tmp_path / "gone")]),
    ]
    with pytest.raises(EnvironmentSetupError, match="gone: No such file"):
        Processes(commands, dict(os.environ), tmp_path)
    written = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
    assert not written.strip() or _gone(int(written))


def test_output_of_python_is_not_held_back(tmp_path: Path) -> None:
    script = "import time; print('early'); time.sleep(60)"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Processes([Command("p-1", [sys.executable, "-c", script])], plain, tmp_path) as processes:
        _until(lambda: "early" in processes.log("p-1"))
