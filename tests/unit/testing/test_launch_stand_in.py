"""The stand-in for ros2 launch: what it reads as the real one does, and that everything else raises."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from valueguide.errors import ConfigError
from valueguide.testing import launch_stand_in
from valueguide.testing.launch_processes import Command

_IMPORTS = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition, UnlessCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EqualsSubstitution, LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

def node(**more):
    return Node(package="pkg", executable="exe", **{"name": "n", **more})

def generate_launch_description():
    return LaunchDescription([
"""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    folder = tmp_path / "install"
    (folder / "lib" / "pkg").mkdir(parents=True)
    (folder / "lib" / "pkg" / "exe").touch()
    return folder


@pytest.fixture
def plan(tmp_path: Path, prefix: Path) -> Callable[..., list[Command]]:
    """plan(entities as text, name=value, ...) -> the commands of a launch file with them."""

    def make(entities: str, **arguments: str) -> list[Command]:
        path = tmp_path / "some.launch.py"
        path.write_text(f"{_IMPORTS}{entities}\n    ])\n")
        return launch_stand_in.plan(path, arguments, [prefix], tmp_path)

    return make


def _parameters(command: Command) -> dict[str, object]:
    path = command.line[command.line.index("--params-file") + 1]
    return yaml.safe_load(Path(path).read_text())["/**"]["ros__parameters"]


def test_a_node_becomes_its_installed_executable_with_ros_arguments(plan, prefix: Path) -> None:
    (command,) = plan(
        'node(namespace="a/", remappings=[("/clock", "clock")], arguments=["--fast"], ros_arguments=["-x"])'
    )
    assert command.name == "n-1"
    assert command.line == [
        str(prefix / "lib/pkg/exe"),
        *("--fast", "--ros-args", "-x", "-r", "__node:=n", "-r", "__ns:=/a", "-r", "/clock:=clock"),
    ]


def test_no_namespace_no_remapping_of_it(plan) -> None:
    (command,) = plan('node(namespace=""), ')
    assert not any("__ns" in word for word in command.line)


def test_arguments_reach_nodes_and_defaults_fill_the_rest(plan) -> None:
    entities = """
        DeclareLaunchArgument("a", default_value="one"),
        DeclareLaunchArgument("b", default_value=LaunchConfiguration("a")),
        node(name=LaunchConfiguration("b")),
    """
    assert plan(entities)[0].name == "one-1"
    assert plan(entities, a="two")[0].name == "two-1"


def test_parameters_have_the_types_of_the_real_launch(plan) -> None:
    entities = """
        DeclareLaunchArgument("x", default_value="4"),
        DeclareLaunchArgument("empty", default_value=""),
        node(parameters=[{
            "plain": True,
            "as_yaml": LaunchConfiguration("x"),
            "text": ParameterValue(LaunchConfiguration("x"), value_type=str),
            "empty": ParameterValue(LaunchConfiguration("empty"), value_type=str),
            "number": ParameterValue(LaunchConfiguration("x"), value_type=float),
        }]),
    """
    expected = {"plain": True, "as_yaml": 4, "text": "4", "empty": "", "number": 4.0}
    found = _parameters(plan(entities)[0])
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {k: type(v) for k, v in expected.items()}


def test_a_parameter_file_is_passed_on(plan) -> None:
    (command,) = plan('node(parameters=["/etc/some.yaml"])')
    assert command.line[-2:] == ["--params-file", "/etc/some.yaml"]


@pytest.mark.parametrize(
    ("condition", "starts"),
    [
        ('IfCondition(LaunchConfiguration("x"))', {"true", "1", "True"}),
        ('UnlessCondition(LaunchConfiguration("x"))', {"false", "0"}),
        ('IfCondition(EqualsSubstitution(LaunchConfiguration("x"), "true"))', {"true"}),
        ('IfCondition(NotEqualsSubstitution(LaunchConfiguration("x"), "0"))', {"true", "1", "True", "false"}),
    ],
)
def test_conditions_are_evaluated(plan, condition: str, starts: set[str]) -> None:
    entities = f'DeclareLaunchArgument("x"), node(condition={condition})'
    found = {x for x in ("true", "1", "True", "false", "0") if plan(entities, x=x)}
    assert found == starts


def test_an_included_file_sees_the_arguments_and_those_set_for_it(plan, tmp_path: Path) -> None:
    inner = tmp_path / "inner.launch.py"
    inner.write_text(
        f"""{_IMPORTS}
        DeclareLaunchArgument("given", default_value="no"),
        DeclareLaunchArgument("fixed", default_value="no"),
        node(name=[LaunchConfiguration("given"), "_", LaunchConfiguration("fixed")]),
        ])"""
    )
    entities = f"""
        node(name="first"),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource({str(inner)!r}), launch_arguments=[("fixed", "yes")]
        ),
    """
    assert [command.name for command in plan(entities, given="yes")] == ["first-1", "yes_yes-2"]
    with pytest.raises(ConfigError, match="expected some of given, found fixed"):
        plan(entities, fixed="other")


@pytest.mark.parametrize(
    ("entities", "arguments", "message"),
    [
        ('DeclareLaunchArgument("a", default_value="")', {"b": "1"}, "expected some of a, found b"),
        ('DeclareLaunchArgument("a")', {}, "launch argument a: expected a value, found none"),
        ('DeclareLaunchArgument("a", choices=["x", "y"])', {"a": "z"}, "a: expected one of x, y, found 'z'"),
        ('node(name=LaunchConfiguration("b"))', {}, "expected a launch argument 'b'"),
        ('node(condition=IfCondition("maybe"))', {}, "a condition: expected true or false, found 'maybe'"),
        (
            'Node(package="pkg", executable="gone", name="n")',
            {},
            "pkg: expected the installed executable 'gone'",
        ),
        ('node(parameters=[{"a": object()}])', {}, "a parameter: expected a plain value"),
        ('node(parameters=[{"a": ParameterValue("x", value_type=int)}])', {}, "expected int, found 'x'"),
        ("object()", {}, "object is not in it"),
        ("__import__('launch.actions').actions.GroupAction()", {}, "launch.actions.GroupAction is not in it"),
        ("__import__('launch.events')", {}, "No module named 'launch.events'"),
    ],
)
def test_everything_else_raises(plan, entities: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(entities, **arguments)


@pytest.mark.parametrize("more", ["respawn=True", 'prefix="gdb"'])
def test_an_argument_of_node_that_is_not_kept_raises(plan, more: str) -> None:
    with pytest.raises(TypeError, match=more.split("=")[0]):
        plan(f"node({more})")


def test_a_missing_name_in_an_import_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.launch.py"
    path.write_text("from launch.actions import TimerAction")
    with pytest.raises(ConfigError, match="launch.actions.TimerAction is not in it"):
        launch_stand_in.read(path)


def test_a_file_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a Python launch file"):
        launch_stand_in.read(tmp_path / "gone.launch.py")


def test_import_launch_is_left_as_it_was(plan) -> None:
    before = {name for name in sys.modules if name.startswith("launch")}
    plan("node()")
    assert {name for name in sys.modules if name.startswith("launch")} == before
