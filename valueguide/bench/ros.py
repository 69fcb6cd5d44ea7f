"""Cost of the ROS 2 graph: stages of a decision, the gate's reaction, the executor's beat, images by DDS.

Starts real nodes and a probe (`valueguide.bench.ros_probe`) in a domain of their own. No ROS in this process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from valueguide.config.robot import ROBOTS
from valueguide.errors import EnvironmentSetupError
from valueguide.ros import workspace

_BIN = workspace.INSTALL / "valueguide_nodes" / "lib" / "valueguide_nodes"
FAST_HZ = 100.0


def gate_reaction(trips: int = 200) -> dict[str, Any]:
    """Milliseconds from a refused command, or an e-stop, to the hold or stop, at 100 commands a second."""
    with _environment() as (environment, folder):
        robot = _fast_robot(folder)
        with _nodes(environment, {"safety_gate": {"robot": robot}}):
            return _probe(environment, "gate", trips=trips, robot=robot)


def executor_beat(seconds: float = 20.0) -> dict[str, Any]:
    """Milliseconds between 100 Hz control steps and their due time, against a bare rclpy timer."""
    with _environment() as (environment, folder):
        robot = _fast_robot(folder)
        with _nodes(environment, {"executor": {"robot": robot, "execute": 50, "prefetch": True}}):
            return _probe(environment, "executor", seconds=seconds)


def images(count: int = 200, side: int = 224) -> dict[str, Any]:
    """Milliseconds from publishing a picture to having it, bare and through our synchronisation."""
    with _environment() as (environment, _):
        return _probe(environment, "images", count=count, side=side)


def decisions(episodes: int = 6, side: int = 224, suite: str = "wxai") -> dict[str, Any]:
    """Stages of guided decisions of the whole graph on the simulated arm with two cameras of `side` pixels.

    `graph_over_loop` is what a decision costs beyond the policy and the critic, milliseconds: from the
    picture's arrival to the first command let through.
    """
    with _environment() as (environment, _), _nodes(environment, _graph(suite, side, prefetch=False)):
        return _probe(environment, "decisions", episodes=episodes)


def success(
    tasks: tuple[str, ...],
    episodes: int,
    seed: int,
    mode: str,
    suite: str,
    max_steps: int,
    prefetch: bool = False,
) -> list[bool]:
    """Runs `episodes` of each task through the whole graph in real time, initial states seed, seed + 1, …

    max_steps: control steps, as the in-process evaluation counts them.
    One entry per task and episode, tasks first, in the order of `valueguide eval`'s rows.
    """
    plan = [{"task": t, "seed": seed + i, "mode": mode} for t in tasks for i in range(episodes)]
    with _environment() as (environment, _), _nodes(environment, _graph(suite, 128, prefetch)):
        found = _probe(environment, "episodes", plan=plan, time_limit_s=90.0, max_steps=max_steps)["episodes"]
    return [episode["success"] for episode in found]


def _graph(suite: str, side: int, prefetch: bool) -> dict[str, dict[str, Any]]:
    """Executable -> parameters of the simulated robot and everything that drives it."""
    follow = {"robot": "sim", "use_sim_time": True}
    return {
        "sim_robot": {"robot": "sim", "image_size": side, "privileged": suite != "wxai"},
        "policy": {**follow, "policy": suite, "critic": suite},
        "executor": {**follow, "prefetch": prefetch},
        "safety_gate": follow,
        "task": follow,
        "progress": follow,
    }


@contextmanager
def _environment() -> Iterator[tuple[dict[str, str], Path]]:
    if not workspace.is_built():
        workspace.build(quiet=True)
    domain = str(random.SystemRandom().randint(1, 100))
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        extra = {"ROS_DOMAIN_ID": domain, "OMP_NUM_THREADS": "1"}
        yield workspace.run_environment(extra), Path(folder)


def _fast_robot(folder: Path) -> str:
    """The simulated robot's description at 100 control steps a second."""
    content = yaml.safe_load((ROBOTS / "sim.yaml").read_text())
    content.update(name="fast", rate_hz=FAST_HZ)
    path = folder / "fast.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@contextmanager
def _nodes(environment: Mapping[str, str], nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    running: list[subprocess.Popen[bytes]] = []
    try:
        for executable, parameters in nodes.items():
            line = [str(_BIN / executable), "--ros-args"]
            for name, value in parameters.items():
                text = json.dumps(value) if not isinstance(value, str) else value
                line += ["-p", f"{name}:={text}"]
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(line, env=dict(environment), stdout=quiet, stderr=quiet))
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _probe(environment: Mapping[str, str], what: str, **arguments: Any) -> dict[str, Any]:
    line = [sys.executable, "-m", "valueguide.bench.ros_probe", what, json.dumps(arguments)]
    result = subprocess.run(line, env=dict(environment), capture_output=True, text=True, timeout=3600)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentSetupError(f"bench ros: the probe {what} failed: {last}")
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return {**found, "load": round(os.getloadavg()[0], 1)}
