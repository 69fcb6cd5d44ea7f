"""Takeover by joystick, script and keyboard between real processes; the keyboard on a pseudo-terminal."""

from __future__ import annotations

import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from keyboard_terminal import Terminal

pytestmark = pytest.mark.ros

_DEADMAN, _ESTOP = 4, 1


def _joy(forward: float = 0.0, *pressed: int) -> Any:
    from sensor_msgs.msg import Joy

    return Joy(axes=[0.0, forward, *[0.0] * 6], buttons=[int(i in pressed) for i in range(11)])


def _joints() -> Any:
    from sensor_msgs.msg import JointState

    names = [f"joint_{i}" for i in range(6)] + ["gripper"]
    return JointState(name=names, position=[0.0] * 6 + [0.022])


def _drive_with_joystick() -> dict[str, Any]:
    from ros_client import Client
    from sensor_msgs.msg import JointState, Joy
    from std_msgs.msg import Bool
    from valueguide_msgs.msg import Command, InterventionState

    with Client() as client:
        client.active("teleop")
        states = client.listen("intervention", InterventionState)
        client.until(lambda: states, "first intervention")
        commands = client.listen("teleop_command", Command)
        estops = client.listen("estop", Bool)
        joy, joints = client.publisher("joy", Joy), client.publisher("joint_states", JointState)

        def hold(message: Any, condition: Callable[[], Any], what: str, silent: bool = False) -> None:
            def step() -> Any:
                if not silent:
                    joy.publish(message)
                joints.publish(_joints())
                return condition()

            client.until(step, what)

        idle = states[0].active, len(commands)
        hold(_joy(1.0, _DEADMAN), lambda: commands and commands[-1].values, "a human's command")
        moved = commands[-1]
        hold(_joy(float("nan"), _DEADMAN), lambda: commands[-1].kind == Command.HOLD, "a hold for NaN")
        refused = commands[-1]
        hold(_joy(0.0, _DEADMAN), lambda: commands[-1].kind == Command.MOVE, "motion again")
        still = commands[-1]
        hold(None, lambda: "silent" in commands[-1].reason, "a hold for silence", silent=True)
        count = len(commands)
        hold(_joy(0.0), lambda: len(commands) > count + 3, "holds after the plug is back")
        lost = [states[-1].active, commands[-1].kind]
        hold(_joy(0.0, _DEADMAN), lambda: commands[-1].kind == Command.MOVE, "motion when held again")
        hold(_joy(0.0), lambda: not states[-1].active, "hand-back")
        after = len(commands)
        client.spin(0.3)
        hold(_joy(0.0, _ESTOP), lambda: estops, "e-stop")
        return {
            "idle": idle,
            "states": [(s.active, s.device, s.takeovers) for s in states],
            "moved": [list(moved.values), moved.source, list(moved.names), moved.header.frame_id],
            "refused": refused.reason,
            "still": still.values,
            "sequences": [command.sequence for command in commands],
            "lost": lost,
            "after_hand_back": len(commands) - after,
            "estop": estops[0].data,
        }


def test_joystick_takes_over_moves_holds_when_unplugged_and_hands_back(
    node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node("teleop", robot="sim", silence_s=0.3)
    found = in_ros(_drive_with_joystick)
    assert found["idle"] == [False, 0]
    assert found["states"] == [[False, "", 0], [True, "joy", 1], [False, "", 1]]
    values, source, names, frame = found["moved"]
    assert values == pytest.approx([0.03, 0, 0, 0, 0.5], abs=1e-6), "gripper kept as measured"
    assert (source, names, frame) == ("human", ["dx", "dy", "dz", "dyaw", "grip"], "base_link")
    assert "last message was refused" in found["refused"]
    assert found["still"] == pytest.approx([0, 0, 0, 0, 0.5], abs=1e-6)
    assert found["sequences"] == list(range(1, len(found["sequences"]) + 1))
    assert found["lost"] == [True, 1], "in human hands, holding"
    assert found["after_hand_back"] == 0
    assert found["estop"] is True


def _drive_with_script() -> dict[str, Any]:
    from ros_client import Client
    from std_srvs.srv import SetBool
    from valueguide_msgs.msg import Command, InterventionState, Task

    with Client("lab") as client:
        client.active("teleop")
        states = client.listen("intervention", InterventionState)
        commands = client.listen("teleop_command", Command)
        script = client.publisher("script_command", Command)
        policy = client.publisher("proposed_command", Command)
        task = client.publisher("task", Task)
        policy.publish(Command(kind=Command.MOVE, values=[0.0, 0.0, 0.0, 0.0, 0.25]))
        script.publish(Command(kind=Command.MOVE, values=[0.01] * 5))
        client.spin(0.3)
        unasked = len(commands)
        taken = client.call("takeover", SetBool, SetBool.Request(data=True))
        client.until(lambda: commands, "zero motion")
        first = list(commands[0].values)
        for number in range(1, 6):
            script.publish(Command(kind=Command.MOVE, values=[0.001 * number, 0.0, 0.0, 0.0, 1.0]))
        script.publish(Command(kind=Command.MOVE, names=["a", "b"], values=[0.0] * 5))
        moving = lambda: [c.values[0] for c in commands if len(c.values) and c.values[0]]  # noqa: E731
        client.until(lambda: len(moving()) >= 5, "the script's steps")
        task.publish(Task(active=True, episode_id=7))
        client.until(lambda: states[-1].device == "script", "state")
        given = client.call("takeover", SetBool, SetBool.Request(data=False))
        client.until(lambda: not states[-1].active, "hand-back")
        again = client.call("takeover", SetBool, SetBool.Request(data=True))
        client.until(lambda: states[-1].active, "second takeover")
        return {
            "unasked": unasked,
            "answers": [taken.success, given.success, again.success],
            "first": first,
            "moving": moving(),
            "states": [(s.active, s.device, s.takeovers) for s in states],
        }


def test_script_takes_over_and_its_steps_run_once_each(
    node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node("teleop", robot="sim", _namespace="lab")
    found = in_ros(_drive_with_script)
    assert found["unasked"] == 0
    assert found["answers"] == [True, True, True]
    assert found["first"] == pytest.approx([0, 0, 0, 0, 0.25]), "gripper kept as the policy commanded it"
    assert found["moving"] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005])
    assert found["states"][-2:] == [[False, "", 1], [True, "script", 2]]


def _through_the_executor() -> dict[str, Any]:
    from ros_client import Client
    from sensor_msgs.msg import JointState, Joy
    from std_srvs.srv import SetBool
    from valueguide_msgs.msg import Command

    with Client() as client:
        client.active("teleop", "executor")
        proposed = client.listen("proposed_command", Command)
        script = client.publisher("script_command", Command)
        joy, joints = client.publisher("joy", Joy), client.publisher("joint_states", JointState)
        joints.publish(_joints())
        client.call("takeover", SetBool, SetBool.Request(data=True))
        for number in range(1, 11):
            script.publish(Command(kind=Command.MOVE, values=[0.001 * number, 0.0, 0.0, 0.0, 1.0]))

        def moved() -> list[Any]:
            return [c for c in proposed if c.kind == Command.MOVE and c.values[0]]

        client.until(lambda: len(moved()) >= 10, "the script's steps at the gate")
        client.spin(0.5)
        steps = [c.values[0] for c in moved()]
        sources = {c.source for c in moved()}
        client.call("takeover", SetBool, SetBool.Request(data=False))
        proposed.clear()

        def push(forward: float) -> None:
            joy.publish(_joy(forward, _DEADMAN))
            joints.publish(_joints())
            client.spin(0.03)

        client.until(lambda: push(1.0) or len(moved()) > 3, "motion by stick")
        client.until(lambda: push(float("nan")) or proposed[-1].kind == Command.HOLD, "a hold for NaN")
        count, reason = len(moved()), proposed[-1].reason
        for _ in range(20):
            push(float("nan"))
        return {
            "steps": steps,
            "sources": sorted(sources),
            "after_nan": len(moved()) - count,
            "reason": reason,
        }


def test_the_executor_runs_each_human_step_once_and_passes_holds_on(
    node: Callable[..., Any], in_ros: Callable[..., Any]
) -> None:
    node("teleop", robot="sim")
    node("executor", robot="sim")
    found = in_ros(_through_the_executor)
    assert found["steps"] == pytest.approx([0.001 * number for number in range(1, 11)])
    assert found["sources"] == ["human"]
    assert found["after_nan"] == 0 and "refused" in found["reason"]


def test_wrong_settings_are_one_line(node: Callable[..., Any]) -> None:
    processes = node("teleop", robot="sim", axes="dw=+1")
    deadline = time.monotonic() + 20
    while "teleop: axes" not in processes.log("teleop-1"):
        assert time.monotonic() < deadline, processes.log("teleop-1")
        time.sleep(0.1)
    assert "Traceback" not in processes.log("teleop-1")


def _watch_keyboard(seconds: float) -> dict[str, Any]:
    """Stands in for the rest of the graph: safety gate, executor and arm; reports what teleop did."""
    from ros_client import Client
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool
    from valueguide_msgs.msg import Command, ExecutorState, InterventionState, SafetyState

    with Client() as client:
        states = client.listen("intervention", InterventionState)
        commands = client.listen("teleop_command", Command)
        estops = client.listen("estop", Bool)
        joints, safety = (
            client.publisher("joint_states", JointState),
            client.publisher("safety_state", SafetyState),
        )
        executor = client.publisher("executor_state", ExecutorState)
        # Latched is only the newest: who listens late would never hear that it was off before.
        client.until(lambda: states, "state of teleop", seconds)

        def step() -> bool:
            joints.publish(_joints())
            executor.publish(ExecutorState(commander="policy"))
            state = SafetyState.STOPPED if estops else SafetyState.OK
            safety.publish(SafetyState(state=state, reason="e-stop" if estops else ""))
            client.spin(0.05)
            return bool(estops) and len(states) >= 3

        client.until(step, "takeover, hand-back and e-stop", seconds)
        for _ in range(10):
            step()
        return {
            "states": [(s.active, s.device) for s in states],
            "commands": [list(c.values) for c in commands if c.kind == Command.MOVE],
        }


def test_keyboard_takes_over_moves_hands_back_and_stops(
    node: Callable[..., Any], in_ros: Any, terminal: Terminal
) -> None:
    node("teleop", robot="sim")
    watching = in_ros.start(_watch_keyboard, seconds=40)
    terminal.until("commands: policy.*safety: ok", timeout=30)
    assert not terminal.settings()[3] & (termios.ECHO | termios.ICANON)
    terminal.type("w")
    terminal.until("press t to take over")
    terminal.type("t")
    terminal.until("commands: YOU")
    for key in ("w", "a", "\x1b[B", "r", "e"):
        limit = time.monotonic() + 0.6
        while time.monotonic() < limit:
            terminal.type(key)
            time.sleep(0.04)
    terminal.type(" ")
    time.sleep(0.8)
    terminal.type("?t")
    terminal.until("commands: policy")
    terminal.type("x")
    terminal.until("safety: STOPPED e-stop")
    found = watching.result()
    assert found["states"] == [[False, ""], [True, "keyboard"], [False, ""]]
    moves = found["commands"]
    half = [0.015, 0.015, 0.015, 0.15]
    for wanted in ((0, 1), (1, 1), (0, -1), (2, 1), (3, -1)):
        dimension, sign = wanted
        assert any(m[dimension] == pytest.approx(sign * half[dimension]) for m in moves), (wanted, moves)
    assert [0, 0, 0, 0] in [m[:4] for m in moves], "motion ends after the last key"
    assert moves[0][4] == pytest.approx(0.5) and moves[-1][4] == 0, "the gripper closes"
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(10) == 0
    assert terminal.settings() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_keyboard_restores_the_terminal_on_any_exit(terminal: Terminal, number: signal.Signals) -> None:
    terminal.until("no teleop node heard", timeout=30)
    assert terminal.settings() != terminal.before
    terminal.process.send_signal(number)
    assert terminal.process.wait(10) == 0
    assert terminal.settings() == terminal.before
    terminal.read()
    assert "Traceback" not in terminal.screen


def test_keyboard_without_a_terminal_says_so(ros_workspace: Path, ros_environment: dict[str, str]) -> None:
    program = ros_workspace / "valueguide_nodes" / "lib" / "valueguide_nodes" / "keyboard"
    done = subprocess.run(
        [program], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ros_environment
    )
    assert done.returncode == 1 and done.stderr.startswith("keyboard: expected a terminal")
