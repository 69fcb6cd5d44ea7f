"""What a robot computer runs must import without torch, ROS and MuJoCo."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BLOCKED = """
import importlib, importlib.abc, pkgutil, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "rclpy", "mujoco", "lerobot", "transformers", "gymnasium"}:
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Block())
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    "package",
    [
        "valueguide.types",
        "valueguide.errors",
        "valueguide.interfaces",
        "valueguide.steering",
        "valueguide.data",
        "valueguide.progress",
        "valueguide.evaluation",
        "valueguide.transport",
        "valueguide.serving",
    ],
)
def test_imports_without_models_ros_or_simulator(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", _BLOCKED, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_fast_and_lists_every_command() -> None:
    code = (
        "import sys; from valueguide.cli.main import main; main(['--help']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "collect", "train", "eval", "bench", "doctor"):
        assert command in done.stdout
