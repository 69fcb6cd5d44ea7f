"""The SROS2 policy names every node that a launch file starts, and keeps commanding to the safety gate."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from valueguide.config.robot import ROBOTS, load_robot
from valueguide.ros import workspace
from valueguide.ros.observe import observation_topics
from valueguide.testing import launch_stand_in

etree = pytest.importorskip("lxml.etree")
POLICY = workspace.ROOT / "configs" / "ros" / "sros2_policy.xml"
SETUP = workspace.WORKSPACE / "src" / "valueguide_nodes" / "setup.py"
#: Plays recordings where no security is wanted; see docs/security-ros.md.
UNSECURED = {"replay"}
_RULES = {
    "topics": {"publish", "subscribe"},
    "services": {"reply", "request"},
    "actions": {"call", "execute"},
}


@pytest.fixture(scope="module")
def policy() -> etree._Element:
    tree = etree.parse(str(POLICY))
    tree.xinclude()
    return tree.getroot()


def allowed(policy: etree._Element, enclave: str, rule: str) -> set[str]:
    """The names that an enclave may publish, subscribe, reply …"""
    profile = policy.find(f".//enclave[@path='/valueguide/{enclave}']/profiles/profile")
    return {item.text for group in profile if group.get(rule) == "ALLOW" for item in group}


def enclaves(policy: etree._Element) -> set[str]:
    return {item.get("path").removeprefix("/valueguide/") for item in policy.iter("enclave")}


def test_it_has_the_form_that_ros2_security_reads(policy) -> None:
    assert policy.tag == "policy" and policy.get("version") == "0.2.0"
    assert [child.tag for child in policy] == ["enclaves"]
    for profile in policy.iter("profile"):
        assert set(profile.attrib) <= {"ns", "node", "{http://www.w3.org/XML/1998/namespace}base"}
        groups = [child for child in profile if isinstance(child.tag, str)]
        assert groups
        for group in groups:
            rules = {k: v for k, v in group.attrib.items() if not k.startswith("{")}
            assert rules and set(rules) <= _RULES[group.tag] and set(rules.values()) == {"ALLOW"}
            assert {item.tag for item in group} == {group.tag.removesuffix("s")}


def test_every_executable_has_an_enclave(policy) -> None:
    nodes = set(re.findall(r'^    "(\w+)",$', SETUP.read_text(), re.M))
    assert {"policy", "safety_gate"} < nodes
    assert enclaves(policy) == (nodes - UNSECURED) | {"shadow_reranker", "operator"}


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("sim", {"composed": "false", "record": "x"}),
        ("robot", {"robot": "wxai"}),
        ("robot", {"robot": "sim"}),
        ("learner", {"record": "x", "out": "y"}),
    ],
)
def test_launched_nodes_know_their_enclave_and_name(policy, tmp_path: Path, file: str, arguments) -> None:
    folder = tmp_path / "lib" / "valueguide_nodes"
    folder.mkdir(parents=True)
    for name in re.findall(r'^    "(\w+)",$', SETUP.read_text(), re.M):
        (folder / name).touch()
    path = workspace.ROOT / "launch" / f"{file}.launch.py"
    for command in launch_stand_in.plan(path, arguments, [tmp_path], tmp_path):
        line = command.line
        enclave = line[line.index("--enclave") + 1]
        profile = policy.find(f".//enclave[@path='{enclave}']/profiles/profile")
        assert profile is not None, f"{command.name}: {enclave} is not in the policy"
        assert f"__node:={profile.get('node')}" in line


def test_only_the_safety_gate_may_command_a_robot(policy) -> None:
    motion = ("command", "fr3_arm_controller/joint_trajectory", "gripper/joint_trajectory")
    for name in motion:
        may = {e for e in enclaves(policy) if any(fnmatch(name, p) for p in allowed(policy, e, "publish"))}
        assert may == {"safety_gate"}, name


def test_only_policy_and_reranker_may_plan(policy) -> None:
    may = {e for e in enclaves(policy) if any(fnmatch("chunk", p) for p in allowed(policy, e, "publish"))}
    assert may == {"policy", "reranker"}


def test_what_a_version_in_shadow_would_do_may_be_told_and_is_heard_by_no_node_that_acts(policy) -> None:
    for enclave in ("policy", "reranker"):
        assert "shadow_decision" in allowed(policy, enclave, "publish")
    hears = {
        e
        for e in enclaves(policy)
        if any(fnmatch("shadow_decision", p) for p in allowed(policy, e, "subscribe"))
    }
    assert hears == {"recorder", "operator"}


@pytest.mark.parametrize("robot", sorted(path.stem for path in ROBOTS.glob("*.yaml")))
def test_the_topics_of_every_shipped_robot_are_allowed(policy, robot: str) -> None:
    config = load_robot(robot)
    seen = {name for name, _ in observation_topics(config, bool(config.environment_state_topic)).values()}
    sent = {name for name in (config.output.topic, config.output.gripper_topic) if name}
    felt = {name for name in (config.joints.topic, config.pose_topic, config.wrench_topic) if name}
    for enclave, rule, names in (
        ("policy", "subscribe", seen),
        ("reranker", "subscribe", seen),
        ("markers", "subscribe", seen - {config.environment_state_topic}),
        ("safety_gate", "publish", sent),
        ("safety_gate", "subscribe", felt),
    ):
        patterns = allowed(policy, enclave, rule)
        missing = {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)}
        assert not missing, f"{enclave} may not {rule} {missing}"
