"""`valueguide ros`: arguments, files and environments, without starting anything."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueguide.cli import main, ros
from valueguide.errors import ConfigError
from valueguide.ros import workspace

_NAMES = st.text(st.characters(exclude_characters=":="), min_size=1)


@given(st.dictionaries(_NAMES, st.text()))
def test_arguments_are_read_as_written(arguments: dict[str, str]) -> None:
    assert ros.parse_arguments([f"{name}:={value}" for name, value in arguments.items()]) == arguments


@given(st.text().filter(lambda text: ":=" not in text))
def test_anything_else_is_one_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match="expected name:=value"):
        ros.parse_arguments([text])


def test_a_launch_file_by_name_or_path(tmp_path: Path) -> None:
    assert ros.launch_file("sim.launch.py") == workspace.ROOT / "launch" / "sim.launch.py"
    own = tmp_path / "own.launch.py"
    own.touch()
    assert ros.launch_file(str(own)) == own
    with pytest.raises(ConfigError, match="robot.launch.py.*found 'nope'"):
        ros.launch_file("nope")


def test_a_shell_gets_what_ros_needs_and_only_what_it_lacks() -> None:
    wanted = {
        "AMENT_PREFIX_PATH": "/ws a:/prefix",
        "ROS_DOMAIN_ID": "3",
        "HOME": "/root",
        "LD_LIBRARY_PATH": f"/ws/lib:{sys.prefix}/lib",
    }
    lines = ros.export_lines(wanted, {"ROS_DOMAIN_ID": "3"})
    assert [shlex.split(line) for line in lines] == [
        ["export", "AMENT_PREFIX_PATH=/ws a:/prefix"],
        ["export", "LD_LIBRARY_PATH=/ws/lib"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "nope.launch.py"], "expected a path or one of"),
        (["launch", "sim.launch.py", "task=pick_can"], "expected name:=value, found 'task=pick_can'"),
        (["lunch"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input_ends_with_2(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["ros", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_show_args_lists_defaults_without_a_built_workspace(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(workspace, "INSTALL", tmp_path)
    with pytest.raises(SystemExit) as end:
        main.main(["ros", "launch", "robot.launch.py", "--show-args"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "[required]" in shown and "['guided']" in shown and "['$(robot)']" in shown
