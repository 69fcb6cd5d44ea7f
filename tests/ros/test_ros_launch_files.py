"""The launch files say what they take, and start the nodes asked for with parameters that these know."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from valueguide.errors import ConfigError
from valueguide.ros import workspace
from valueguide.testing import launch_stand_in
from valueguide.testing.launch_processes import Command

pytestmark = pytest.mark.ros

FILES = sorted(path.name for path in (workspace.ROOT / "launch").glob("*.launch.py"))
GRAPH = ["policy", "executor", "safety_gate", "task", "progress", "teleop", "markers"]
#: What starts every node that any launch file can start.
EVERYTHING: list[tuple[str, dict[str, str]]] = [
    ("sim.launch.py", {"record": "/tmp/bags", "composed": "false"}),
    ("robot.launch.py", {"robot": "wxai"}),
    ("learner.launch.py", {"record": "/tmp/bags", "out": "/tmp/learner"}),
    ("replay.launch.py", {"bag": "/tmp/bag"}),
    ("replay.launch.py", {"bag": "/tmp/bag", "composed": "false", "record": "/tmp/bags"}),
]


@pytest.fixture
def plan(ros_environment: dict[str, str], tmp_path: Path) -> Any:
    prefixes = [Path(prefix) for prefix in ros_environment["AMENT_PREFIX_PATH"].split(":")]

    def make(file: str, **arguments: str) -> list[Command]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))  # of each plan's own, for parameter files have names
        return launch_stand_in.plan(workspace.ROOT / "launch" / file, arguments, prefixes, folder)

    return make


def _names(commands: list[Command]) -> list[str]:
    return [command.name.rsplit("-", 1)[0] for command in commands]


def _parameters(command: Command) -> dict[str, Any]:
    path = command.line[command.line.index("--params-file") + 1]
    return yaml.safe_load(Path(path).read_text())["/**"]["ros__parameters"]


def _declared(executables: list[str]) -> dict[str, dict[str, str]]:
    """executable -> the name and type of every parameter that its node declares."""
    import importlib

    from valueguide_nodes.base import COMMON, VgNode

    found = {}
    for executable in executables:
        module = importlib.import_module(f"valueguide_nodes.{executable}")
        (node,) = [
            item
            for item in vars(module).values()
            if isinstance(item, type) and issubclass(item, VgNode) and item.__module__ == module.__name__
        ]
        declared = {p.name: type(p.default).__name__ for p in (*COMMON, *node.PARAMETERS)}
        found[executable] = {**declared, "use_sim_time": "bool"}
    return found


def test_the_four_files_are_there_and_installed(ros_workspace) -> None:
    assert {"sim.launch.py", "robot.launch.py", "learner.launch.py", "replay.launch.py"} <= set(FILES)
    installed = ros_workspace / "valueguide_bringup" / "share" / "valueguide_bringup" / "launch"
    assert sorted(path.name for path in installed.glob("*.launch.py")) == FILES


@pytest.mark.parametrize("file", FILES)
def test_every_argument_is_documented(file: str) -> None:
    description = launch_stand_in.read(workspace.ROOT / "launch" / file)
    arguments = launch_stand_in.declared(description)
    assert arguments and all(len(a.description) > 10 or a.choices for a in arguments.values())
    assert all(argument.description for argument in arguments.values())


@pytest.mark.parametrize("file", ["sim.launch.py", "robot.launch.py"])
def test_the_arguments_asked_for_are_there(file: str) -> None:
    arguments = launch_stand_in.declared(launch_stand_in.read(workspace.ROOT / "launch" / file))
    wanted = {"robot", "policy", "critic", "k", "beta", "execute", "mode", "record", "shadow", "composed"}
    assert wanted | {"namespace", "prefetch"} <= set(arguments)
    assert ({"task", "seed", "speed"} if file == "sim.launch.py" else {"use_sim_time"}) <= set(arguments)


def test_nodes_declare_every_parameter_that_is_set_and_with_its_type(plan, in_ros) -> None:
    commands = [command for file, arguments in EVERYTHING for command in plan(file, **arguments)]
    declared = in_ros(_declared, executables=sorted({Path(c.line[0]).name for c in commands}))
    for command in commands:
        known = declared[Path(command.line[0]).name]
        for name, value in _parameters(command).items():
            assert known.get(name) == type(value).__name__, f"{command.name}: parameter {name}={value!r}"


def test_sim_starts_the_graph_and_all_but_the_simulator_follow_its_clock(plan) -> None:
    commands = plan("sim.launch.py")
    assert _names(commands) == ["robot", *GRAPH]
    assert {c.name: _parameters(c)["use_sim_time"] for c in commands} == {
        c.name: c.name != "robot-1" for c in commands
    }


def test_arguments_reach_the_nodes(plan) -> None:
    commands = {
        command.name.rsplit("-", 1)[0]: _parameters(command)
        for command in plan(
            "sim.launch.py",
            **{"task": "pick_can", "seed": "3", "speed": "2", "policy": "p", "critic": "c", "k": "4"},
            **{
                "beta": "1",
                "execute": "2",
                "mode": "base",
                "prefetch": "false",
                "record": "r",
                "critic_versions": "v",
                "shadow": "true",
                "help": "h",
                "server": "tcp://127.0.0.1:1",
                "server_timeout_s": "2",
            },
        )
    }
    wanted = {
        "robot": {"task": "pick_can", "seed": 3, "speed": 2.0},
        "policy": {
            "policy": "p",
            "critic": "c",
            "k": 4,
            "beta": 1.0,
            "execute": 2,
            "shadow": True,
            "critic_versions": "v",
            "server": "tcp://127.0.0.1:1",
            "server_timeout_s": 2.0,
        },  # fmt: skip
        "executor": {"prefetch": False, "execute": 2, "help": "h"},
        "task": {"mode": "base"},
        "recorder": {"out": "r"},
    }
    assert {n: {k: commands[n][k] for k in values} for n, values in wanted.items()} == wanted
    assert commands["policy"]["rerank"] == "inline"


def test_composed_or_apart(plan) -> None:
    apart = plan("sim.launch.py", composed="false")
    assert _names(apart) == ["robot", "policy", "reranker", *GRAPH[1:]]
    assert _parameters(apart[1])["rerank"] == "remote"


def test_models_may_run_on_another_computer(plan) -> None:
    assert _names(plan("sim.launch.py", composed="elsewhere")) == ["robot", *GRAPH[1:]]


@pytest.mark.parametrize(
    ("robot", "program", "sim_time"),
    [("wxai", "wxai_robot", False), ("sim", "sim_robot", True), ("ur5e", "", False), ("franka", "", False)],
)
def test_the_robot_brings_its_driver(plan, robot: str, program: str, sim_time: bool) -> None:
    commands = plan("robot.launch.py", robot=robot)
    drivers = [Path(c.line[0]).name for c in commands if c.name.startswith("robot-")]
    assert drivers == ([program] if program else [])
    assert _names(commands)[len(drivers) :] == GRAPH
    assert _parameters(commands[-1])["robot"] == robot
    assert _parameters(commands[-1])["use_sim_time"] is sim_time


def test_a_description_of_ones_own_can_name_its_driver(plan) -> None:
    commands = plan("robot.launch.py", robot="/lab/left.yaml", driver="wxai", address="10.0.0.7")
    assert Path(commands[0].line[0]).name == "wxai_robot"
    assert _parameters(commands[0]) == {"robot": "/lab/left.yaml", "address": "10.0.0.7"}


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("sim.launch.py", {"tusk": "x"}, "found tusk"),
        ("sim.launch.py", {"mode": "fast"}, "mode: expected one of guided, base, shadow, found 'fast'"),
        ("sim.launch.py", {"k": "many"}, "expected int, found 'many'"),
        ("robot.launch.py", {}, "launch argument robot: expected a value"),
        ("replay.launch.py", {}, "launch argument bag: expected a value"),
    ],
)
def test_bad_arguments_are_one_clear_error(plan, file: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(file, **arguments)


def _shadow_names() -> dict[str, list[str]]:
    from ros_client import Client

    with Client() as client:
        client.active("shadow_reranker", timeout=60)
        node = client.node

        def publishes() -> list[str]:
            return [name for name, _ in node.get_publisher_names_and_types_by_node("shadow_reranker", "/")]

        client.until(lambda: "/shadow/decision" in publishes(), "publisher of shadow/decision")
        for name in ("load_critic", "rollback_critic", "set_shadow"):  # they are found one by one
            client.until(lambda name=name: node.count_services(f"/shadow/{name}"), f"service shadow/{name}")
        services = [name for name, _ in node.get_service_names_and_types()]
        return {"services": services, "topics": publishes()}


def test_the_learner_starts_with_a_shadow_that_follows_it(plan) -> None:
    arguments = {"record": "r", "out": "o", "critic": "c", "policy": "p", "promote": "after:3", "nice": "5"}
    learner, shadow = plan("learner.launch.py", **arguments)
    assert _names([learner, shadow]) == ["critic_learner", "shadow_reranker"]
    found = _parameters(learner)
    assert found["updates_per_step"] == 0.5
    assert {name: found[name] for name in arguments} == {**arguments, "nice": 5}
    found = _parameters(shadow)
    assert (found["critic_versions"], found["critic"]) == ("o/versions", "c")
    assert (found["shadow"], found["publish_chunk"]) == (True, False)
    assert _names(plan("learner.launch.py", **arguments, shadow="false")) == ["critic_learner"]


def test_the_learners_critic_offers_nothing_under_the_names_of_the_running_graph(
    launched, in_ros, tmp_path: Path
) -> None:
    folders = {"record": tmp_path / "bags", "out": tmp_path / "learner"}
    launched("learner.launch.py", policy="wxai-state", critic="wxai-state", **folders)
    names = in_ros(_shadow_names, timeout=90)
    assert {"/shadow/load_critic", "/shadow/rollback_critic", "/shadow/set_shadow"} <= set(names["services"])
    assert not {"/load_critic", "/rollback_critic", "/set_shadow"} & set(names["services"])
    assert {"/shadow/decision", "/shadow/critic_version"} <= set(names["topics"])
    assert not {"/decision", "/critic_version"} & set(names["topics"])


def _both() -> dict[str, Any]:
    from ros_client import Client
    from rosgraph_msgs.msg import Clock
    from std_srvs.srv import Trigger
    from valueguide_msgs.msg import SafetyState

    nodes = ["robot", "executor", "safety_gate", "task", "teleop"]
    with Client("a", name="in_a") as client:
        client.active(*nodes, timeout=100)
        client.call("estop_trigger", Trigger)
        client.wait("safety_state", SafetyState, lambda m: m.state == SafetyState.STOPPED)
        topics = [name for name, _ in client.node.get_topic_names_and_types()]
        publishers = {n: client.node.count_publishers(n) for n in ("/a/clock", "/a/joint_states", "/clock")}
    with Client("b", name="in_b") as client:
        client.active(*nodes, timeout=100)
        client.wait("clock", Clock)
        client.spin(1.0)
        other = client.wait("safety_state", SafetyState).state
        publishers |= {n: client.node.count_publishers(n) for n in ("/b/clock", "/b/joint_states")}
        topics += [name for name, _ in client.node.get_topic_names_and_types()]
    return {"topics": sorted(set(topics)), "publishers": publishers, "other": other}


@pytest.mark.slow
@pytest.mark.whole_graph
def test_two_namespaces_do_not_hear_each_other(launched, in_ros) -> None:
    # Two policies would take long to load; without one the rest of the graph is up all the same.
    launched("sim.launch.py", namespace="a", policy="/not/there")
    launched("sim.launch.py", namespace="b", policy="/not/there", seed=5)
    found = in_ros(_both, timeout=240)
    everywhere = {"/rosout", "/parameter_events", "/diagnostics"}
    own = [name for name in found["topics"] if name not in everywhere]
    assert own and all(name.startswith(("/a/", "/b/")) for name in own), own
    assert found["publishers"] == {
        **{"/a/clock": 1, "/a/joint_states": 1, "/b/clock": 1, "/b/joint_states": 1},
        "/clock": 0,
    }
    assert found["other"] != 2, "an e-stop in one namespace stopped the other"
