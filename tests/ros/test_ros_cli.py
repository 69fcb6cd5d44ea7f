"""`valueguide ros` from the command line, with real nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from valueguide.ros import workspace

pytestmark = pytest.mark.ros

_LAUNCH = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="sim", description="name in configs/robots"),
        *[
            Node(package="valueguide_nodes", executable=name, name=name,
                 parameters=[{"robot": LaunchConfiguration("robot")}])
            for name in ("safety_gate", "progress")
        ],
    ])
"""


@pytest.fixture
def ros(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """ros("run", "task") -> the running `valueguide ros run task`, its output in a file."""
    running = []
    keep = {name: ros_environment[name] for name in ("ROS_DOMAIN_ID", "OMP_NUM_THREADS")}

    def start(*arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "valueguide.cli.main", "ros", *arguments]
        with (tmp_path / f"out-{len(running)}").open("w") as out:
            running.append(
                subprocess.Popen(
                    line, env={**os.environ, **keep}, stdout=out, stderr=subprocess.STDOUT, text=True
                )
            )
        return running[-1]

    yield start
    for process in running:
        process.terminate()  # it stops what it started; killed, it would leave nodes to the next test
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _there(nodes: list[str]) -> bool:
    from ros_client import Client

    with Client() as client:
        client.active(*nodes, timeout=60)
    return True


def _nodes_of(folder: Path) -> list[int]:
    """Processes that were started with a parameter file in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_build_of_a_built_workspace_ends_with_0(ros, tmp_path: Path) -> None:
    assert ros("build").wait(timeout=120) == 0, (tmp_path / "out-0").read_text()
    assert "next:  valueguide ros launch sim.launch.py" in (tmp_path / "out-0").read_text()
    assert workspace.is_built()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launch_starts_real_nodes_and_stops_all_when_asked_to(
    ros, in_ros, tmp_path: Path, number: int
) -> None:
    file = tmp_path / "two.launch.py"
    file.write_text(_LAUNCH)
    process = ros("launch", str(file))
    assert in_ros(_there, nodes=["safety_gate", "progress"], timeout=90)
    said = (tmp_path / "out-0").read_text()
    assert "stand-in started 2 nodes" in said
    folder = Path(said.split("logs in ")[1].split()[0])
    assert len(_nodes_of(folder)) == 2
    process.send_signal(number)
    assert process.wait(timeout=30) == 0, (tmp_path / "out-0").read_text()
    assert _nodes_of(folder) == []


def test_launch_says_which_node_died_and_ends_with_2(ros, in_ros, tmp_path: Path) -> None:
    file = tmp_path / "two.launch.py"
    file.write_text(_LAUNCH)
    process = ros("launch", str(file))
    assert in_ros(_there, nodes=["safety_gate", "progress"], timeout=90)
    folder = Path((tmp_path / "out-0").read_text().split("logs in ")[1].split()[0])
    for pid in _nodes_of(folder):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=30) == 2
    last = (tmp_path / "out-0").read_text().splitlines()[-1]
    assert last.startswith("error: two.launch.py: expected every node to end with 0")
    assert "safety_gate-1 (-9)" in last and "progress-2 (-9)" in last


def test_run_is_the_node_itself(ros, in_ros, tmp_path: Path) -> None:
    process = ros("run", "progress", "--ros-args", "-r", "__node:=other", "-p", "robot:=sim")
    assert in_ros(_there, nodes=["other"], timeout=90)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0, (tmp_path / "out-0").read_text()


def test_run_of_an_unknown_node_is_one_line(ros, tmp_path: Path) -> None:
    assert ros("run", "nobody").wait(timeout=60) == 2
    (line,) = (tmp_path / "out-0").read_text().splitlines()
    assert "safety_gate" in line and "found 'nobody'" in line


def test_env_gives_a_shell_what_it_needs(ros, tmp_path: Path) -> None:
    assert ros("env").wait(timeout=60) == 0
    text = (tmp_path / "out-0").read_text()
    script = f"{text}\n{sys.executable} -c 'import valueguide_msgs.msg, valueguide_nodes.base; print(1)'"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=clean, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
