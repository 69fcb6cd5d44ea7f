"""`valueguide doctor`: what this machine can and cannot do, and how to fix it."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valueguide.cli import common
from valueguide.errors import EnvironmentSetupError
from valueguide.ros import workspace

EXAMPLES = """examples:
  valueguide doctor
  valueguide doctor --out /data/runs     # is there room where the results will go?
  valueguide doctor --json doctor.json   # for scripts; exit status 2 when something required is missing
"""

#: import name -> (distribution, required, extra that brings it, what it is for)
PACKAGES: dict[str, tuple[str, bool, str, str]] = {
    "numpy": ("numpy", True, "", "everything"),
    "cv2": ("opencv-python-headless", True, "", "pictures and videos"),
    "pyarrow": ("pyarrow", True, "", "datasets"),
    "torch": ("torch", True, "policies", "policies and critics"),
    "lerobot": ("lerobot", True, "policies", "policies and datasets"),
    "transformers": ("transformers", True, "policies", "language and vision encoders"),
    "mujoco": ("mujoco", True, "sim", "simulation"),
    "gymnasium": ("gymnasium", True, "sim", "simulation"),
    "av": ("av", False, "policies", "videos in reports"),
    "zmq": ("pyzmq", False, "server", "serving a policy to a robot"),
}
_SUITES, _KINDS = ("wxai", "wxai-state"), ("policy", "critic")
_FREE_GIB = 5.0


_PYTHON = (3, 12)
_REPAIR = "git checkout -- sim/assets/checkpoints, or train your own: valueguide train --help"


@dataclass(frozen=True)
class Check:
    """One finding. detail: what was found. fix: the next step, empty when ok."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""

    def line(self) -> str:
        """ "ok       numpy: 2.2.6", or "missing  ROS 2: ... (optional)" with the fix below it."""
        if self.ok:
            return f"ok       {self.name}: {self.detail}"
        importance = "required" if self.required else "optional"
        return f"missing  {self.name}: {self.detail} ({importance})\n         fix: {self.fix}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder whose disk must have room for datasets and runs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print a line per check as it finishes; returns {"checks": [...]}, each a `Check` as a dict.

    Raises EnvironmentSetupError at the end, naming them, when required checks failed.
    """
    checks = []
    for check in _every_check(args.out):
        print(check.line(), flush=True)
        checks.append(check)
    failed = [check.name for check in checks if check.required and not check.ok]
    if failed:
        raise EnvironmentSetupError(
            f"doctor: expected every required check to pass, found {len(failed)} missing: "
            f"{', '.join(failed)}. The lines above say how to fix each"
        )
    return {"checks": [asdict(check) for check in checks]}


def _every_check(out: Path) -> Iterator[Check]:
    import sim  # noqa: F401  chooses the off-screen OpenGL library before MuJoCo is first imported

    yield check_python()
    for module in PACKAGES:
        yield check_package(module)
    yield check_rendering()
    yield check_ros()
    yield check_gpu()
    yield check_disk(out)
    for suite in _SUITES:
        for kind in _KINDS:
            yield check_checkpoint(suite, kind)
    yield check_checkpoint("wxai", "progress")


def check_python() -> Check:
    """The version that the project is built and tested for."""
    found = f"{platform.python_version()} at {sys.executable}"
    wanted = ".".join(map(str, _PYTHON))
    fix = f"uv python install {wanted} && uv sync"
    if sys.version_info[:2] != _PYTHON:
        return Check("Python", False, True, f"{found}, needs {wanted}", fix)
    return Check("Python", True, True, found)


def check_package(module: str) -> Check:
    """Import it (a wheel can be present and broken) and compare its version with the project's pin."""
    distribution, required, extra, purpose = PACKAGES[module]
    target = f"valueguide[{extra}]" if extra else "valueguide"
    fix = f"uv sync, or: pip install '{target}'"
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(distribution)
    except Exception as error:  # a broken native library raises whatever it likes; all of it is the finding
        return Check(distribution, False, required, f"for {purpose}: {_first_line(error)}", fix)
    pin = pins().get(distribution)
    if pin is not None and not pin.contains(version, prereleases=True):
        return Check(distribution, False, required, f"{version}, needs {pin}", fix)
    return Check(distribution, True, required, version)


def pins() -> dict[str, Any]:
    """distribution -> the version range that this project's own metadata asks for."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, importlib.metadata.requires("valueguide") or [])
    return {requirement.name: requirement.specifier for requirement in parsed}


def check_rendering() -> Check:
    """Render one frame of the simulator, as `collect` and `eval` do. Only the suite wxai needs it."""
    name = "rendering"
    fix = (
        "apt-get install libegl1 libgl1-mesa-dri, or MUJOCO_GL=osmesa with libosmesa6, "
        "or use --suite wxai-state, which renders nothing"
    )
    try:
        from sim.env import TabletopEnv

        env = TabletopEnv("pick_can", "images")
        try:
            frame = env.reset(seed=0)[0]["pixels"]["front"]
        finally:
            env.close()
    except Exception as error:  # any of several library-specific errors; all of them are the finding
        return Check(name, False, True, _first_line(error), fix)
    library = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}"
    if frame.min() == frame.max():
        return Check(name, False, True, f"{library} draws an empty picture", fix)
    return Check(name, True, True, f"a {frame.shape[1]}x{frame.shape[0]} frame through {library}")


def check_ros() -> Check:
    """rclpy, the built workspace, and the profile for images. Only robots and the ROS nodes need them."""
    name = "ROS 2"
    try:
        importlib.import_module("rclpy")
    except Exception as error:  # as in check_package
        fix = "pip install 'valueguide[ros]', or source /opt/ros/<distribution>/setup.bash"
        return Check(name, False, False, f"rclpy: {_first_line(error)}", fix)
    found = f"rclpy imports ({os.environ.get('ROS_DISTRO', 'from wheels')})"
    if not workspace.is_built():
        detail = f"{found}, ros_ws is not built, or older than its sources"
        return Check(name, False, False, detail, "valueguide ros build")
    profile = Path(os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", workspace.SHM_PROFILE))
    if not profile.is_file():
        fix = f"unset FASTDDS_DEFAULT_PROFILES_FILE, or let it name {workspace.SHM_PROFILE}"
        return Check(name, False, False, f"{found}, but {profile} is not there: images get lost", fix)
    return Check(
        name, True, False, f"{found}, ros_ws is built, images through shared memory ({profile.name})"
    )


def check_gpu() -> Check:
    """Everything runs without one; training at full size takes long."""
    fix = "install the NVIDIA driver and a CUDA build of torch, or keep to the small models"
    try:
        import torch

        if not torch.cuda.is_available():
            return Check("GPU", False, False, "torch sees none; models run on the CPU", fix)
        properties = torch.cuda.get_device_properties(0)
    except Exception as error:  # driver and library mismatches; all of them are the finding
        return Check("GPU", False, False, _first_line(error), fix)
    return Check("GPU", True, False, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def check_disk(out: Path) -> Check:
    """Room for datasets and runs where `out` is, or will be made."""
    folder = out.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    detail = f"{free:.1f} GiB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", False, True, f"{folder} is not writable", "pass another folder as --out")
    fix = f"free some space, or write elsewhere with --out; {_FREE_GIB:.0f} GiB are enough to begin with"
    return Check("disk", free >= _FREE_GIB, True, detail, fix)


def check_checkpoint(suite: str, kind: str) -> Check:
    """A shipped checkpoint is there and every file has the hash in its manifest. Only defaults need it."""
    name, folder = f"{suite} {kind}", Path(common.shipped(suite, kind))
    manifest = folder / "manifest.json"
    try:
        content = json.loads(manifest.read_text())
        version, files = str(content["version"]), dict(content["files"])
        for file, wanted in files.items():
            if hashlib.sha256((folder / file).read_bytes()).hexdigest() != wanted:
                return Check(name, False, False, f"{folder / file} is damaged or was edited", _REPAIR)
    except OSError as error:
        return Check(name, False, False, f"{error.filename}: {error.strerror}", _REPAIR)
    except (ValueError, TypeError, KeyError) as error:
        return Check(name, False, False, f"{manifest}: not a manifest: {_first_line(error)}", _REPAIR)
    return Check(name, True, False, f"version {version}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
