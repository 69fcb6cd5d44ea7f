"""The wall clock jumps by hours, forwards and back, on the server and on the robot: nothing may notice.

A library that is loaded before the C library moves what processes see as the time of day; Python, ZeroMQ and
everything else in them see it, as after `settimeofday` or a first NTP step.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from valueguide.progress.http import _retry_after
from valueguide.testing.stand_ins import EXECUTE, PERIOD_S, TIMEOUT_S, StandIn, write_critic

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
HOURS_NS = 5 * 3600 * 10**9
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "clock_shim.so"
    source = Path(__file__).with_name("clock_shim.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Clock:
    """The wall clock of the processes that were started with `env`."""

    def __init__(self, shim: Path, file: Path) -> None:
        self._file = file
        file.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(shim), "CLOCK_SHIM": str(file)}

    def jump(self, by_ns: int) -> None:
        with self._file.open("r+b", buffering=0) as file:
            file.write(by_ns.to_bytes(8, "little", signed=True))


@contextmanager
def _ended(*words: str, clock: Clock) -> Iterator[StandIn]:
    process = StandIn(*words, env=clock.env)
    try:
        process.first_line()
        yield process
    finally:
        process.kill()


def _lines(log: Path) -> list[dict[str, Any]]:
    text = log.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_jumps_of_the_wall_clock_change_nothing(shim: Path, tmp_path: Path) -> None:
    """Sessions, deadlines, what is stale, the clocks' offset, critics that are put in service."""
    clocks = {name: Clock(shim, tmp_path / f"{name}.clock") for name in ("server", "robot")}
    log = tmp_path / "log"
    versions = str(tmp_path / "versions")
    with (
        _ended("publish", versions, clock=clocks["server"]) as publisher,
        _ended("serve", versions, "*", clock=clocks["server"]) as server,
        _ended("robot", server.lines[0].split()[0], str(log), "1", clock=clocks["robot"]) as robot,
    ):
        for who, by_ns in (
            ("server", HOURS_NS),
            ("robot", HOURS_NS),
            ("server", -HOURS_NS),
            ("robot", -HOURS_NS),
            ("server", 0),
        ):
            time.sleep(0.7)
            clocks[who].jump(by_ns)
        time.sleep(0.7)
        for process in (robot, server, publisher):
            assert process.end() == 0
    lines = _lines(log)
    beats = [line for line in lines if "at" in line]
    walls = [line["wall"] - line["at"] for line in beats]
    assert max(walls) - min(walls) == pytest.approx(2 * HOURS_NS * 1e-9, abs=5), "the clock did not jump"
    critics = [line["critic"] for line in lines if "decision" in line]
    assert len(critics) >= 8 and len(set(critics)) >= 3
    # A busy machine may miss a deadline; a jump that is noticed costs the session, or all that follows.
    assert sum(bool(line["trouble"]) for line in beats) < 0.2 * len(beats)
    assert any(not line["held"] for line in beats[-30:])
    assert max(line["sessions"] for line in beats) <= 2
    offsets = [line["offset_ns"] for line in beats if line["offset_ns"] is not None]
    assert len(offsets) > 50 and max(map(abs, offsets)) < 1e9 * TIMEOUT_S
    for line in beats:
        if "asked_ns" in line:
            assert line["at"] - 1e-9 * line["asked_ns"] < TIMEOUT_S + EXECUTE * PERIOD_S + 0.05


def test_history_and_order_of_versions_hold_when_the_clock_goes_back(tmp_path: Path) -> None:
    """Times in the history are for people: what serves, and what a rollback leads to, goes by numbers."""
    from valueguide.online.versions import CriticVersions

    now = [1.7e9]
    versions = CriticVersions(tmp_path / "versions", clock=lambda: now[0])
    for number, hour in ((1, 0), (2, -5), (3, 9)):
        now[0] += 3600 * hour
        with versions.draft() as draft:
            write_critic(draft, number)
            assert versions.publish(draft) == number
        versions.promote(number)
        assert versions.state().serving == number
    now[0] -= 1e6
    assert versions.rollback().serving == versions.state().serving == 2


def test_a_wait_that_a_server_asks_for_is_counted_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    asked = {"Retry-After": formatdate(now + 7, usegmt=True), "Date": formatdate(now, usegmt=True)}
    for hours in (-5, 0, 5):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
        assert _retry_after(asked) == 7.0
    assert _retry_after({"Retry-After": "12"}) == 12.0 and _retry_after({}) is None
    assert _retry_after({"Retry-After": "soon"}) is None
