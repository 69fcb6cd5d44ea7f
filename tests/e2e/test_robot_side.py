"""What a robot computer runs: NumPy 1.26 (which apt builds ROS 2 against) and no torch, in its own place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
FOLDERS = ("safety", "execution", "config", "ros")
LINK = [f"transport/test_transport_{name}.py" for name in ("wire", "clock", "keys")]
IMPORTS = (
    "import sys, numpy, valueguide.safety.gate, valueguide.execution.executor, valueguide.config.robot, "
    "valueguide.ros.observe, valueguide.ros.bag, valueguide.ros.assemble, valueguide.data.writer, "
    "valueguide.steering.decide, valueguide.cli.main, valueguide.transport.steerer; "
    "assert numpy.__version__.startswith('1.26'), numpy.__version__; "
    "assert not {'torch', 'rclpy', 'mujoco', 'lerobot'} & set(sys.modules)"
)


def robot_side(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs python in a fresh environment that holds valueguide's core dependencies and nothing more."""
    # `uv run` names its own program in UV.
    line = [
        os.environ.get("UV", "uv"),
        "run",
        "--no-project",
        "--isolated",
        "--python",
        "3.12",
        "--with-editable",
        str(ROOT),
    ]
    line += ["--with", "numpy==1.26.4", "--with", "pytest==8.4.2", "--with", "hypothesis==6.140.2"]
    line += ["--with", "pytest-timeout==2.4.0", "python", *command]
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    # Message definitions, which are text files; on a robot they come with its ROS 2.
    environment["AMENT_PREFIX_PATH"] = sys.prefix
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=270)


def test_the_robot_side_imports_with_numpy_1_26_and_without_torch() -> None:
    result = robot_side("-c", IMPORTS)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("parts", [FOLDERS, LINK], ids=["robot", "link"])
def test_the_robot_sides_unit_tests_pass_there(parts: Sequence[str]) -> None:
    folders = [f"tests/unit/{name}" for name in parts]
    result = robot_side("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *folders)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
