"""Robot descriptions: every shipped one loads, and a wrong one says file, field, expected and found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from valueguide.config.robot import ROBOTS, decode_robot, load_robot
from valueguide.errors import ConfigError


def content() -> dict[str, Any]:
    return yaml.safe_load((ROBOTS / "sim.yaml").read_text())


@pytest.mark.parametrize("path", sorted(ROBOTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_description_loads_by_name(path: Path) -> None:
    robot = load_robot(path.stem)
    assert robot.name and len(robot.limits.action_low) == len(robot.action.names)


def test_the_simulated_robot_has_the_simulators_action_limits() -> None:
    pytest.importorskip("mujoco")  # absent on a robot's computer
    from sim.arm import ACTION_HIGH, ACTION_LOW, ACTION_NAMES

    robot = load_robot("sim")
    assert tuple(robot.action.names) == ACTION_NAMES
    assert robot.limits.action_low == pytest.approx(ACTION_LOW) and robot.limits.action_high == pytest.approx(
        ACTION_HIGH
    )


def broken(**changes: Any) -> dict[str, Any]:
    return {**content(), **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate_hz": 0.0}, "rate_hz"),
        ({"rate_hz": "fast"}, "rate_hz"),
        ({"colour": "red"}, "colour"),
        ({"state": ["pose.w"]}, "state"),
        ({"state": ["position.elbow"]}, "elbow"),
        ({"pose_topic": ""}, "pose_topic"),
        ({"action": {"kind": "joint_torque", "names": ["a"]}}, "joint_torque"),
        ({"action": {"kind": "joint_position", "names": ["a"]}}, "limits.action_low"),
        ({"limits": {"action_low": [0.0], "action_high": [1.0, 2.0]}}, "action_low"),
        ({"watchdog": {"command_s": -1.0}}, "command_s"),
        ({"output": {"kind": "carrier_pigeon"}}, "carrier_pigeon"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        decode_robot(broken(**changes), "my.yaml")
    assert "my.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_lists_the_known_robots() -> None:
    with pytest.raises(ConfigError, match="robot nonesuch: expected one of .*sim"):
        load_robot("nonesuch")


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"robot\.yaml"):
        load_robot(str(path))
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="a mapping"):
        load_robot(str(path))


def test_what_adds_up_has_its_limits_a_gripper_and_positions_have_none() -> None:
    robot = load_robot("sim")
    low, high = robot.increments if robot.increments is not None else (None, None)
    assert low[:4] == pytest.approx(robot.limits.action_low[:4]) and low[4] == 0
    assert high[:4] == pytest.approx(robot.limits.action_high[:4]) and high[4] == 0
    assert load_robot("franka").increments is None
