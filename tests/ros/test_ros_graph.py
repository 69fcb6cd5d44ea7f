"""The whole graph on the simulated arm: real processes, real DDS, started from the unmodified launch file."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.whole_graph]

STATE = {"policy": "wxai-state", "critic": "wxai-state"}
NODES = ["robot", "policy", "executor", "safety_gate", "task", "progress", "teleop"]


def _episodes(plan: list[dict[str, Any]], nodes: list[str], limit: float) -> list[dict[str, Any]]:
    """Run each of `plan` ({task, seed, mode}) after a reset of the simulation."""
    from ros_client import Client
    from valueguide_msgs.msg import Command, Decision, ExecutorState
    from valueguide_msgs.srv import ResetSim

    out = []
    with Client() as client:
        client.active(*nodes, timeout=200)
        commands = client.listen("command", Command)
        decisions = client.listen("decision", Decision)
        states = client.listen("executor_state", ExecutorState)
        for item in plan:
            reset = client.call("reset_sim", ResetSim, ResetSim.Request(task=item["task"], seed=item["seed"]))
            assert reset.success, reset.message
            del commands[:], decisions[:], states[:]
            result = client.execute_task(
                timeout=limit, instruction=reset.instruction, mode=item["mode"], seed=0
            )
            client.spin(0.3)
            moves = [c for c in commands if c.kind == Command.MOVE]
            out.append(
                {
                    **item,
                    "success": result.success,
                    "reason": result.reason,
                    "decisions": result.decisions,
                    "seconds": result.duration_s,
                    "moves": len(moves),
                    "steps": [[c.chunk_id, c.chunk_step] for c in moves],
                    "reasons": [d.reason for d in decisions],
                    "k": [d.scores.k for d in decisions],
                    "late": states[-1].late if states else -1,
                    "delay_s": states[-1].delay_s if states else -1,
                    "last_kind": commands[-1].kind if commands else -1,
                    "last_reason": commands[-1].reason if commands else "",
                }
            )
    return out


def test_three_tasks_run_to_success_base_and_guided(launched, in_ros) -> None:
    launched("sim.launch.py", task="press_button", **STATE)
    plan = [
        {"task": "close_drawer", "seed": 4000, "mode": "guided"},
        {"task": "close_drawer", "seed": 4001, "mode": "base"},
        {"task": "press_button", "seed": 4000, "mode": "guided"},
        *({"task": "pick_can", "seed": seed, "mode": "guided"} for seed in (4001, 4004, 4005)),
    ]
    episodes = in_ros(_episodes, timeout=400, plan=plan, nodes=NODES, limit=60)
    for episode in episodes[:3]:
        assert episode["success"] and episode["reason"] == "success", episode
    # In one process it succeeds in four of six; real time is never quite the same twice.
    assert any(episode["success"] for episode in episodes[3:]), episodes[3:]
    for episode in episodes:
        assert episode["last_kind"] == 1 and episode["last_reason"] == "episode finished"
        chunks = [tuple(step) for step in episode["steps"]]
        assert chunks == sorted(set(chunks)), "every step once, in order"
        wanted = {"base"} if episode["mode"] == "base" else {"argmax", "spread"}
        assert set(episode["reasons"]) <= wanted, episode["reasons"]
