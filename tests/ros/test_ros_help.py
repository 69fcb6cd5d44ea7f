"""The executor asks the operator for help: a real executor, in a graph of which the test plays the rest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from valueguide.execution.help import ANY_TASK, Curve, HelpSettings, Reference
from valueguide.execution.help_calibration import save_help

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]

#: Successful episodes have a value near -10 and progress near 0.5 at every step.
SETTINGS = HelpSettings(
    references={ANY_TASK: Reference(Curve((0,), (-10.0,), 1.0), Curve((0,), (0.5,), 0.1))},
    cooldown_steps=1000,
    stale_s=2.0,
    critic_version="critic-1",
)
LOW, GOOD, POOR, FAR = -20.0, -10.0, 0.2, 0.5
DECISIONS = 4


@pytest.fixture
def settings(tmp_path: Path) -> str:
    save_help(SETTINGS, tmp_path / "help.json")
    return str(tmp_path / "help.json")


class _Rest:
    """Task, policy and progress of a graph around one executor."""

    def __init__(self, client: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from valueguide_msgs.msg import (
            ActionChunk,
            ChunkRequest,
            Command,
            Decision,
            HelpRequest,
            InterventionState,
            Progress,
            Task,
        )

        self.client = client
        self.asks = client.listen("chunk_request", ChunkRequest)
        self.commands = client.listen("proposed_command", Command)
        self.helps = client.listen("help", HelpRequest)
        self.diagnostics = client.listen("/diagnostics", DiagnosticArray)
        client.active("executor", timeout=60)
        self.task = client.publisher("task", Task)
        self.chunk = client.publisher("chunk", ActionChunk)
        self.decision = client.publisher("decision", Decision, listeners=0)
        self.progress = client.publisher("progress", Progress, listeners=0)
        self.intervention = client.publisher("intervention", InterventionState)

    def stamp(self) -> Any:
        return self.client.node.get_clock().now().to_msg()

    def begin(self, episode: int) -> None:
        from valueguide_msgs.msg import Task

        self.episode = episode
        del self.asks[:], self.commands[:], self.helps[:]
        task = Task(active=True, episode_id=episode, instruction="pick the can", mode="guided")
        task.header.stamp = self.stamp()
        self.task.publish(task)
        self.client.until(lambda: self.asks, "a request of the executor")

    def end(self) -> None:
        from valueguide_msgs.msg import Task

        self.task.publish(Task(active=False, episode_id=self.episode, finished=True, reason="success"))
        self.client.until(lambda: any(c.reason for c in self.commands), "the last hold")

    def estimate(self, value: float, status: str = "ok", stamp: Any = None) -> None:
        from valueguide_msgs.msg import Progress

        message = Progress(value=value, status=status)
        message.header.stamp = stamp or self.stamp()
        self.progress.publish(message)

    def decide(self, value: float, version: str = "critic-1", broken: bool = False) -> None:
        """Answer the newest request: the chunk, and what the critic thinks of it."""
        from valueguide_msgs.msg import ActionChunk, Decision, Scores

        request = self.client.until(lambda: self.asks, "a request of the executor")[-1]
        del self.asks[:]
        numbers = {"request_id": request.request_id, "episode_id": request.episode_id}
        scores = Scores(members=2, k=1, q=[value + 5, value], values=[value])
        if broken:
            scores.q = [value]
        self.decision.publish(
            Decision(**numbers, index=0, preferred=0, scores=scores, critic_version=version, seed=-1)
        )
        start = len(request.committed) // 5
        actions = [0.0, 0.0, 0.01, 0.0, 1.0] * 4
        self.chunk.publish(
            ActionChunk(**numbers, horizon=4, action_dim=5, actions=actions, start=start, end=4)
        )

    def moves(self) -> int:
        return sum(command.kind == 0 for command in self.commands)

    def status(self) -> dict[str, str]:
        """The executor's last diagnostics, its message among them."""
        found = [s for array in self.diagnostics for s in array.status if s.name == "/executor"]
        return {"message": found[-1].message} | {v.key: v.value for v in found[-1].values} if found else {}


def _episodes(plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One episode after another: what was asked in each, and how many steps were sent."""
    from ros_client import Client

    out = []
    with Client() as client:
        rest = _Rest(client)
        client.until(lambda: rest.decision.get_subscription_count(), "listener of decision")
        client.until(lambda: rest.progress.get_subscription_count(), "listener of progress")
        for number, row in enumerate(plan):
            rest.begin(number)
            first = rest.stamp()
            for i in range(DECISIONS):
                if row.get("stale"):
                    # It was taken in this episode, and is older than `stale_s` by the first decision.
                    rest.estimate(row["progress"], stamp=first)
                    client.spin(2.5 if i == 0 else 0.0)
                else:
                    rest.estimate(row["progress"], row.get("status", "ok"))
                rest.decide(row["value"], row.get("version", "critic-1"), row.get("broken", False))
            client.until(lambda: rest.asks, "the request after the last decision")
            client.spin(0.2)
            found = rest.helps[:]
            wanted = str(len(found))
            client.until(lambda wanted=wanted: rest.status().get("help_requests") == wanted, "diagnostics")
            out.append(
                {
                    "asked": [
                        {"episode": h.episode_id, "step": h.step, "reason": h.reason, "value": h.value,
                         "progress": h.progress, "stamp": h.header.stamp.sec}
                        for h in found
                    ],
                    "moves": rest.moves(),
                    "status": rest.status(),
                }
            )  # fmt: skip
            rest.end()
    return out


def test_it_asks_once_when_value_and_progress_agree_and_else_not_at_all(node, in_ros, settings) -> None:
    plan: list[dict[str, Any]] = [
        {"value": LOW, "progress": POOR},
        {"value": LOW, "progress": FAR},
        {"value": GOOD, "progress": POOR},
        {"value": LOW, "progress": POOR, "stale": True},
        {"value": LOW, "progress": POOR, "status": "malformed"},
        {"value": LOW, "progress": POOR, "version": "critic-2"},
        {"value": LOW, "progress": POOR, "broken": True},
        {"value": LOW, "progress": POOR},
    ]
    node("executor", robot="sim", help=settings, task_s=60.0)
    found = in_ros(_episodes, timeout=200, plan=plan)
    assert [len(row["asked"]) for row in found] == [1, 0, 0, 0, 0, 0, 0, 1]
    (request,) = found[0]["asked"]
    assert request["episode"] == 0 and 3 <= request["step"] <= 4 * DECISIONS and request["stamp"] > 1e9
    assert (request["value"], request["progress"]) == (pytest.approx(LOW), pytest.approx(POOR))
    assert "value -20 below" in request["reason"] and "progress 0.20 below" in request["reason"]
    assert "progress stale" in found[3]["status"]["help"]
    assert "calibrated for critic-1" in found[5]["status"]["help"]
    assert "decision scores" in found[6]["status"]["message"], "an error is a warning"
    assert all(row["moves"] >= 4 * (DECISIONS - 1) for row in found), "and the arm goes on"


def _people() -> dict[str, Any]:
    """A human takes over between two decisions and hands back; then a row of bad ones begins anew."""
    from ros_client import Client
    from valueguide_msgs.msg import ExecutorState, InterventionState

    with Client() as client:
        rest = _Rest(client)
        client.until(lambda: rest.decision.get_subscription_count(), "listener of decision")
        states = client.listen("executor_state", ExecutorState)

        def human(active: bool) -> None:
            rest.intervention.publish(InterventionState(active=active, device="script"))
            client.until(lambda: states and (states[-1].state == "human") == active, f"takeover {active}")

        rest.begin(0)
        rest.estimate(POOR)
        rest.decide(LOW)
        human(True)
        del rest.asks[:]
        human(False)
        for _ in range(DECISIONS):
            rest.estimate(POOR)
            rest.decide(LOW)
        client.until(lambda: rest.asks, "the request after the last decision")
        client.spin(1.2)
        return {"asked": len(rest.helps), "status": rest.status()}


def test_after_a_hand_back_it_waits(node, in_ros, settings) -> None:
    node("executor", robot="sim", help=settings, task_s=60.0)
    found = in_ros(_people, timeout=120)
    assert found["asked"] == 0 and "cool-down" in found["status"]["help"]


def _without_help() -> dict[str, Any]:
    from ros_client import Client

    with Client() as client:
        rest = _Rest(client)
        rest.begin(0)
        for _ in range(DECISIONS):
            rest.decide(LOW)
        client.until(lambda: rest.asks, "the request after the last decision")
        client.until(lambda: rest.status().get("help") == "off", "diagnostics")
        return {
            "moves": rest.moves(),
            "asked": len(rest.helps),
            "message": rest.status()["message"],
            "listens": rest.decision.get_subscription_count(),
        }


@pytest.mark.parametrize("broken", [False, True], ids=["off", "unreadable"])
def test_without_settings_the_executor_runs_as_before(node, in_ros, tmp_path: Path, broken: bool) -> None:
    path = tmp_path / "help.json"
    path.write_text("{")
    node("executor", robot="sim", task_s=60.0, **({"help": str(path)} if broken else {}))
    found = in_ros(_without_help, timeout=120)
    assert found["moves"] >= 4 * (DECISIONS - 1) and found["asked"] == 0 and found["listens"] == 0
    assert ("help.json" in found["message"]) == broken


def _ask_the_operator(go: str) -> dict[str, Any]:
    """Play a graph that wants help, until somebody has taken over."""
    from diagnostic_msgs.msg import DiagnosticArray
    from ros_client import Client
    from valueguide_msgs.msg import ExecutorState, HelpRequest, InterventionState, Task

    with Client() as client:
        diagnostics = client.listen("/diagnostics", DiagnosticArray)
        states = client.listen("intervention", InterventionState)
        client.active("teleop", timeout=60)
        task, executor = client.publisher("task", Task), client.publisher("executor_state", ExecutorState)
        wanted = client.publisher("help", HelpRequest, listeners=2, timeout=60)
        task.publish(Task(active=True, episode_id=3, instruction="pick the can"))
        client.spin(0.5)
        wanted.publish(HelpRequest(episode_id=3, step=24, reason="value -20 below -11"))

        def teleop() -> str:
            found = [s for array in diagnostics for s in array.status if s.name == "/teleop"]
            return found[-1].message if found else ""

        def beat() -> bool:
            executor.publish(ExecutorState(state="running", commander="policy"))
            client.spin(0.05)
            return True

        client.until(lambda: beat() and teleop().startswith("help wanted"), "teleop's warning", 30)
        told = teleop()
        Path(go).write_text("told")
        client.until(lambda: beat() and states and states[-1].active, "takeover", 60)
        client.until(lambda: beat() and "help" not in teleop(), "end of teleop's warning", 30)
        return {"told": told, "after": teleop()}


def test_the_operator_is_told_until_somebody_takes_over(node, in_ros, terminal, tmp_path: Path) -> None:
    node("teleop", robot="sim")
    asking = in_ros.start(_ask_the_operator, go=str(tmp_path / "go"))
    terminal.until("HELP WANTED at step 24: value -20 below -11. Press t to take over", timeout=90)
    terminal.until("HELP WANTED   commands: policy", timeout=30)
    limit = time.monotonic() + 60
    while not (tmp_path / "go").exists():
        assert time.monotonic() < limit and asking.process.poll() is None, asking.result(1)
        time.sleep(0.05)
    terminal.type("t")
    terminal.until("commands: YOU", timeout=30)
    found = asking.result(120)
    assert found["told"] == "help wanted at step 24: value -20 below -11"
    terminal.read()
    assert "HELP" not in terminal.screen[terminal.screen.rindex("commands: ") - 15 :]
