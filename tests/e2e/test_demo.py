"""The newcomer's command, on the shipped checkpoints, as a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from valueguide.cli.common import CHECKPOINTS


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["wxai-state", "wxai"])
def test_demo_ends_with_table_report_and_next_steps(suite: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "valueguide.cli.main", "demo", "--suite", suite, "--episodes", "1",
         "--k", "4", "--out", str(tmp_path), "--json", str(tmp_path / "r.json")],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert set(results["arms"]) == {"base", "guided"}
    assert results["arms"]["base"]["n"] == results["arms"]["guided"]["n"] == 9
    report = (tmp_path / suite / "report.html").read_text()
    assert "<video" in report and "http://" not in report.replace("http://www.w3.org", "")
    assert "base -> guided" in done.stdout and "Next:" in done.stdout


def test_shipped_checkpoints_are_small() -> None:
    size = sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file())
    assert 0 < size < 25 * 2**20
