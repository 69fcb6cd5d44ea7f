"""`bench soak`: a leak, a slow drift and what only looks like them; processes are seen as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from valueguide.bench.soak import Record
from valueguide.bench.soak_report import drift, growth, report, table, windows
from valueguide.bench.soak_watch import Usage, usage
from valueguide.cli.main import main
from valueguide.errors import ConfigError

SECONDS, WARM_UP = 1800.0, 0.2


def recorded(leak_mb: float = 0.0, slower: float = 0.0, files: int = 0, errors: int = 0) -> Record:
    """Half an hour: memory that rises while things are imported, then by leak_mb in the measured 24 minutes.

    slower: share by which answers are slower at the end. files: more at the end.
    """
    rng, record = np.random.default_rng(1), Record(episodes=40, sessions=7, scrapes=100)
    start = WARM_UP * SECONDS
    looks = []
    for at in np.arange(5.0, SECONDS, 5.0):
        late = max(0.0, at - start) / (SECONDS - start)
        size = 500 + 20 * min(1.0, at / 100) + leak_mb * late + rng.normal(0, 0.5)
        looks.append((float(at), Usage(size, size + 10, 900.0, 15 + round(files * late), 9)))
    record.usage = {"server": looks}
    for at in np.arange(0.0, SECONDS, 0.2):
        late = at / SECONDS
        record.decisions.append((float(at), float(50 * rng.gamma(20, 0.05) * (1 + slower * late))))
    record.errors = [(10.0, "while it starts"), *[(1000.0, "no answer in time")] * errors]
    return record


def test_what_is_steady_passes_and_is_told_in_the_table() -> None:
    found = report(recorded(), SECONDS, WARM_UP)
    assert found["verdict"] == dict.fromkeys(("memory", "files_and_threads", "latency", "errors"), True)
    assert abs(found["processes"]["server"]["private"]["percent"]) < 0.2
    assert found["measured_s"] == 1440 and len(found["latency"]["p99_ms"]) == 24
    assert found["errors"] == {"count": 0, "before": 1, "first": []}
    low, high = found["latency"]["drift"]["ci95"]
    assert low < found["latency"]["drift"]["percent"] < high
    assert "no errors: yes" in table(found) and "NO" not in table(found)


def test_a_leak_a_drift_more_files_and_errors_are_found_each_alone() -> None:
    for what, key in (
        ({"leak_mb": 15.0}, "memory"),
        ({"slower": 0.8}, "latency"),
        ({"files": 3}, "files_and_threads"),
        ({"errors": 1}, "errors"),
    ):
        found = report(recorded(**what), SECONDS, WARM_UP)  # type: ignore[arg-type]
        assert [name for name, good in found["verdict"].items() if not good] == [key]
    leaking = report(recorded(leak_mb=15.0), SECONDS, WARM_UP)["processes"]["server"]["private"]
    # 15 MB of 520 MB in 24 minutes, from the middle of the first window to that of the last.
    assert leaking["percent"] == pytest.approx(100 * 15 / 520 * 23 / 24, abs=0.2)
    assert leaking["per_hour"] == pytest.approx(15 * 60 / 24, abs=2.0)


def test_a_spike_is_no_growth_and_a_step_is_seen_at_the_ends() -> None:
    times, values = np.arange(24.0) * 60, np.full(24, 100.0)
    values[10] = 300.0
    assert growth(times, values)["percent"] == growth(times, values)["ends_percent"] == 0
    values[10:] = 105.0
    assert growth(times, values)["ends_percent"] == pytest.approx(5.0)


def test_too_short_is_not_called_good() -> None:
    record = recorded()
    record.decisions = record.decisions[:4000]  # none in the last half
    record.usage["server"] = record.usage["server"][:75]
    found = report(record, SECONDS, WARM_UP)
    assert found["verdict"]["latency"] is None and found["verdict"]["memory"] is None
    assert "cannot be told" in table(found)
    empty = report(Record(usage={"server": []}), 10.0, WARM_UP)
    assert empty["verdict"]["memory"] is None and "too short" in table(empty)
    assert drift([np.ones(5)] * 2) is None


def test_windows_are_of_a_minute_or_at_least_nine() -> None:
    assert np.allclose(np.diff(windows(1800, 0.2)), 60) and windows(1800, 0.2)[0] == 360
    assert len(windows(30, 0.0)) == 10


def test_a_process_is_seen_as_it_is() -> None:
    script = (
        "import sys, threading\nsys.stdin.readline()\n"
        "held = bytearray(64 << 20)\nfor i in range(0, len(held), 4096): held[i] = 1\n"
        "files = [open('/dev/null') for _ in range(10)]\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('held', flush=True)\nsys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "held\n"
        found = usage(process.pid)
        process.communicate("\n", timeout=20)
    assert 64 < found.private < 120 and found.private <= found.pss <= found.rss
    assert found.files == 13 and found.threads == 2
    with pytest.raises(ConfigError, match=f"process {process.pid}: expected one with /proc"):
        usage(process.pid)
    assert usage(os.getpid()).threads >= threading.active_count()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "0"], "--minutes"),
        (["--robots", "0"], "--robots"),
        (["--warm-up", "1"], "--warm-up"),
        (["--minutes", "0.01"], "--sample-s"),
        (["--suite", "nowhere"], "suite"),
        (["--tasks", "fly"], "fly"),
    ],
)
def test_bad_options_are_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "soak", *options])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(error) == 1 and said in error[0]


def test_plots_are_drawn(tmp_path: Path) -> None:
    from valueguide.cli.bench_soak import _draw

    _draw(tmp_path / "out", report(recorded(), SECONDS, WARM_UP))
    memory, latency = ((tmp_path / "out" / f"{name}.svg").read_text() for name in ("memory", "latency"))
    assert "server" in memory and "p99, ms" in latency and memory.startswith("<svg xmlns=")
