"""`valueguide bench soak` for real, for half a minute: what it says is there, and nothing is left over."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from valueguide.cli.main import main
from valueguide.testing.waiting import until

_until = partial(until, wait_s=200.0, look_s=0.1)

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]
pytest.importorskip("torch")


def test_a_short_soak(tmp_path: Path) -> None:
    target, out = tmp_path / "soak.json", tmp_path / "out"
    short = ["--minutes", "0.4", "--sample-s", "1", "--reconnect-s", "5", "--timeout-ms", "20000"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "soak", *short, "--tasks", "press_button", "--json", str(target), "--out", str(out)])
    assert stop.value.code == 0
    found = json.loads(target.read_text())
    assert set(found["processes"]) == {"server", "robot 0", "robot 1"} == set(found["samples"])
    assert found["processes"]["server"]["private"]["windows"][-1] > 100
    assert found["decisions"] > 0 and found["scrapes"] >= 40 and found["sessions"] >= 3
    assert set(found["verdict"]) == {"memory", "files_and_threads", "latency", "errors"}
    assert {path.name for path in out.iterdir()} == {"memory.svg", "latency.svg"}
    assert not [line for line in _command_lines() if b"soak_robot" in line and b'["press_button"]' in line]


def test_sigterm_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "valueguide.cli.main",
        "bench",
        "soak",
        "--minutes",
        "5",
        "--tasks",
        "press_button",
    ]
    soaking = subprocess.Popen([*command, "--suite", "wxai-state", "--seed", "424242"], cwd=tmp_path)
    try:
        _until(lambda: any(b"424242" in line and b"soak_robot" in line for line in _command_lines()))
        started = _children(soaking.pid)
        assert len(started) >= 2  # the server and a robot
        soaking.terminate()
        assert soaking.wait(60) == 128 + signal.SIGTERM
        _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), wait_s=20.0)
    finally:
        soaking.kill()
        soaking.wait()


def _children(parent: int) -> list[int]:
    texts = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for text in texts for pid in text.read_text().split()]


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes())
    return found
