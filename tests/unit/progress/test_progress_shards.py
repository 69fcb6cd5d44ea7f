"""Several processes share one job through a folder: real processes, started by torchrun and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError
from valueguide.progress.rows import RowFile, read_rows
from valueguide.progress.shards import ALONE, Place, launched
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.types import Episode, Observation, Step

PLAN = {"model": "a"}


def _row(episode: int, status: str = "ok", tokens: int = 1) -> dict:
    spent = {"input": tokens, "output": tokens, "answers": 1, "cached": 0, "unknown": 0}
    return {"episode": episode, "camera": "c", "variant": "real", "status": status, "tokens": spent}


def _statuses(path: Path) -> list[tuple[int, str]]:
    return [(row["episode"], row["status"]) for row in read_rows(path)]


def test_the_environment_says_who_is_who() -> None:
    assert launched({}) is ALONE and launched({"RANK": "1"}) is ALONE
    place = launched({"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"})
    assert place == Place(1, 3, 1) and place.device("cuda") == "cuda:1" and place.device("cpu") == "cpu"
    assert ALONE.device("cuda") == "cuda"
    for wrong in ({"RANK": "3", "WORLD_SIZE": "3"}, {"RANK": "a", "WORLD_SIZE": "3"}):
        with pytest.raises(ConfigError, match="RANK"):
            launched(wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_every_item_once(count: int) -> None:
    shares = [Place(rank, count).share(range(10)) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_whoever_closes_last_holds_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    first, second = (RowFile(path, PLAN, Place(rank, 2)) for rank in range(2))
    second.add(_row(1))
    first.add(_row(2))
    second.close()
    assert _statuses(path) == [(1, "ok"), (2, "ok")]  # what the first has so far is seen, and stays its own
    first.add(_row(0))
    first.close()
    assert [key[0] for key in first.by_key()] == [0, 1, 2]
    assert _statuses(path) == [(0, "ok"), (1, "ok"), (2, "ok")] and not list(tmp_path.glob("*.part-*"))


def test_parts_that_a_kill_left_are_found_by_any_number_of_processes(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    for rank in range(4):
        rows = RowFile(path, PLAN, Place(rank, 4))
        rows.add(_row(rank, "failed" if rank == 3 else "ok"))
        rows._file.write(b'{"episode": 9, ')
        rows._file.close()
    rows = RowFile(path, PLAN)
    assert [rows.finished((i, "c", "real")) for i in range(5)] == [True, True, True, False, False]
    rows.add(_row(3, tokens=5))
    rows.close()
    assert _statuses(path) == [(i, "ok") for i in range(4)] and not list(tmp_path.glob("*.part-*"))
    assert read_rows(path)[3]["tokens"]["input"] == 6


def test_two_runs_in_the_same_place_are_refused(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "o.jsonl", PLAN)
    with pytest.raises(ConfigError, match="another process"):
        RowFile(tmp_path / "o.jsonl", PLAN)
    rows.close()
    RowFile(tmp_path / "o.jsonl", PLAN).close()


def _dataset(root: Path, episodes: int) -> Path:
    spec = DatasetSpec(fps=10, cameras={"front": (8, 8)}, state=("x",), action=("dx",))
    with EpisodeWriter(root, spec) as writer:
        for number in range(episodes):
            level = [np.full((8, 8, 3), min(100, number + 10 * i), np.uint8) for i in range(6)]
            seen = [Observation({"front": image}, np.zeros(1, np.float32), "push it") for image in level]
            steps = [Step(o, np.zeros(1, np.float32), success=i == 4) for i, o in enumerate(seen[:5])]
            steps[-1].terminated = True
            writer.save(Episode(steps, seen[5], "push it"))
    return root


def _command(server: FakeOpenAiServer, data: Path, out: Path, processes: int) -> list[str]:
    start = [sys.executable, "-m", "valueguide.cli.main"]
    if processes:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        start = [*torchrun, str(processes), "-m", "valueguide.cli.main"]
    return [
        *start, "progress", "score", "--dataset", str(data), "--backend", "openai", "--url", server.url,
        "--model", "m", "--frames", "3", "--shuffles", "1", "--cache", "", "--schema", "off",
        "--out", str(out), "--json", str(out.with_suffix(".json")), "--parquet", f"{out}.parquet",
    ]  # fmt: skip


@pytest.mark.faults
@pytest.mark.slow
def test_torchrun_gives_the_same_file_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """One process, two processes, and two that are killed and then gone on with by one: equal bytes."""
    data = _dataset(tmp_path / "data", 8)
    outs = [tmp_path / name / "o.jsonl" for name in ("one", "two", "killed")]
    for out in outs:
        out.parent.mkdir()
    with FakeOpenAiServer() as server:
        subprocess.run(_command(server, data, outs[0], 0), check=True, capture_output=True)
        subprocess.run(_command(server, data, outs[1], 2), check=True, capture_output=True, timeout=240)
        server.answer_after_s = 0.2
        run = subprocess.Popen(_command(server, data, outs[2], 2), start_new_session=True)
        deadline = time.monotonic() + 200
        while len(list(outs[2].parent.glob("*.part-*"))) < 2 or not all(
            part.stat().st_size for part in outs[2].parent.glob("*.part-*")
        ):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        server.answer_after_s = 0.0
        before = len(server.bodies)
        subprocess.run(_command(server, data, outs[2], 0), check=True, capture_output=True)
    assert 0 < len(server.bodies) - before < 8 * 5
    whole = outs[0].read_bytes()
    assert len(whole.splitlines()) == 8 * 5
    for out in outs:
        assert out.read_bytes() == whole and not list(out.parent.glob("*.part-*"))
        assert Path(f"{out}.parquet").read_bytes() == Path(f"{outs[0]}.parquet").read_bytes()
        assert json.loads(out.with_suffix(".json").read_text())["variants"]["real"]["clips"] == 8
