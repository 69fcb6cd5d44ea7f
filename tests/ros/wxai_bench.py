"""What the tests of the WidowX AI's driver node stand on: the controller, a client, a motion.

trossen-arm-sim serves the controller's wire protocol over TCP and UDP; every test has it on a loopback
address of its own, as its ports are fixed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Joints (rad) with the hand pointing down, 0.10 m above the table in front of the arm.
HOME = [0.0, 1.488, 1.193, -1.276, 0.0, 0.0]
NAMES = ["dx", "dy", "dz", "dyaw", "grip"]
PERIOD = 0.1
_BRING_UP = """
import sys, trossen_arm
driver = trossen_arm.TrossenArmDriver()
end_effector = trossen_arm.StandardEndEffector.wxai_v0_follower
driver.configure(trossen_arm.Model.wxai_v0, end_effector, sys.argv[1], False, 10.0)
driver.set_all_modes(trossen_arm.Mode.position)
driver.set_all_positions([float(angle) for angle in sys.argv[2:]] + [0.044], 1.5, True)
driver.cleanup()
"""


class Controller:
    """The server process at `address`."""

    def __init__(self, log: Path) -> None:
        self.address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
        self._log = log
        self.start()

    def start(self) -> None:
        line = [sys.executable, "-m", "trossen_arm_sim", "--host", self.address]
        with socket.socket() as free:
            free.bind((self.address, 0))
            line += ["--ws-port", str(free.getsockname()[1])]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log)
        # A real controller is a computer of its own, which nothing here can starve; this takes root's rights.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self.process.pid, -5)
        limit = time.monotonic() + 30.0
        while "Listening on" not in self._log.read_text():
            assert time.monotonic() < limit, f"no controller within 30 s:\n{self._log.read_text()}"
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.05)

    def bring_up(self) -> None:
        """To HOME, by the vendor's driver as a lab would."""
        line = [sys.executable, "-c", _BRING_UP, self.address, *map(str, HOME)]
        subprocess.run(line, check=True, timeout=40, stdout=subprocess.DEVNULL)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Driving:
    """A client that commands the arm and hears it. Only in a child process."""

    def __init__(self, client: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseStamped, WrenchStamped
        from ros_client import RELIABLE
        from sensor_msgs.msg import JointState
        from valueguide_msgs.msg import Command, Heartbeat

        self.client, self._command, self._sequence = client, Command, 0
        self.heard = {
            "joints": client.listen("joint_states", JointState),
            "pose": client.listen("ee_pose", PoseStamped),
            "wrench": client.listen("wrench", WrenchStamped),
            "beat": client.listen("heartbeat", Heartbeat),
            "diagnostics": client.listen("/diagnostics", DiagnosticArray, RELIABLE),
        }
        client.active("robot")
        self._publisher = client.publisher("command", Command)
        client.until(lambda: self.heard["joints"] and self.heard["pose"], "state of the arm")

    def send(self, values: Any = (), kind: int = 0, names: Any = None) -> None:
        message = self._command(kind=kind, names=NAMES if names is None else names, sequence=self._sequence)
        message.values, message.header.stamp = list(values), self.client.node.get_clock().now().to_msg()
        self._sequence += 1
        self._publisher.publish(message)

    def run(self, steps: Any) -> Any:
        """Send one step a control period; yields before each, for the caller to look."""
        due = time.monotonic()
        for step in steps:
            yield step
            self.send(step)
            due += PERIOD
            while time.monotonic() < due:
                self.client.spin(min(0.02, max(0.0, due - time.monotonic())))

    def move_aside(self) -> None:
        """Three centimetres to the left, and wait until the arm is there."""
        there = self.pose()[1] + 0.03
        for _ in self.run([[0.0, 0.01, 0.0, 0.0, 1.0]] * 3):
            pass
        self.client.until(lambda: abs(self.pose()[1] - there) < 0.002, "arm 0.03 m to the left")

    def near(self, goal: Any, distance: float) -> None:
        """Wait until the hand is within this distance of a goal (x, y, z, ...), an axis."""
        self.client.until(
            lambda: max(abs(a - b) for a, b in zip(goal[:3], self.pose()[:3], strict=True)) < distance,
            "arm near its command",
        )

    def pose(self) -> list[float]:
        """x, y, z and yaw, the newest."""
        from valueguide.ros.messages import position_from, yaw_from

        message = self.heard["pose"][-1]
        return [*map(float, position_from(message)), yaw_from(message)]

    def problem(self) -> str:
        """The last message of the node's diagnostics."""
        own = [s.message for array in self.heard["diagnostics"] for s in array.status if s.name == "/robot"]
        return own[-1] if own else ""


def task_motion(seconds: float) -> list[list[float]]:
    """A pick and a place: down, close, up, aside with a turn, down, open, up and back."""
    legs = [
        (0.10, [0.0, 0.0, -0.07, 0.0], 1.0),
        (0.06, [0.0, 0.0, 0.0, 0.0], 0.0),
        (0.12, [0.0, 0.0, 0.08, 0.0], 0.0),
        (0.24, [0.05, 0.18, 0.0, 0.8], 0.0),
        (0.10, [0.0, 0.0, -0.08, 0.0], 0.0),
        (0.06, [0.0, 0.0, 0.0, 0.0], 1.0),
        (0.12, [0.0, 0.0, 0.10, 0.0], 1.0),
        (0.20, [-0.05, -0.25, 0.0, -1.2], 1.0),
    ]
    steps: list[list[float]] = []
    for share, way, grip in legs:
        count = max(1, round(share * seconds / PERIOD))
        steps += [[part / count for part in way] + [grip]] * count
    return steps


def distance_from_path(poses: Any, goals: Any) -> float:
    """The farthest that a pose is from the line through the goals (N, 4), metres; time plays no part."""
    import numpy as np

    from valueguide.ros.messages import position_from

    starts, ways = goals[:-1, :3], np.diff(goals[:, :3], axis=0)
    lengths = np.maximum((ways**2).sum(axis=1), 1e-12)
    farthest = 0.0
    for pose in poses:
        offsets = position_from(pose) - starts
        along = np.clip((offsets * ways).sum(axis=1) / lengths, 0.0, 1.0)
        farthest = max(farthest, np.linalg.norm(offsets - along[:, None] * ways, axis=1).min())
    return farthest
