"""A dataset scored over HTTP: `transformers serve`, and a model trained here, as in this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.cli.main import main
from valueguide.testing.brightness_episodes import brightness_dataset
from valueguide.vlm.small_vlm import VlmSize
from valueguide.vlm.train_phase import VlmTrainSettings
from valueguide.vlm.train_run import VlmRun

EPISODES = 12
START_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `data` and `model`, trained until it tells brightness; it needs no reading before it answers."""
    root = tmp_path_factory.mktemp("served")
    dataset = brightness_dataset(root / "data", EPISODES)
    settings = VlmTrainSettings(
        sight_steps=60, read_steps=0, steps=300, sight_batch=2, batch=8, frames=(3, 5)
    )
    size = VlmSize(hidden=64, layers=2, heads=4, intermediate=96, scale=4)
    VlmRun([dataset], "front", settings, root / "run", root / "model", size=size).train(every=1000)
    return root


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The address of a real `transformers serve` process on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    words = [str(folder / "model"), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "serve.log", "w") as log:
        process = subprocess.Popen([str(program), "serve", *words], stdout=log, stderr=log, env=offline)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", folder / "serve.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"transformers serve did not begin: {log.read_text()[-2000:]}")


def _score(folder: Path, name: str, *words: str) -> list[dict[str, Any]]:
    fixed = ["progress", "score", "--dataset", str(folder / "data"), "--model", str(folder / "model")]
    options = ["--frames", "4", "--shuffles", "2", "--answer", "lines", "--cache", "", "--parquet", ""]
    out = folder / f"{name}.jsonl"
    with pytest.raises(SystemExit) as stop:
        main([*fixed, *options, "--control-episodes", "2", *words, "--out", str(out)])
    assert stop.value.code == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_dataset_is_scored_over_http_as_in_this_process(folder: Path, url: str) -> None:
    here = _score(folder, "here", "--device", "cpu")
    there = _score(folder, "there", "--backend", "openai", "--url", url, "--schema", "off")
    assert len(there) == EPISODES + 2 * 4
    for mine, theirs in zip(here, there, strict=True):
        for name in ("episode", "variant", "status", "progress", "voc", "final", "parse_rate"):
            assert mine[name] == theirs[name], (mine["episode"], mine["variant"], name)
        assert theirs["tokens"]["input"] > 0 and theirs["tokens"]["unknown"] == 0
    real = [row for row in there if row["variant"] == "real"]
    assert sum(row["status"] == "ok" for row in real) >= EPISODES - 2
    finals = {wins: [r["final"] for r in real if r["success"] is wins and r["final"] is not None]
              for wins in (True, False)}  # fmt: skip
    assert min(finals[True]) > max(finals[False])  # it looks at what it is sent
    assert np.median(finals[True]) > 0.8 > 0.4 > np.median(finals[False])  # a minute of training is enough
