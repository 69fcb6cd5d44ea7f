"""`valueguide bench soak` for real, for half a minute: what it says is there, and nothing is left over."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from valueguide.cli.main import main

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


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes())
    return found
