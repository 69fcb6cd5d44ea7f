"""When the workspace counts as built, and what its tools are asked to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from valueguide.errors import EnvironmentSetupError
from valueguide.ros import workspace


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose packages are all built, after their sources were written."""
    ros_ws = tmp_path / "ros_ws"
    for name, value in {"ROOT": tmp_path, "WORKSPACE": ros_ws, "INSTALL": ros_ws / "install"}.items():
        monkeypatch.setattr(workspace, name, value)
    _write(tmp_path / "launch" / "sim.launch.py", age=100)
    _write(tmp_path / "configs" / "robots" / "sim.yaml", age=100)
    _write(ros_ws / "install/valueguide_bringup/share/valueguide_bringup/launch/sim.launch.py")
    _write(ros_ws / "install/valueguide_bringup/share/valueguide_bringup/configs/robots/sim.yaml")
    for package in workspace.PACKAGES:
        share = ros_ws / "install" / package / "share" / package
        _write(share / "package.xml", age=100)
        _write(share / "package.bash")
        _write(ros_ws / "src" / package / "package.xml", age=100)
    return tmp_path


def _write(path: Path, age: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def test_a_fresh_build_counts(root: Path) -> None:
    assert workspace.is_built()


def test_an_empty_workspace_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "INSTALL", tmp_path)
    assert not workspace.is_built()


@pytest.mark.parametrize(
    "changed",
    [
        "ros_ws/src/valueguide_msgs/msg/Task.msg",
        "ros_ws/src/valueguide_msgs/CMakeLists.txt",
        "ros_ws/src/valueguide_nodes/setup.py",
        "launch/new.launch.py",
        "configs/robots/new.yaml",
    ],
)
def test_a_newer_source_or_a_file_not_installed_does_not(root: Path, changed: str) -> None:
    _write(root / changed, age=-10)
    assert not workspace.is_built()


@pytest.mark.parametrize(
    "changed", ["ros_ws/src/valueguide_nodes/valueguide_nodes/task.py", "launch/__pycache__/sim.launch.pyc"]
)
def test_python_is_linked_so_a_change_needs_no_build(root: Path, changed: str) -> None:
    _write(root / changed, age=-10)
    assert workspace.is_built()


def test_the_environment_of_an_unbuilt_workspace_says_what_to_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workspace, "INSTALL", tmp_path)
    with pytest.raises(EnvironmentSetupError, match="valueguide ros build"):
        workspace.run_environment()


def test_without_any_ros_the_error_names_both_ways_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "on_wheels", lambda: False)
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    with pytest.raises(EnvironmentSetupError, match="uv sync --extra ros.*setup.bash"):
        workspace.build_environment()


def test_a_missing_tool_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workspace, "build_environment", lambda: {"PATH": str(tmp_path)})
    with pytest.raises(EnvironmentSetupError, match="expected the program colcon"):
        workspace.build()


def test_only_wheels_get_their_work_around() -> None:
    assert any("wheels_fix.cmake" in word for word in workspace.build_command(wheels=True))
    assert not any("wheels_fix.cmake" in word for word in workspace.build_command(wheels=False))
