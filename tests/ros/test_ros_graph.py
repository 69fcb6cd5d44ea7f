"""The whole graph on the simulated arm: real processes, real DDS, started from the unmodified launch file."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.whole_graph, pytest.mark.timeout(900)]

STATE = {"policy": "wxai-state", "critic": "wxai-state"}
NODES = ["robot", "policy", "executor", "safety_gate", "task", "progress", "teleop"]


def _episodes(plan: list[dict[str, Any]], nodes: list[str], limit: float) -> list[dict[str, Any]]:
    """Each of `plan` ({task, mode, seeds}) from one seed after the other, until it succeeds."""
    from ros_client import Client
    from valueguide_msgs.msg import Command, Decision, ExecutorState
    from valueguide_msgs.srv import ResetSim

    out = []
    with Client() as client:
        client.active(*nodes, timeout=200)
        commands = client.listen("command", Command)
        decisions = client.listen("decision", Decision)
        states = client.listen("executor_state", ExecutorState)
        for item in ({**one, "seed": seed} for one in plan for seed in one["seeds"]):
            if any(o["success"] and (o["task"], o["mode"]) == (item["task"], item["mode"]) for o in out):
                continue
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
    """In one process the base policy succeeds in 19 of 30 such episodes, the guided one in 29; real time is
    never quite the same twice. So each may try eight times at most, and needs to succeed once."""
    launched("sim.launch.py", task="press_button", **STATE)
    tasks = ("close_drawer", "press_button", "pick_can")
    plan = [
        {"task": task, "mode": mode, "seeds": list(range(4000, 4008))}
        for task in tasks
        for mode in ("guided", "base")
    ]
    episodes = in_ros(_episodes, timeout=800, plan=plan, nodes=NODES, limit=60)
    won = {(e["task"], e["mode"]) for e in episodes if e["success"] and e["reason"] == "success"}
    assert won == {(one["task"], one["mode"]) for one in plan}, episodes
    for episode in episodes:
        assert episode["last_kind"] == 1 and episode["last_reason"] == "episode finished"
        chunks = [tuple(step) for step in episode["steps"]]
        assert chunks == sorted(set(chunks)), "every step once, in order"
        wanted = {"base"} if episode["mode"] == "base" else {"argmax", "spread"}
        assert set(episode["reasons"]) <= wanted, episode["reasons"]
