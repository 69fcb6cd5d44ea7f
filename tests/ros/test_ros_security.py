"""SROS2: no node runs unprotected once security is asked for, and the graph keeps within its policy."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from valueguide.ros import workspace

pytestmark = pytest.mark.ros

POLICY = workspace.ROOT / "configs" / "ros" / "sros2_policy.xml"
KEYS = (
    "identity_ca.cert.pem",
    "cert.pem",
    "key.pem",
    "permissions_ca.cert.pem",
    "governance.p7s",
    "permissions.p7s",
)
GRAPH = ["robot", "policy", "reranker", "executor", "safety_gate", "task", "progress", "teleop", "markers"]


def _keystore(folder: Path) -> Path:
    """A keystore in which every file is there, and none is a key."""
    enclave = folder / "enclaves" / "valueguide" / "safety_gate"
    enclave.mkdir(parents=True)
    for name in KEYS:
        (enclave / name).write_text("not a key\n")
    return folder


@pytest.mark.parametrize("keystore", ["none", "empty", "without keys"])
def test_a_node_that_cannot_be_secured_does_not_run(node, tmp_path: Path, keystore: str) -> None:
    environment = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}
    if keystore != "none":
        folder = _keystore(tmp_path / "keys") if keystore == "without keys" else tmp_path
        environment["ROS_SECURITY_KEYSTORE"] = str(folder)
        environment["ROS_SECURITY_ENCLAVE_OVERRIDE"] = "/valueguide/safety_gate"
    gate = node("safety_gate", _env=environment)
    assert gate.named("safety_gate").wait(timeout=60) == 1
    gate.stop()
    last = gate.log("safety_gate-1").strip().splitlines()[-1]
    assert last.startswith("safety_gate: ")
    assert {"none": "rcl", "empty": "SECURITY ERROR", "without keys": "security"}[keystore] in last


def _used(nodes: list[str]) -> dict[str, dict[str, list[str]]]:
    """node -> what it publishes, subscribes and offers."""
    from ros_client import Client

    with Client() as client:
        client.active(*nodes, timeout=300)
        client.spin(1.0)
        asked = {
            "publish": client.node.get_publisher_names_and_types_by_node,
            "subscribe": client.node.get_subscriber_names_and_types_by_node,
            "reply": client.node.get_service_names_and_types_by_node,
        }
        return {
            node: {rule: [name for name, _ in ask(node, "/")] for rule, ask in asked.items()}
            for node in nodes
        }


def _patterns(profile: Any, rule: str) -> list[str]:
    own = profile.get("node")
    names = [item.text for group in profile if group.get(rule) == "ALLOW" for item in group]
    return [f"/{own}{name[1:]}" if name[0] == "~" else f"/{name.lstrip('/')}" for name in names]


@pytest.mark.slow
@pytest.mark.whole_graph
@pytest.mark.timeout(600)
def test_every_node_of_the_graph_keeps_within_its_policy(launched, in_ros, tmp_path: Path) -> None:
    light = {"policy": "wxai-state", "critic": "wxai-state"}
    graph = launched("sim.launch.py", composed=False, record=tmp_path / "bags", **light)
    used = in_ros(_used, timeout=400, nodes=[*GRAPH, "recorder"])
    assert not graph.died()
    tree = etree.parse(str(POLICY))
    tree.xinclude()
    for node, names in used.items():
        enclave = "sim_robot" if node == "robot" else node
        profile = tree.find(f".//enclave[@path='/valueguide/{enclave}']/profiles/profile")
        executes = [f"/{item.text}/_action/*" for item in profile.iterfind("actions[@execute]/action")]
        for rule, found in names.items():
            patterns = _patterns(profile, rule) + (executes if rule != "subscribe" else [])
            beyond = [name for name in found if not any(fnmatch(name, pattern) for pattern in patterns)]
            assert not beyond, f"{node}: the policy does not let it {rule} {beyond}"
