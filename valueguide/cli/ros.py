"""`valueguide ros build | launch | run | env`: builds the ROS 2 workspace and starts what is in it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from valueguide.errors import ConfigError, EnvironmentSetupError, mismatch
from valueguide.ros import workspace
from valueguide.testing import launch_stand_in

EXAMPLES = """examples:
  valueguide ros build
  valueguide ros launch sim.launch.py task:=pick_can seed:=3
  valueguide ros launch sim.launch.py --show-args
  valueguide ros run safety_gate --ros-args -p robot:=wxai
  eval "$(valueguide ros env)"          # the same environment in this shell
"""
_PACKAGE = "valueguide_nodes"
#: What a shell needs, of all that the environment of a node holds.
_EXPORTED = (
    "AMENT_",
    "CMAKE_PREFIX_PATH",
    "COLCON_",
    "FASTDDS_",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
    "ROS_",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="build | launch | run | env")
    whats.add_parser("build", help="build messages and nodes with colcon")
    launch = whats.add_parser("launch", help="start a launch file; Ctrl-C stops everything")
    launch.add_argument("file", help="a file of launch/, like sim.launch.py, or a path")
    launch.add_argument("--show-args", action="store_true", help="list the file's arguments and stop")
    launch.add_argument("arguments", nargs="*", metavar="name:=value")
    run_ = whats.add_parser("run", help="start one node")
    run_.add_argument("node", help="its executable, like safety_gate")
    run_.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="--ros-args ...")
    whats.add_parser("env", help="print export lines for a shell")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Does one of the four; `run` and the real `ros2 launch` take this process over and do not return."""
    if args.what == "build":
        return _build()
    if args.what == "env":
        return _env()
    if args.what == "run":
        _run(args.node, args.arguments)
    return _launch(args.file, args.arguments, args.show_args)


def _build() -> dict[str, Any]:
    workspace.build()
    print(f"built {', '.join(workspace.PACKAGES)} in {workspace.INSTALL}")
    print("next:  valueguide ros launch sim.launch.py")
    print('or:    eval "$(valueguide ros env)", for ros2 and nodes in this shell')
    return {"install": str(workspace.INSTALL), "packages": list(workspace.PACKAGES)}


def _env() -> dict[str, Any]:
    lines = export_lines(workspace.run_environment(), os.environ)
    print("\n".join(lines))
    return {"exports": lines}


def export_lines(wanted: Mapping[str, str], shell: Mapping[str, str]) -> list[str]:
    """`export NAME=value` for every variable of ROS that the shell lacks or has otherwise."""
    values = {name: value for name, value in wanted.items() if name.startswith(_EXPORTED)}
    # On wheels Python finds these folders itself; other programs must not link against what lies there.
    libraries = values.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    values["LD_LIBRARY_PATH"] = os.pathsep.join(p for p in libraries if p and not p.startswith(sys.prefix))
    return [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(values.items())
        if value and shell.get(name) != value
    ]


def _run(node: str, arguments: list[str]) -> NoReturn:
    _build_if_needed()
    environment = workspace.run_environment()
    folder = workspace.INSTALL / _PACKAGE / "lib" / _PACKAGE
    known = sorted(path.name for path in folder.iterdir())
    if node not in known:
        raise ConfigError(mismatch("ros run", "node", f"one of {', '.join(known)}", repr(node)))
    program = str(folder / node)
    sys.stdout.flush()
    os.execve(program, [program, *arguments], environment)


def _launch(file: str, texts: list[str], show: bool) -> dict[str, Any]:
    path = launch_file(file)
    arguments = parse_arguments(texts)
    if show:
        return _show(path)
    _build_if_needed()
    environment = workspace.run_environment()
    ros2 = shutil.which("ros2", path=environment["PATH"])
    if ros2 and importlib.util.find_spec("launch_ros"):
        sys.stdout.flush()
        os.execve(ros2, [ros2, "launch", str(path), *texts], environment)
    folder = Path(tempfile.mkdtemp(prefix="valueguide-launch-"))
    # A service manager stops with SIGTERM; the nodes must not outlive this process.
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with launch_stand_in.launch(path, arguments, environment, folder, _say) as nodes:
        _say(
            f"no ros2 launch here: valueguide's stand-in started {len(nodes.process)} nodes; logs in {folder}"
        )
        try:
            nodes.wait()
        except KeyboardInterrupt:
            # A second Ctrl-C must not cut short how the nodes leave the arm and the recordings.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            _say("stopping")
        statuses = nodes.stop()
    failed = [f"{name} ({status})" for name, status in statuses.items() if status]
    if failed:
        raise EnvironmentSetupError(
            f"{path.name}: expected every node to end with 0, found {', '.join(failed)}"
        )
    return {"file": str(path), "statuses": statuses}


def _say(line: str) -> None:
    print(line, flush=True)


def launch_file(file: str) -> Path:
    """The path of a launch file: as it is, or in launch/. Raises ConfigError."""
    folder = workspace.ROOT / "launch"
    for path in (Path(file), folder / file):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.name for path in folder.glob("*.launch.py")))
    raise ConfigError(mismatch("ros launch", "file", f"a path or one of {known}", repr(file)))


def parse_arguments(texts: list[str]) -> dict[str, str]:
    """["task:=pick_can"] as {"task": "pick_can"}. Raises ConfigError."""
    arguments = {}
    for text in texts:
        name, separator, value = text.partition(":=")
        if not separator or not name:
            raise ConfigError(mismatch("ros launch", "argument", "name:=value", repr(text)))
        arguments[name] = value
    return arguments


def _show(path: Path) -> dict[str, Any]:
    shown = {}
    for name, argument in launch_stand_in.declared(launch_stand_in.read(path)).items():
        default = argument.default_text()
        print(f"{name:14}{argument.description} [{'required' if default is None else repr(default)}]")
        shown[name] = {"default": default, "description": argument.description}
    return {"file": str(path), "arguments": shown}


def _build_if_needed() -> None:
    if not workspace.is_built():
        print(
            "the workspace is not built, or older than its sources: building (about two minutes)", flush=True
        )
        workspace.build(quiet=True)
