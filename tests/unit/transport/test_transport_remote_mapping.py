"""From our observations to a server's keys and back to our actions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from valueguide.config.robot import load_robot
from valueguide.errors import ConfigError, DataError
from valueguide.transport.remote_mapping import (
    SERVERS,
    Action,
    Number,
    Picture,
    RobotFacts,
    ServerConfig,
    check_robot,
    load_server,
    read_actions,
    request_parts,
)
from valueguide.types import Observation

CONFIG = ServerConfig(
    dialect="openpi",
    horizon=2,
    state_names=["reach", "gripper"],
    actions=[Action("dx", "actions", 1, scale=0.01), Action("grip", "hand", scale=-0.5, offset=0.5)],
    pictures={"image": Picture("front", width=8, height=4)},
    state={"state": [Number("gripper", -1.0, 1.0), Number(offset=7.0), Number("reach", 100.0)]},
    instruction="prompt",
)
ROBOT = RobotFacts(["dx", "grip"], 2, {"front": (4, 4), "wrist": (4, 4)}, environment_state_size=3)


def _observation(image: np.ndarray | None = None) -> Observation:
    pixels = np.full((4, 4, 3), 200, np.uint8) if image is None else image
    return Observation({"front": pixels}, np.array([0.25, 0.75], np.float32), "go")


@pytest.mark.parametrize("path", sorted(SERVERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_files_fit_the_robots_that_they_are_named_after(path: Path) -> None:
    name = path.stem.partition("-")[0]
    robot = load_robot("sim" if name == "wxai" else name)
    facts = RobotFacts(
        robot.action.names,
        len(robot.state),
        {camera: (c.height, c.width) for camera, c in robot.cameras.items()},
        None if robot.environment_state_topic else 0,
        robot.rate_hz,
    )
    check_robot(load_server(path.stem), facts, path.stem)
    assert load_server(str(path)) == load_server(path.stem)


def test_a_request_by_hand() -> None:
    """theirs = scale * ours + offset; the 4x4 picture stands in the middle of 8x4, with black beside it."""
    parts = request_parts(CONFIG, _observation())
    assert parts["prompt"] == "go"
    assert parts["state"].dtype == np.float32 and parts["state"].tolist() == [0.25, 7.0, 25.0]
    assert parts["image"].shape == (4, 8, 3) and parts["image"][0, :, 0].tolist() == [0, 0, *[200] * 4, 0, 0]


def test_pictures_are_stretched_turned_and_averaged_on_request() -> None:
    stripes = np.zeros((4, 4, 3), np.uint8)
    stripes[:, ::2, 1] = 100
    stretched = replace(CONFIG, pictures={"i": Picture("front", 2, 2, pad=False, layout="chw")})
    image = request_parts(stretched, _observation(stripes))["i"]
    assert image.shape == (3, 2, 2) and image.flags.c_contiguous
    assert (image[1] == 50).all()  # area averages: no stripe survives as an alias
    as_it_is = replace(CONFIG, pictures={"i": Picture("front")})
    assert np.array_equal(request_parts(as_it_is, _observation(stripes))["i"], stripes)


def test_privileged_state_has_its_declared_size() -> None:
    config = replace(CONFIG, environment_state="world", environment_state_size=3, state_dtype="float64")
    world = np.arange(3, dtype=np.float32)
    parts = request_parts(config, replace(_observation(), environment_state=world))
    assert parts["world"].tolist() == [0, 1, 2] and parts["world"].dtype == np.float64
    for wrong in (None, world[:2], world * np.nan):
        with pytest.raises(DataError, match="environment_state: value: expected 3 finite numbers"):
            request_parts(config, replace(_observation(), environment_state=wrong))


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (replace(_observation(), images={}), "camera: expected 'front', found no images"),
        (_observation(np.zeros((4, 4), np.uint8)), "expected uint8 (H, W, 3)"),
        (_observation(np.zeros((4, 4, 3), np.float32)), "expected uint8 (H, W, 3)"),
        (_observation(np.zeros((0, 4, 3), np.uint8)), "expected uint8 (H, W, 3)"),
        (replace(_observation(), state=np.zeros(3, np.float32)), "state: value: expected 2 finite numbers"),
        (replace(_observation(), state=np.array([0, np.nan], np.float32)), "expected 2 finite numbers"),
    ],
)
def test_observations_that_do_not_fit_are_said(observation: Observation, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        request_parts(CONFIG, observation)


def test_a_reply_by_hand() -> None:
    """Row 0 of `actions` holds (unused, 3): dx = 0.01 * 3. `hand` -1 is open: 0.5 - 0.5 * -1 = 1."""
    reply = {"actions": np.array([[9, 3], [9, -2], [9, 8]], np.float64), "hand": np.array([-1, 1, 0])}
    chunks = read_actions(CONFIG, reply, None, "server")
    assert chunks.dtype == np.float32 and np.allclose(chunks, [[[0.03, 1], [-0.02, 0]]])
    batch = {"actions": np.stack([reply["actions"]] * 3), "hand": np.array([[-1, 1], [0, 0], [1, -1]])}
    assert np.allclose(read_actions(CONFIG, batch, 3, "server")[2], [[0.03, 0], [-0.02, 1]])


@pytest.mark.parametrize(
    ("changed", "rows", "words"),
    [
        ({"hand": None}, None, "hand: value: expected an array of numbers, found NoneType"),
        ({"hand": [1.0, 2.0]}, None, "expected an array of numbers, found list"),
        ({"hand": np.array([True, False])}, None, "expected an array of numbers, found bool"),
        ({"hand": np.array([1.0])}, None, "hand: shape: expected 2 steps or more, found (1,)"),
        ({"hand": np.zeros((1, 2, 1))}, None, "found (1, 2, 1)"),
        ({"hand": np.float64(1)}, None, "expected an array of numbers"),
        ({"hand": np.zeros((2, 2))}, 3, "expected 2 steps or more in each of 3 rows"),
        ({"actions": np.zeros((2, 1))}, None, "actions: numbers an action: expected more than 1 for dx"),
        ({"hand": np.array([0.0, np.inf])}, None, "actions: expected finite numbers"),
        ({"hand": np.array([0.0, 1e300])}, None, "actions: expected finite numbers"),
    ],
)
def test_replies_that_do_not_fit_are_said(changed: dict[str, Any], rows: int | None, words: str) -> None:
    shape = (2, 2) if rows is None else (rows, 2, 2)
    good: dict[str, Any] = {"actions": np.zeros(shape), "hand": np.zeros(shape[:-1])}
    with np.errstate(over="ignore"), pytest.raises(DataError, match=re.escape(words)):
        read_actions(CONFIG, good | changed, rows, "server")


def test_a_reply_is_a_map() -> None:
    with pytest.raises(DataError, match="server: reply: expected a map, found list"):
        read_actions(CONFIG, [1], None, "server")


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        (replace(ROBOT, action_names=["grip", "dx"]), "actions: expected the robot's ['grip', 'dx']"),
        (replace(ROBOT, state_size=3), "numbers in the state: expected the robot's 3, found 2"),
        (replace(ROBOT, cameras={}), "pictures image: expected a camera of []"),
        (replace(ROBOT, rate_hz=10.0), "rate_hz: expected the robot's 10.0, found 5.0"),
        (replace(ROBOT, environment_state_size=0), "environment_state_size: expected the robot's 0, found 3"),
    ],
)
def test_robots_that_do_not_fit_are_said(robot: RobotFacts, words: str) -> None:
    config = replace(CONFIG, rate_hz=5.0, environment_state="world", environment_state_size=3)
    check_robot(config, ROBOT, "server")
    check_robot(config, replace(ROBOT, environment_state_size=None, rate_hz=5.0), "server")
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_robot(config, robot, "server")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"horizon": 0}, "horizon: expected 1 or more"),
        ({"actions": []}, "actions: expected 1 or more"),
        ({"timeout_s": 0.0}, "timeout_s: expected more than 0 seconds"),
        ({"first_timeout_s": float("nan")}, "first_timeout_s"),
        ({"reply_bytes": 1 << 40}, "reply_bytes: expected 1 to"),
        ({"dialect": "grpc"}, "dialect"),
        ({"wings": 2}, "wings"),
        ({"state": {"s": [{"name": "wing"}]}}, "state s: name: expected ['reach', 'gripper'], found 'wing'"),
        ({"actions": [{"name": "dx", "key": "a", "index": -1}]}, "actions.index: expected 0 or more"),
        ({"pictures": {"i": {"camera": "front", "width": -8}}}, "picture size"),
        ({"pictures": {"i": {"camera": "front", "layout": "whc"}}}, "layout"),
    ],
)
def test_files_are_checked_by_field(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    content = {
        "dialect": "groot",
        "horizon": 2,
        "state_names": ["reach", "gripper"],
        "actions": [{"name": "dx", "key": "a"}],
    }
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_server(str(path)).horizon == 2
    path.write_text(yaml.safe_dump(content | changed))
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load_server(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a", "a: [", "", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_server(str(path))
    with pytest.raises(ConfigError, match="expected one of .*franka-groot.*wxai-state-openpi"):
        load_server("nowhere")
