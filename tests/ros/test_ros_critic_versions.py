"""Critics that change while the nodes `policy` and `reranker` decide: real nodes and critics."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from critic_copies import other_actions, publish, too_short_a_state

from valueguide.cli.common import shipped
from valueguide.critics.manifest import MANIFEST, WEIGHTS
from valueguide.data.layout import write_json
from valueguide.online.version_state import Change
from valueguide.online.versions import STATE, CriticVersions

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.timeout(900)]
NODES = ("policy", "reranker")


@pytest.fixture
def made(tmp_path: Path) -> CriticVersions:
    """Version 1 serves; 2 and 3 are as good."""
    versions = CriticVersions(tmp_path / "versions")
    for _ in range(3):
        publish(versions)
    versions.promote(1)
    return versions


@pytest.fixture
def begin(node: Callable[..., Any], made: CriticVersions) -> Callable[..., Any]:
    """begin("policy") -> its processes, following `made`."""

    def start(name: str, **settings: Any) -> Any:
        wanted = {"critic_versions": str(made.root), "critic": "wxai-state", "versions_s": 0.1, **settings}
        return node(name, **({"policy": "wxai-state", "k": 4} if name == "policy" else {}), **wanted)

    return start


def _names(root: str) -> dict[int, str]:
    return {one.number: one.version for one in CriticVersions(root).list()}


def _chosen(robot: Any, decision: Any) -> bool:
    """Whether the chunk that went out for this decision is the candidate that it names."""

    def of(messages: list[Any]) -> Any:
        return robot.until(
            lambda: [m for m in messages if m.request_id == decision.request_id], "what was decided on", 60.0
        )

    (proposal,), (chunk,) = of(robot.proposals), of(robot.chunks)
    candidates = np.reshape(proposal.actions, (proposal.k, proposal.horizon, proposal.action_dim))
    return bool(np.array_equal(np.ravel(candidates[decision.index]), chunk.actions))


def _critics(robot: Any, *arguments: str) -> None:
    """`valueguide critics ...`, from beside the graph."""
    from still_robot import LONG_S

    command = subprocess.Popen([sys.executable, "-m", "valueguide.cli.main", "critics", *arguments])
    robot.until(lambda: command.poll() is not None, f"end of critics {arguments[0]}", LONG_S)
    assert command.returncode == 0


def _follow(name: str, root: str) -> None:
    from std_srvs.srv import Trigger
    from still_robot import LONG_S, StillRobot

    made, versions = CriticVersions(root), _names(root)
    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        first = robot.serves(1)
        assert (first.version, first.role, first.previous, first.shadow) == (versions[1], "active", "", "")
        assert first.path == str(made.folder(1))
        robot.ask()
        robot.decided(3, versions[1])
        # In shadow: scored beside, and what it would choose never runs.
        _critics(robot, "shadow", root, "2")
        assert robot.serves(1, shadow=2).shadow == versions[2]
        robot.until(
            lambda: sum(_differs(robot)) >= 2, "decisions that the version in shadow made otherwise", LONG_S
        )
        for beside in list(robot.beside):
            (decision,) = robot.until(
                lambda beside=beside: [d for d in robot.decisions if d.request_id == beside.request_id],
                "decision that was scored beside",
            )
            assert (beside.critic_version, decision.critic_version) == (versions[2], versions[1])
            assert (beside.chunk_id, beside.episode_id) == (decision.chunk_id, decision.episode_id)
            assert beside.scores.k == decision.scores.k == 4 and beside.reason in ("argmax", "spread")
            assert beside.latency_s > decision.latency_s, "the decision did not wait for it"
            assert _chosen(robot, decision)
        # Promoted: in service without a pause, and out of the shadow.
        _critics(robot, "promote", root, "2", "--force", "--reason", "test")
        second = robot.serves(2)
        assert (second.version, second.previous) == (versions[2], versions[1])
        robot.decided(3, versions[2])
        scored = len(robot.beside)
        robot.decided(5, versions[2])
        assert len(robot.beside) - scored <= 1, "nothing is in shadow any more"
        # Back, by the command and by the service.
        _critics(robot, "rollback", root, "--reason", "it shakes")
        robot.serves(1)
        robot.decided(3, versions[1])
        made.promote(3)
        robot.serves(3)
        answer = robot.call("rollback_critic", Trigger, timeout=LONG_S)
        assert answer.success and answer.message == "version 1 serves"
        assert made.state().serving == 1 and 3 in made.state().withdrawn
        robot.decided(3, versions[1])
        again = robot.call("rollback_critic", Trigger, timeout=LONG_S)
        assert not again.success and "no earlier version" in again.message
        assert [d.request_id for d in robot.decisions] == sorted({d.request_id for d in robot.decisions})
        robot.well()


def _differs(robot: Any) -> list[bool]:
    index = {decision.request_id: decision.index for decision in robot.decisions}
    return [one.index != index[one.request_id] for one in robot.beside if one.request_id in index]


@pytest.mark.parametrize("name", NODES)
def test_promotion_shadow_and_rollback_reach_a_node_that_decides(begin, in_ros, made, name: str) -> None:
    begin(name)
    in_ros(_follow, timeout=800, name=name, root=str(made.root))


def _unusable(name: str, root: str) -> None:
    """Whatever is wrong with what is promoted or put into shadow, version 1 goes on."""
    from still_robot import LONG_S, StillRobot

    made, versions = CriticVersions(root), _names(root)
    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        robot.serves(1)
        robot.ask()
        robot.decided(3, versions[1])
        told = len(robot.critics)
        # What loads from number 2 on has seen a decision, so it must score that one first.
        publish(made, config=other_actions)
        publish(made, source="wxai")
        publish(made, manifest=too_short_a_state)
        for number, why in (
            (4, "action names"),
            (5, "cameras among"),
            (6, "RuntimeError"),
        ):
            for change in (made.promote, made.set_shadow):
                change(number)
                robot.warns(f"version {number} is not used")
                assert why in robot.warns(f"version {number} is not used: ")
                robot.decided(3, versions[1])
                if change == made.set_shadow:
                    made.set_shadow(None)
                else:
                    made.rollback()
                robot.well()
        assert {c.number for c in robot.critics[told:]} == {1} and {c.shadow for c in robot.critics} == {""}
        assert {d.critic_version for d in robot.decisions} == {versions[1]}
        # Torn files: of what serves, and of what is to serve.
        made.promote(2)
        robot.serves(2)
        (made.folder(2) / WEIGHTS).write_bytes(b"torn")
        assert "sha256" in robot.warns("version 2 goes on as it was loaded")
        robot.decided(3, versions[2])
        (made.root / STATE).write_bytes(b"{")
        robot.warns(STATE)
        robot.decided(3, versions[2])
        shutil.rmtree(root)
        robot.warns("no version serves any more")
        robot.decided(3, versions[2])


@pytest.mark.parametrize("name", NODES)
def test_versions_that_cannot_be_used_and_damaged_folders_disturb_nothing(
    begin, in_ros, made, name: str
) -> None:
    processes = begin(name)
    in_ros(_unusable, timeout=800, name=name, root=str(made.root))
    log = processes.log(f"{name}-1")
    assert log.count("version 4 is not used") == 2, "once in each role, not in a loop"
    assert "Traceback" not in log


def _throws(name: str, root: str) -> None:
    """Versions that load and then throw at their first decision."""
    from still_robot import LONG_S, StillRobot

    made, versions = CriticVersions(root), _names(root)
    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        robot.serves(1)
        publish(made, manifest=too_short_a_state)
        publish(made, manifest=too_short_a_state)
        made.promote(4)
        made.set_shadow(5)
        robot.serves(4, shadow=5)
        robot.ask()
        robot.decided(5, versions[1])
        assert {d.critic_version for d in robot.decisions} == {versions[1]}
        assert {d.reason for d in robot.decisions} <= {"argmax", "spread"}
        assert all(_chosen(robot, decision) for decision in list(robot.decisions))
        robot.serves(1)
        message = robot.warns("version 5 is not used: ")
        assert "version 4 is not used: " in message
        assert robot.beside == []
        # What no critic can score is not the version's fault.
        made.set_shadow(None)
        made.promote(2)
        robot.serves(2)
        robot.decided(2, versions[2])
        robot.privileged = [float("nan")] * 51
        robot.until(
            lambda: any("failed" in s.message for a in robot.diagnostics for s in a.status), "error", LONG_S
        )
        robot.privileged = [0.1] * 51
        robot.decided(3, versions[2])
        assert robot.critics[-1].number == 2


@pytest.mark.parametrize("name", NODES)
def test_a_version_that_throws_while_scoring_gives_way_to_the_one_before(
    begin, in_ros, made, name: str
) -> None:
    begin(name)
    in_ros(_throws, timeout=800, name=name, root=str(made.root))


def _promote_unread(made: CriticVersions, number: int) -> None:
    """A promotion that does not look at the version first."""
    state = made.state()
    change = Change("promote", number, state.serving, "", "2023-11-15T12:00:00+00:00")
    write_json(made.root / STATE, state.promoted(number, change).to_json())


def _slow(name: str, root: str) -> None:
    """A version whose manifest does not come to an end of being read, as on a disk that hangs."""
    from still_robot import LONG_S, StillRobot

    made, versions = CriticVersions(root), _names(root)
    path = made.folder(2) / MANIFEST
    content = path.read_bytes()
    path.rename(path.with_suffix(".kept"))
    os.mkfifo(path)
    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        robot.serves(1)
        robot.ask()
        robot.decided(2, versions[1])
        _promote_unread(made, 2)
        feed = _opened(robot, path)
        beats = len(robot.beats)
        robot.decided(10, versions[1])
        robot.until(lambda: len(robot.beats) > beats + 5, "heartbeats while a version loads", LONG_S)
        path.with_suffix(".kept").rename(path)
        os.write(feed, content)
        os.close(feed)
        robot.serves(2)
        robot.decided(3, versions[2])
        asked = [d.request_id for d in robot.decisions]
        assert asked == sorted(set(asked))


def _opened(robot: Any, path: Path) -> int:
    """The writing end of the pipe, once the node reads from it."""

    def attempt() -> list[int]:
        try:
            return [os.open(path, os.O_WRONLY | os.O_NONBLOCK)]
        except OSError:
            return []

    (found,) = robot.until(attempt, "reader of the manifest", 120.0)
    return found


@pytest.mark.parametrize("name", NODES)
def test_decisions_and_heartbeats_go_on_while_a_version_loads(begin, in_ros, made, name: str) -> None:
    begin(name)
    in_ros(_slow, timeout=800, name=name, root=str(made.root))


def _hangs(name: str, root: str) -> None:
    from still_robot import LONG_S, StillRobot

    made = CriticVersions(root)
    with StillRobot(name) as robot:
        robot.active(name, timeout=LONG_S)
        robot.serves(1)
        _promote_unread(made, 2)
        _opened(robot, made.folder(2) / MANIFEST)
        # The pipe ends with this process, which is what the loading thread would see; so it is kept open.
        Path(root, "loading").touch()
        robot.spin(30.0)


@pytest.mark.parametrize("name", NODES)
def test_a_node_in_the_middle_of_loading_ends_at_once(begin, in_ros, made, name: str) -> None:
    path = made.folder(2) / MANIFEST
    path.unlink()
    os.mkfifo(path)
    processes = begin(name)
    child = in_ros.start(_hangs, name=name, root=str(made.root))
    limit = time.monotonic() + 240
    while not (made.root / "loading").exists():
        assert time.monotonic() < limit and child.process.poll() is None, child.result(1)
        time.sleep(0.05)
    processes.named(name).send_signal(signal.SIGINT)
    assert processes.named(name).wait(timeout=25) == 0, processes.log(f"{name}-1")
    assert child.process.poll() is None, "it ended although the manifest still hung"
    assert "Traceback" not in processes.log(f"{name}-1")


def _by_name(root: str, other: str) -> None:
    """Without a folder of versions: the services, while decisions are made."""
    from std_srvs.srv import SetBool, Trigger
    from still_robot import LONG_S, StillRobot
    from valueguide_msgs.srv import LoadCritic

    def load(path: str) -> Any:
        return robot.call("load_critic", LoadCritic, LoadCritic.Request(path=path), LONG_S)

    with StillRobot("reranker") as robot:
        robot.active("reranker", timeout=LONG_S)
        first = robot.serves(0).version
        robot.ask()
        robot.decided(2, first)
        answer = load(other)
        assert answer.success and answer.message == "in service", answer.message
        second = answer.version
        robot.until(lambda: robot.critics[-1].version == second, "word of the new critic", LONG_S)
        assert second != first and robot.critics[-1].previous == first
        robot.decided(2, second)
        for path in ("/not/there", shipped("wxai", "critic")):
            assert not (answer := load(path)).success and answer.message.count("\n") == 0
        robot.decided(2, second)
        # A load that hangs: hearts beat, decisions come, and other questions wait for their turn.
        pipe = Path(root) / "slow"
        pipe.mkdir()
        os.mkfifo(pipe / MANIFEST)
        beats, answers = len(robot.beats), []
        client = robot.node.create_client(LoadCritic, "load_critic")
        robot.until(client.service_is_ready, "service", LONG_S)
        client.call_async(LoadCritic.Request(path=str(pipe))).add_done_callback(
            lambda future: answers.append(future.result())
        )
        feed = _opened(robot, pipe / MANIFEST)
        robot.decided(5, second)
        robot.until(lambda: len(robot.beats) > beats + 5, "heartbeats while a critic loads", LONG_S)
        assert not answers
        os.write(feed, b"{}")
        os.close(feed)
        robot.until(lambda: answers, "answer", LONG_S)
        assert not answers[0].success and "format" in answers[0].message
        answer = robot.call("rollback_critic", Trigger, timeout=LONG_S)
        assert answer.success and answer.message == first
        robot.decided(2, first)
        assert robot.call("set_shadow", SetBool, SetBool.Request(data=True), LONG_S).success
        robot.until(lambda: robot.critics[-1].role == "shadow", "word of the shadow", LONG_S)
        robot.until(lambda: robot.decisions[-1].reason == "shadow", "decision in shadow", LONG_S)


def test_critics_are_changed_by_services_without_a_pause(node, in_ros, made, tmp_path: Path) -> None:
    node("reranker", critic="wxai-state")
    in_ros(_by_name, timeout=800, root=str(tmp_path), other=str(made.folder(2)))


def _from_nothing(root: str) -> None:
    """A version that cannot be used when the node starts, and then one that can."""
    from still_robot import LONG_S, StillRobot
    from valueguide_msgs.srv import LoadCritic

    made, versions = CriticVersions(root), _names(root)
    with StillRobot("reranker") as robot:
        robot.active("reranker", timeout=LONG_S)
        fallback = robot.serves(0)
        assert fallback.version and fallback.path == shipped("wxai-state", "critic")
        robot.warns("version 1 is not used")
        robot.ask()
        robot.decided(2, fallback.version)
        answer = robot.call("load_critic", LoadCritic, LoadCritic.Request(path=str(made.folder(2))), LONG_S)
        assert not answer.success and "publish and promote there" in answer.message
        made.promote(2)
        robot.serves(2)
        robot.decided(2, versions[2])


def test_without_a_usable_version_the_critic_of_the_parameter_serves(begin, in_ros, made) -> None:
    (made.folder(1) / WEIGHTS).write_bytes(b"torn")
    begin("reranker")
    in_ros(_from_nothing, timeout=800, root=str(made.root))
