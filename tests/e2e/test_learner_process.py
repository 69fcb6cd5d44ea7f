"""`valueguide learner` for real: one that was killed ends as one that was left alone; a signal saves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from valueguide.cli.main import main
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.online.intake import LEDGER
from valueguide.online.learner_state import LEARNER_STATE
from valueguide.online.service_files import STATUS, read_status
from valueguide.online.versions import CriticVersions

EPISODES = 6
#: 18 steps are due; saved at 5, 10 and 15, published at 10 and at the end.
OPTIONS = ("--min-steps", "20", "--max-steps", "18", "--save-every", "5", "--publish-every", "10",
           "--hold-out", "3", "--batch-size", "32", "--threads", "1", "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def day(tmp_path_factory) -> Path:
    """Demonstrations of one task, written again as a policy's rollouts."""
    folder = tmp_path_factory.mktemp("recorded")
    words = {"suite": "wxai-state", "tasks": "press_button", "episodes": str(EPISODES), "workers": "1",
             "out": str(folder / "demos")}  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["collect", *(word for name, value in words.items() for word in (f"--{name}", value))])
    assert end.value.code == 0
    demos = EpisodeDataset.open(folder / "demos")
    assert demos.spec is not None
    with EpisodeWriter(folder / "day", demos.spec) as writer:
        for i in range(demos.episodes):
            episode = demos.to_episode(i)
            for t, step in enumerate(episode.steps):
                step.source, step.chunk_id, step.chunk_step = "policy", t // 4, t % 4
                step.policy_version, step.executed_length = "base", 4
            writer.save(episode)
    return folder / "day"


def start(day: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "valueguide.cli.main",
        "learner",
        "--dataset",
        str(day),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *OPTIONS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def saved_step(out: Path) -> int:
    path = out / "training" / "state" / LEARNER_STATE
    return int(json.loads(path.read_text())["step"]) if path.exists() else -1


def wait_for(what, process: subprocess.Popen[str], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_learner_that_was_killed_ends_with_the_same_bits(day: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finished(start(day, whole, "--once"))
    rng, before = random.Random(3), -1
    for wanted in (0, 5, 10):  # killed somewhere behind each of these states
        process = start(day, cut, "--once")
        wait_for(lambda wanted=wanted: saved_step(cut) >= wanted, process)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert saved_step(cut) >= max(wanted, before)
        before = saved_step(cut)
    finished(start(day, cut, "--once"))
    states = [load_file(out / "training" / "state" / "training.safetensors") for out in (whole, cut)]
    assert saved_step(cut) == saved_step(whole) == 18 and states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], name)
    published = [[(v.step, v.version) for v in CriticVersions(o / "versions").list()] for o in (whole, cut)]
    assert published[0] == published[1] and [step for step, _ in published[0]][1:] == [10, 18]
    lines = [sorted((o / LEDGER).read_text().splitlines()) for o in (whole, cut)]
    assert lines[0] == lines[1] and len(lines[0]) == EPISODES


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_well_and_the_status_says_so(day, tmp_path, capsys, number) -> None:
    out = tmp_path / "out"
    process = start(day, out)
    wait_for(lambda: (out / STATUS).exists() and saved_step(out) >= 5, process)
    process.send_signal(number)
    finished(process)
    status = json.loads((out / STATUS).read_text())
    assert status["doing"] == "stopped" and status["gradient_step"] == saved_step(out) >= 5
    with pytest.raises(SystemExit) as end:
        main(["learner", "--status", "--out", str(out)])
    assert end.value.code == 0 and "not running, stopped; step" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_saves_and_ends_when_its_parent_is_gone(day: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "valueguide.cli.main", "learner", "--dataset", str(day), "--out", str(out)]
    start_it = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen({[*line, *OPTIONS, '--parent']!r} + [str(os.getpid())])\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start_it],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: saved_step(out) >= 5, parent)
    assert read_status(out)["running"]
    parent.kill()
    parent.wait()
    until = time.monotonic() + 120
    while read_status(out)["running"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    status = read_status(out)
    assert status["doing"] == "stopped" and status["gradient_step"] == saved_step(out)
    parent.communicate()


def test_bad_input_is_one_line(tmp_path, capsys) -> None:
    for words, said in (
        (["--dataset", "x", "--promote", "soon"], "--promote"),
        (["--dataset", "x", "--hold-out", "1"], "hold_out"),
        ([], "datasets"),
        (["--status"], "status.json"),
        (["--dataset", "x", "--critic", str(tmp_path)], "manifest.json"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["learner", "--out", str(tmp_path / "out"), *words])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert end.value.code == 2 and error.startswith("error: ") and said in error, words
