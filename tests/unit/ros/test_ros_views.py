"""The Foxglove layout and the RViz configuration name panels, topics and fields that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MESSAGES = ROOT / "ros_ws" / "src" / "valueguide_msgs" / "msg"
LAYOUT = json.loads((ROOT / "configs" / "ros" / "foxglove_layout.json").read_text())
RVIZ = yaml.safe_load((ROOT / "configs" / "ros" / "valueguide.rviz").read_text())
#: Topics of others: of every ROS graph, and of robot_state_publisher.
FOREIGN = {"/diagnostics", "/robot_description"}


def _topics() -> dict[str, str]:
    """Topic -> type, from the tables of docs/ros.md."""
    rows = re.findall(r"^\| `([\w/<>]+)` \| ([\w/]+)", (ROOT / "docs" / "ros.md").read_text(), re.MULTILINE)
    return {"/" + topic.lstrip("/"): kind for topic, kind in rows}


def _panels(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        assert set(tree) == {"first", "second", "direction", "splitPercentage"}
        assert tree["direction"] in ("row", "column") and 0 < tree["splitPercentage"] < 100
        yield from _panels(tree["first"])
        yield from _panels(tree["second"])


def _check_path(path: str) -> None:
    """/topic.field[0].field must be a field of the topic's message, down to a number, a text or a truth."""
    topic, *fields = path.split(".")
    kind = _topics()[topic].rpartition("/")[2]
    for field in fields:
        name, index = re.fullmatch(r"(\w+)(\[(?:\d+|:)\])?", field).groups()  # type: ignore[union-attr]
        definition = (MESSAGES / f"{kind}.msg").read_text()
        found = re.search(rf"^([\w/]+)(\[\])? {name}\b", definition, re.MULTILINE)
        assert found, f"{path}: {kind} has no {name}"
        assert bool(found.group(2)) == bool(index), (
            f"{path}: {name} is{'' if found.group(2) else ' not'} an array"
        )
        kind = found.group(1)
    assert kind[0].islower(), f"{path} ends at a {kind}"


def test_every_panel_is_placed_once_and_configured() -> None:
    placed = list(_panels(LAYOUT["layout"]))
    assert sorted(placed) == sorted(LAYOUT["configById"])
    kinds = {panel.partition("!")[0] for panel in placed}
    assert kinds == {"3D", "Image", "Plot", "StateTransitions", "DiagnosticSummary", "RawMessages"}
    assert {"globalVariables", "userNodes", "playbackConfig"} < set(LAYOUT)


@pytest.mark.parametrize("panel", LAYOUT["configById"])
def test_panels_show_topics_and_fields_that_exist(panel: str) -> None:
    settings, known = LAYOUT["configById"][panel], set(_topics()) | FOREIGN
    for path in settings.get("paths", ()):
        _check_path(path["value"])
        assert path["timestampMethod"] == "receiveTime"
        assert path.get("enabled", panel.startswith("State")), "a plot's path without it draws nothing"
    for topic in settings.get("topics", ()):
        assert topic in known and settings["topics"][topic]["visible"]
    for key in ("topicToRender", "topicPath"):
        assert settings.get(key, "/diagnostics") in known
    if panel.startswith("Image!"):
        assert _topics()[settings["imageMode"]["imageTopic"]].startswith("sensor_msgs/Image")


def test_rviz_displays_topics_that_exist_with_a_matching_reliability() -> None:
    displays = {entry["Name"]: entry for entry in RVIZ["Visualization Manager"]["Displays"]}
    shown = {"MarkerArray": "visualization_msgs/MarkerArray", "Image": "sensor_msgs/Image",
             "Pose": "geometry_msgs/PoseStamped"}  # fmt: skip
    for entry in displays.values():
        plugin = entry["Class"].rpartition("/")[2]
        if plugin in shown:
            assert _topics()[entry["Topic"]["Value"]] == shown[plugin]
    assert displays["Hand"]["Topic"]["Reliability Policy"] == "Best Effort", "sensors offer no more"
