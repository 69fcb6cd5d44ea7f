"""Several processes learn one critic together: as one would, alike to the bit, and none outlives another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_parallel_worker import SPEC, STEPS, TASKS, make_learner, weights, work
from safetensors.torch import load_file

from valueguide.bench.noise_replay import ReplaySize, noise_replay
from valueguide.cli.common import shipped
from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.config import NetworkConfig
from valueguide.critics.processes import ALONE
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.types import Episode, Observation, Step

#: Imports torch once; the processes of all tests are forks of it.
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["valueguide.online.learner", "valueguide.testing.fakes", "torch._dynamo"])


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parallel") / "replay"
    noise_replay(root, SPEC, NetworkConfig("state"), TASKS, {}, ReplaySize(6, 4, 3))
    return root


class Pair:
    """Two processes without a launcher that would end one when the other fails."""

    def __init__(self, what: str, replay: Path, out: Path) -> None:
        out.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.out = out
        self.processes = [START.Process(target=work, args=(what, r, port, replay, out)) for r in range(2)]

    def __enter__(self) -> Pair:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()  # also when it is stopped
            process.join()

    def end(self, rank: int) -> tuple[int | None, str]:
        """Exit status and what it wrote to stderr."""
        self.processes[rank].join(90)
        return self.processes[rank].exitcode, (self.out / f"errors-{rank}").read_text()


def run_pair(what: str, replay: Path, out: Path) -> list[dict[str, torch.Tensor]]:
    with Pair(what, replay, out) as pair:
        for rank in range(2):
            status, errors = pair.end(rank)
            assert status == 0, errors
    return [load_file(out / f"weights-{rank}") for rank in range(2)]


def test_two_processes_with_half_a_batch_each_learn_what_one_learns(replay: Path, tmp_path: Path) -> None:
    first, second = run_pair("learn", replay, tmp_path)
    alone = make_learner(replay, ALONE)
    began = weights(alone)
    for _ in alone.learn(STEPS):
        pass
    ended = weights(alone)
    for part in ("critic", "target"):
        names = [name for name in ended if name.startswith(part)]
        assert all(torch.equal(first[name], second[name]) for name in names)
        moved = max(float((ended[name] - began[name]).abs().max()) for name in names)
        apart = max(float((ended[name] - first[name]).abs().max()) for name in names)
        assert moved > 1e-5 and apart < 0.01 * moved, (part, moved, apart)


def test_a_run_with_dropout_is_the_same_again_to_the_bit(replay: Path, tmp_path: Path) -> None:
    runs = [run_pair("dropout", replay, tmp_path / name) for name in ("a", "b")]
    for pair in runs:
        assert all(torch.equal(value, runs[0][0][name]) for one in pair for name, value in one.items())


@pytest.mark.faults
@pytest.mark.parametrize("what", ["die", "hang"])
def test_the_loss_of_one_ends_the_other_with_one_line(what: str, replay: Path, tmp_path: Path) -> None:
    with Pair(what, replay, tmp_path) as pair:
        if what == "die":
            assert pair.end(1)[0] == 7
        began = time.monotonic()
        status, errors = pair.end(0)
        assert time.monotonic() - began < 60
    assert status == 2, errors
    assert [line for line in errors.splitlines() if line.startswith("error: process 0 of 2: gradients:")]
    assert "expected all processes, found one that died or hangs" in errors and "Traceback" not in errors
    assert not (tmp_path / "weights-0").exists()


def test_processes_that_do_not_begin_alike_are_refused(replay: Path, tmp_path: Path) -> None:
    with Pair("differ", replay, tmp_path) as pair:
        for rank in range(2):
            status, errors = pair.end(rank)
            assert status == 2
            assert f"process {rank} of 2: step and weights: expected the same" in errors, errors


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve episodes of noise with the shapes of wxai-state."""
    root = tmp_path_factory.mktemp("parallel") / "demos"
    spec, rng = LoadedCritic(Path(shipped("wxai-state", "critic"))).spec, np.random.default_rng(0)

    def normal(size: int) -> np.ndarray:
        return rng.normal(size=size).astype(np.float32)

    def observation() -> Observation:
        return Observation({}, normal(spec.state_dim), "open the drawer", 0, normal(51))

    privileged = tuple(f"e{i}" for i in range(spec.environment_state_dim))
    with EpisodeWriter(root, DatasetSpec(10, {}, spec.state_names, spec.action_names, privileged)) as writer:
        for _ in range(12):
            steps = [Step(observation(), rng.uniform(-1, 1, 5).astype(np.float32)) for _ in range(12)]
            for step in steps:
                step.source = "human"
            steps[-1].success = steps[-1].terminated = True
            writer.save(Episode(steps, observation(), "open the drawer", {"task_name": "open_drawer"}))
    return root


def launch(demos: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
               "-m", "valueguide.cli.main", "train", "critic", "--algo", "aloe", "--device", "cpu",
               "--policy", shipped("wxai-state", "policy"), "--init", shipped("wxai-state", "critic"),
               "--dataset", str(demos), "--batch-size", "16", "--proposals", "1", "--steps", "30",
               "--checkpoint-every", "5", "--out", str(out), "--json", f"{out}.json"]  # fmt: skip
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def workers(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children if b"train" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_ends_torchrun_and_the_run_goes_on_exactly(demos: Path, tmp_path: Path) -> None:
    whole = launch(demos, tmp_path / "whole")
    assert whole.wait(250) == 0, whole.stderr.read()  # type: ignore[union-attr]
    cut = launch(demos, tmp_path / "cut")
    while not (tmp_path / "cut.training" / "training.json").exists():
        assert cut.poll() is None
        time.sleep(0.05)
    os.kill(workers(cut.pid)[-1], signal.SIGKILL)
    _, errors = cut.communicate(timeout=100)
    assert cut.returncode != 0 and "SIGKILL" in errors
    assert not (tmp_path / "cut").exists() and not (tmp_path / "cut.json").exists()
    again = launch(demos, tmp_path / "cut")
    assert again.wait(250) == 0, again.stderr.read()  # type: ignore[union-attr]
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "cut")]
    assert results[0]["version"] == results[1]["version"] and results[0]["steps"] == 30
    states = [(tmp_path / f"{n}.training" / "training.safetensors").read_bytes() for n in ("whole", "cut")]
    assert states[0] == states[1]
    LoadedCritic(tmp_path / "whole")
