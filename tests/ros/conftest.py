"""Fixtures for tests with real ROS 2 processes.

ros_environment  the nodes' environment, with a domain of this test session's own
in_ros           run a function of the test module in a child process on the ROS side (see ros_client.py)
node             start one installed node; stopped after the test
launched         start a launch file (through the stand-in); stopped after the test
terminal         the program `keyboard` on a pseudo-terminal
On failure the output of every node that the test started is shown.
"""

from __future__ import annotations

import inspect
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from keyboard_terminal import Terminal

from valueguide.ros import workspace
from valueguide.testing.launch_processes import Command, Processes
from valueguide.testing.launch_stand_in import find_executable, launch

# A shell that runs the tests in the background has SIGINT ignored, children inherit that, and those that are
# tested to stop on Ctrl-C never would.
signal.signal(signal.SIGINT, signal.default_int_handler)

_HERE = Path(__file__).parent
_FAILED = pytest.StashKey[bool]()
_LOG_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session")
def ros_workspace() -> Path:
    """The built workspace's install folder; builds it first when it is missing or out of date."""
    if not workspace.is_built():
        workspace.build(quiet=True)
    return workspace.INSTALL


@pytest.fixture(scope="session")
def ros_environment(ros_workspace: Path) -> dict[str, str]:
    """The environment of nodes and clients; its ROS_DOMAIN_ID is random, so sessions do not meet."""
    domain = random.SystemRandom().randint(1, 100)
    return workspace.run_environment({"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"})


class Child:
    """A function of a test module, running in a process on the ROS side."""

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any], environment: dict[str, str]):
        if "<locals>" in function.__qualname__:
            raise ValueError(f"{function.__qualname__}: expected a function at the top of a test module")
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "result.json"
        module, call = inspect.getfile(function), json.dumps(arguments)
        line = [
            sys.executable,
            str(_HERE / "ros_client.py"),
            module,
            function.__name__,
            call,
            str(self._result),
        ]
        self.name = function.__name__
        self.process = subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def result(self, timeout: float = 60.0) -> Any:
        """What the function returned. Fails the test, with all that the child printed, when it raised."""
        try:
            printed, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(
                f"{self.name}: not done in {timeout} s\n{self.process.communicate()[0]}", pytrace=False
            )
        if self.process.returncode or not self._result.exists():
            pytest.fail(f"{self.name}: exit status {self.process.returncode}\n{printed}", pytrace=False)
        return json.loads(self._result.read_text())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._folder.cleanup()


class InRos:
    """in_ros(function, timeout=60, **arguments) -> what it returns; in_ros.start(...) -> a `Child`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.children: list[Child] = []

    def start(self, function: Callable[..., Any], **arguments: Any) -> Child:
        """Run it beside the test. Arguments and result must be JSON."""
        self.children.append(Child(function, arguments, self._environment))
        return self.children[-1]

    def __call__(self, function: Callable[..., Any], timeout: float = 60.0, **arguments: Any) -> Any:
        return self.start(function, **arguments).result(timeout)


@pytest.fixture
def in_ros(ros_environment: dict[str, str]) -> Iterator[InRos]:
    runner = InRos(ros_environment)
    yield runner
    for child in runner.children:
        child.close()


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[list[Processes]]:
    """All processes of a test: stopped after it, and their output shown when it failed."""
    running: list[Processes] = []
    yield running
    for processes in running:
        processes.stop()
    if request.node.stash.get(_FAILED, False):
        for processes in running:
            for name, process in processes.process.items():
                lines = processes.log(name).splitlines()[-_LOG_LINES:]
                print(f"---- {name}, exit status {process.returncode}", *lines, sep="\n")


@pytest.fixture
def node(
    ros_environment: dict[str, str], started: list[Processes], tmp_path: Path
) -> Callable[..., Processes]:
    """node("safety_gate", robot="sim") -> Processes; `.named(name)` is its Popen, `.log(f"{name}-1")` a log.

    Keyword arguments are its parameters, except _name, _namespace, _remap ({old: new}), _env ({name: value}).
    """

    def start(executable: str, **settings: Any) -> Processes:
        options = {key: settings.pop(key) for key in list(settings) if key.startswith("_")}
        name = options.get("_name", executable)
        folder = tmp_path / f"node-{len(started)}"
        folder.mkdir()
        parameters = folder / "parameters.yaml"
        parameters.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
        prefixes = [Path(prefix) for prefix in ros_environment["AMENT_PREFIX_PATH"].split(":")]
        line = [str(find_executable("valueguide_nodes", executable, prefixes)), "--ros-args"]
        line += ["-r", f"__node:={name}"]
        if settings:
            line += ["--params-file", str(parameters)]
        if "_namespace" in options:
            line += ["-r", f"__ns:=/{options['_namespace']}"]
        for old, new in options.get("_remap", {}).items():
            line += ["-r", f"{old}:={new}"]
        environment = {**ros_environment, **options.get("_env", {})}
        started.append(Processes([Command(f"{name}-1", line)], environment, folder))
        return started[-1]

    return start


@pytest.fixture
def launched(
    ros_environment: dict[str, str], started: list[Processes], tmp_path: Path
) -> Callable[..., Processes]:
    """launched("sim.launch.py", robot="sim", ...) -> Processes, through the stand-in for `ros2 launch`."""

    def start(file: str, **arguments: Any) -> Processes:
        path = Path(file) if "/" in file else workspace.ROOT / "launch" / file
        texts = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in arguments.items()
        }
        started.append(launch(path, texts, ros_environment, tmp_path / f"launch-{len(started)}"))
        return started[-1]

    return start


@pytest.fixture
def terminal(ros_workspace: Path, ros_environment: dict[str, str]) -> Iterator[Terminal]:
    program = ros_workspace / "valueguide_nodes" / "lib" / "valueguide_nodes" / "keyboard"
    opened = Terminal(program, ros_environment)
    yield opened
    opened.close()
