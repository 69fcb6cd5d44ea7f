"""`Serve`: a server that does not come to serve is not left behind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from valueguide.testing import serve_process
from valueguide.testing.serve_process import Serve


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """What `Serve` starts: here a process that says something and lives on."""
    program = tmp_path / "begins"
    program.write_text("#!/bin/sh\necho beginning >&2\nexec sleep 60\n")
    program.chmod(0o755)
    real, seen = subprocess.Popen, []

    def popen(line: list[str], **options: Any) -> subprocess.Popen[str]:
        seen.append(real([str(program), *line[1:]], **options))
        return seen[-1]

    monkeypatch.setattr(serve_process.subprocess, "Popen", popen)
    return seen


def test_an_interrupt_while_it_starts_ends_it(
    started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pattern: str, text: str) -> re.Match[str] | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve_process.re, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Serve("critic")
    assert len(started) == 1 and started[0].returncode == -9
