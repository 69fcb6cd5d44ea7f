"""The learner beside the graph: real processes, killed at bad moments, and the graph does not notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from valueguide.cli.common import shipped
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.online.service_files import read_status
from valueguide.online.versions import CriticVersions
from valueguide.ros import workspace
from valueguide.testing.waiting import until
from valueguide.types import Episode, Observation, Step

_until = partial(until, wait_s=240.0, look_s=0.05)

pytestmark = [pytest.mark.ros, pytest.mark.faults, pytest.mark.timeout(900)]

STATE = {"policy": "wxai-state", "critic": "wxai-state"}
#: A learner of few and small steps.
SMALL: dict[str, Any] = {
    **STATE,
    "min_steps": 20,
    "save_every": 2,
    "publish_every": 4,
    "hold_out": 50,
    "options": "--batch-size 8 --proposals 1",
}
ACTIONS = ("dx", "dy", "dz", "dyaw", "grip")
NODES = ["robot", "policy", "executor", "safety_gate", "task", "progress", "recorder"]


class Recorded:
    """A recorder's dataset that grows by random episodes of 20 steps, of the shape that the critic knows."""

    def __init__(self, folder: Path) -> None:
        from valueguide.critics.checkpoint import LoadedCritic

        found = LoadedCritic(Path(shipped("wxai-state", "critic")))
        self._size = found.spec.environment_state_dim
        self._task = found.instructions[0]
        spec = DatasetSpec(
            fps=10,
            cameras={},
            state=tuple(f"state_{i}" for i in range(found.spec.state_dim)),
            action=ACTIONS,
            environment_state=tuple(f"env_{i}" for i in range(self._size)),
            horizon=4,
            k=0,
            robot_type="sim",
        )
        self._writer, self._rng = EpisodeWriter(folder / "dataset", spec), np.random.default_rng(0)

    def more(self, count: int) -> None:
        for _ in range(count):
            self._writer.save(self._episode())

    def close(self) -> None:
        self._writer.close()

    def _observation(self) -> Observation:
        state, world = (self._rng.uniform(-0.3, 0.3, n).astype(np.float32) for n in (6, self._size))
        return Observation({}, state, self._task, 0, world)

    def _episode(self) -> Episode:
        steps = [
            Step(
                self._observation(),
                self._rng.uniform(0.0, 0.03, 5).astype(np.float32),
                chunk_id=t // 4,
                chunk_step=t % 4,
                executed_length=4,
                policy_version="base",
            )
            for t in range(20)
        ]
        for step in steps:
            step.planned_chunk = np.full((4, 5), 0.01, np.float32)
        steps[-1].terminated = steps[-1].success = True
        steps[-1].reward = 1.0
        return Episode(steps, self._observation(), self._task, {})


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    made = Recorded(tmp_path / "bags")
    yield made
    made.close()


def _service(name: str, number: int = 0, force: bool = False, reason: str = "", data: bool = False) -> Any:
    """[success, message] of one of the learner's services."""
    from ros_client import Client
    from std_srvs.srv import SetBool, Trigger
    from valueguide_msgs.srv import PromoteCritic

    with Client() as client:
        kind = {"promote": PromoteCritic, "rollback": Trigger, "pause": SetBool}[name]
        request = kind.Request()
        if name == "promote":
            request.number, request.force, request.reason = number, force, reason
        elif name == "pause":
            request.data = data
        answer = client.call(f"critic_learner/{name}", kind, request, timeout=200)
        return [answer.success, answer.message]


def _told(key: str, value: str, timeout: float = 200.0) -> dict[str, str]:
    """The learner's first diagnostics in which `key` has this value ("*": any but none)."""
    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client

    def fits(array: Any) -> bool:
        return any(
            s.name == "/critic_learner"
            and any(v.key == key and (v.value == value or value == "*" and v.value) for v in s.values)
            for s in array.status
        )

    with Client() as client:
        array = client.wait("/diagnostics", DiagnosticArray, fits, timeout)
        (status,) = [s for s in array.status if s.name == "/critic_learner"]
        return {"message": status.message} | {v.key: v.value for v in status.values}


def _change(transitions: list[int]) -> None:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from ros_client import Client

    with Client() as client:
        for number in transitions:
            request = ChangeState.Request(transition=Transition(id=number))
            answer = client.call("critic_learner/change_state", ChangeState, request, timeout=90)
            assert answer.success, number


def _learner(out: Path) -> dict[str, Any]:
    """What the learner last wrote, nothing before it did."""
    return read_status(out) if (out / "status.json").exists() else {"running": False, "gradient_step": -1}


def _serving(out: Path) -> int | None:
    return CriticVersions(out / "versions").state().serving


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_publishes_is_promoted_paused_killed_and_goes_on(node, in_ros, recorded, tmp_path: Path) -> None:
    out = tmp_path / "learner"
    settings = {"record": str(tmp_path / "bags"), "out": str(out), **SMALL}
    running = node("critic_learner", **settings)
    recorded.more(1)
    versions = CriticVersions(out / "versions")
    _until(lambda: 2 in versions.numbers(), "version 2")
    assert _serving(out) == 1, "what learning started from; nothing else is promoted by itself"
    # 20 control steps are 10 gradient steps; published at 4 and 8.
    told = in_ros(_told, timeout=240, key="newest", value="3")
    assert told["message"] == "ok" and told["learned_from"] == "1" and int(told["gradient_step"]) >= 8

    assert in_ros(_service, timeout=240, name="promote") == [False, "no version is in shadow"]
    success, message = in_ros(_service, timeout=240, name="promote", number=2)
    assert not success and "probe" in message, "unchecked versions do not serve"
    success, message = in_ros(_service, timeout=240, name="promote", number=2, force=True)
    assert not success and "reason" in message
    success, message = in_ros(_service, timeout=240, name="promote", number=2, force=True, reason="a test")
    assert success and _serving(out) == 2, message
    assert in_ros(_service, timeout=60, name="rollback") == [True, "version 1 serves"]
    assert _serving(out) == 1 and in_ros(_service, timeout=60, name="rollback")[0] is False

    def step() -> int:
        return int(_learner(out)["gradient_step"])

    # Paused it has saved; what comes meanwhile is learned from afterwards.
    assert in_ros(_service, timeout=60, name="pause", data=True)[0]
    told = in_ros(_told, timeout=240, key="doing", value="paused")
    assert told["pid"] == "" and told["saved_step"] == told["gradient_step"] == str(step())
    paused = step()
    recorded.more(1)
    assert in_ros(_service, timeout=60, name="pause", data=False)[0]
    _until(lambda: step() > paused, "steps after the pause")

    # kill -9 of the learner.
    first = int(in_ros(_told, timeout=240, key="pid", value="*")["pid"])
    before = _until(lambda: _learner(out).get("pid") == first and _learner(out), "status")["saved_step"]
    os.kill(first, signal.SIGKILL)
    recorded.more(1)
    status = _until(lambda: (s := _learner(out))["running"] and s["pid"] != first and s, "another learner")
    assert status["saved_step"] >= before
    due = _until(lambda: step() >= int(0.5 * 60) and step(), "all steps that are due")
    told = in_ros(_told, timeout=240, key="deaths", value="1")
    assert int(told["pid"]) != first and running.named("critic_learner").poll() is None

    # Deactivation ends it in order, activation goes on; kill -9 of the node takes the learner along.
    in_ros(_change, timeout=120, transitions=[4])
    assert not _learner(out)["running"] and _learner(out)["saved_step"] == due
    in_ros(_change, timeout=120, transitions=[3])
    second = int(in_ros(_told, timeout=240, key="pid", value="*")["pid"])
    _until(lambda: _learner(out).get("pid") == second, "its status")
    running.named("critic_learner").kill()
    _until(lambda: not _learner(out)["running"], "end of the learner whose node is gone")
    assert _learner(out)["doing"] == "stopped", "and it saved"
    recorded.more(1)
    node("critic_learner", **settings)
    _until(lambda: step() >= int(0.5 * 80), "steps of the next node's learner")
    steps = [v.step for v in versions.list()[1:]]
    assert steps == sorted(set(steps)), "no step was published twice"


def test_wrong_settings_are_one_line_and_a_learner_that_cannot_start_disturbs_nobody(
    node, in_ros, tmp_path: Path
) -> None:
    without = node("critic_learner", out=str(tmp_path / "learner"))
    _until(lambda: "record: expected" in without.log("critic_learner-1"), "line about `record`")
    without.stop()
    assert "Traceback" not in without.log("critic_learner-1")
    settings = {"out": str(tmp_path / "learner"), "record": str(tmp_path), "policy": "wxai-state"}
    wrong = node("critic_learner", critic=str(tmp_path), **settings)
    told = in_ros(_told, timeout=240, key="deaths", value="1")
    assert "died, exit status 2: error: " in told["message"] and "manifest.json" in told["message"]
    assert wrong.named("critic_learner").poll() is None


def _patient(folder: Path) -> str:
    """The simulated arm without cameras, and with limits that a busy machine does not trip: a file."""
    description = yaml.safe_load((workspace.ROOT / "configs" / "robots" / "sim.yaml").read_text())
    description["cameras"] = {}
    description["sync"] = {"tolerance_s": 0.1, "stale_s": 1.0}
    description["watchdog"] |= {"command_s": 2.0, "state_s": 2.0, "heartbeat_s": 10.0}
    path = folder / "patient.yaml"
    path.write_text(yaml.safe_dump(description))
    return str(path)


def _beside(out: str, task: str) -> dict[str, Any]:
    """Episodes of a whole graph while a learner beside it works, is killed, and its critics come to serve."""
    from ros_client import Client
    from valueguide_msgs.msg import Command, CriticVersion
    from valueguide_msgs.srv import PromoteCritic, ResetSim

    versions, root = CriticVersions(Path(out) / "versions"), Path(out)
    with Client() as client:
        client.active(*NODES, "critic_learner", timeout=300)
        moves: list[tuple[float, Any]] = []
        client.node.create_subscription(
            Command, "command", lambda m: moves.append((time.monotonic(), m)) if m.kind == 0 else None, 50
        )
        serving = client.listen("critic_version", CriticVersion)
        found: dict[str, Any] = {"episodes": []}

        def begin(seed: int) -> Any:
            request = ResetSim.Request(task=task, seed=seed)
            reset = client.call("reset_sim", ResetSim, request, timeout=60)
            assert reset.success, reset.message
            moves.clear()
            running = client.send_task(
                instruction=reset.instruction, time_limit_s=6.0, seed=seed, mode="guided", timeout=60
            )
            client.until(lambda: len(moves) >= 4, "moves", 60)
            return running

        def end(running: Any, kind: str) -> None:
            result = running.result(200)
            found["episodes"].append({"kind": kind, "reason": result.reason, "moves": len(moves)})

        def status() -> dict[str, Any]:
            return _learner(root)

        # Recorded by the graph, learned from, published.
        for seed in (1, 2, 3):
            end(begin(seed), "alone")
            if 2 in versions.numbers():
                break
        client.until(lambda: 2 in versions.numbers(), "version 2", 300)

        # Promoted while an episode runs: the policy takes it up, and the arm goes on.
        running = begin(4)
        request = PromoteCritic.Request(number=2, force=True, reason="a test")
        answer = client.call("critic_learner/promote", PromoteCritic, request, timeout=200)
        assert answer.success and answer.serving == 2, answer.message
        end(running, "promoted")
        client.until(lambda: serving and serving[-1].number == 2, "version 2 in service", 100)
        found["versions"] = [message.number for message in serving]

        # kill -9 of the learner in the middle of an episode.
        client.until(lambda: status()["running"], "a running learner", 200)
        first, saved = status()["pid"], status()["saved_step"]
        running = begin(5)
        os.kill(first, signal.SIGKILL)
        killed, count = time.monotonic(), len(moves)
        client.until(lambda: running.done() or len(moves) >= count + 10, "moves after the kill", 100)
        end(running, "learner killed")
        found["moves_after_kill"] = sum(at > killed for at, _ in moves)
        client.until(lambda: status()["running"] and status()["pid"] != first, "another learner", 300)
        found["resumed_at"], found["saved_before"] = status()["saved_step"], saved
        begin_again = status()["steps"]
        end(begin(6), "after the restart")
        client.until(lambda: status()["steps"] > begin_again, "the new episode in the replay", 300)
        newest = max(versions.numbers())
        client.until(lambda: max(versions.numbers()) > newest or status()["gradient_step"]
                     >= status()["steps_due"], "what is due", 300)  # fmt: skip
        found["published"] = [v.step for v in versions.list()]
        return found


@pytest.mark.slow
@pytest.mark.whole_graph
@pytest.mark.timeout(1800)
def test_a_learner_killed_beside_the_graph_disturbs_nothing_and_goes_on(
    launched, node, in_ros, tmp_path: Path
) -> None:
    out, bags = tmp_path / "learner", tmp_path / "bags"
    following = {"critic_versions": str(out / "versions"), "record": str(bags), "robot": _patient(tmp_path)}
    graph = launched("sim.launch.py", task="press_button", k=4, **STATE, **following)
    settings = {"record": str(bags), "out": str(out), **SMALL, "updates_per_step": 0.2}
    beside = node("critic_learner", **settings)
    found = in_ros(_beside, timeout=1500, out=str(out), task="press_button")
    assert {e["reason"].split(":")[0] for e in found["episodes"]} <= {"success", "failure", "time_limit"}, (
        found
    )
    assert found["versions"][-1] == 2
    assert found["moves_after_kill"] >= 5, found
    assert found["resumed_at"] >= found["saved_before"]
    assert found["published"][0] is not None and len(found["published"]) >= 2, found
    assert not graph.died(), "no node of the graph ended"
    assert beside.named("critic_learner").poll() is None
    # The node itself, killed: the graph has nothing to do with it, and the next one goes on.
    beside.named("critic_learner").kill()
    _until(lambda: not _learner(out)["running"], "end of the learner whose node is gone")
    saved = _learner(out)["saved_step"]
    node("critic_learner", **settings)
    status = _until(lambda: (s := _learner(out))["running"] and s, "the next learner")
    assert status["saved_step"] >= saved and not graph.died()
