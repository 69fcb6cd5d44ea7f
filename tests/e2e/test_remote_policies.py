"""Policy servers as processes of their own, asked by `valueguide eval`: the decisions are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from valueguide.cli.common import shipped
from valueguide.cli.main import main

pytest.importorskip("torch")

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_EVAL = (
    "eval --suite wxai-state --tasks close_drawer --arms base,guided --episodes 1 --k 4 --seed 10000 "
    "--videos 0 --workers 1"
)


@contextmanager
def _server(protocol: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The shipped policy behind somebody else's protocol; gives the process and its address."""
    command = [sys.executable, "-m", f"valueguide.testing.fake_{protocol}_server"]
    process = subprocess.Popen(
        [*command, shipped("wxai-state", "policy")], stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                break
        yield process, f"{protocol}://127.0.0.1:{line.split()[-1]}?config=wxai-state-{protocol}"
    finally:
        process.kill()
        process.wait()


def _eval(out: Path, *extra: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*_EVAL.split(), "--out", str(out), *extra])
    return int(ended.value.code or 0)


def _episodes(out: Path) -> list[dict[str, Any]]:
    """What happened in each episode, base first."""
    rows = [json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted(
        ({key: row[key] for key in ("arm", "seed", "success", "steps")} for row in rows),
        key=lambda row: row["arm"],
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("protocol", ["openpi", "groot"])
def test_guided_episodes_through_a_server_of_theirs(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _server(protocol) as (process, address):
        assert _eval(tmp_path / "remote", "--policy", address) == 0
        process.kill()
        process.wait()
        capsys.readouterr()
        assert _eval(tmp_path / "gone", "--policy", address) == 2
    assert "cannot connect" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "remote" / "report.html").exists()
    assert _eval(tmp_path / "local") == 0
    local, remote = _episodes(tmp_path / "local"), _episodes(tmp_path / "remote")
    assert [row["arm"] for row in local] == ["base", "guided"]
    # A batch of GR00T's server is K draws of one seed, as in this process; of openpi's, candidate 0 is.
    assert remote == local if protocol == "groot" else remote[0] == local[0]
