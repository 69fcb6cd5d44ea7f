"""A robot that stands still, and asks for one decision after the other: enough for `policy` and `reranker`.

Runs on the ROS side only, see ros_client.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from ros_client import Client, qos
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32MultiArray
from valueguide_msgs.msg import ActionChunk, Candidates, ChunkRequest, CriticVersion, Decision, Heartbeat

TASK, PERIOD_S = "put the carrot on the plate", 0.05
#: Patience for each step on a machine that does much else.
LONG_S = 240.0
_K, _HORIZON, _ACTIONS = 4, 8, 5


class StillRobot(Client):
    """node: which of the two is asked, "policy" or "reranker"; in the other's place stands this client.

    Asks once `ask()` was called, and then whenever the last question was answered.
    """

    def __init__(self, node: str) -> None:
        super().__init__()
        self.of = node
        self.decisions: list[Decision] = self.listen("decision", Decision)
        self.beside: list[Decision] = self.listen("shadow_decision", Decision)
        self.chunks: list[ActionChunk] = self.listen("chunk", ActionChunk)
        self.proposals: list[Candidates] = self.listen("candidates", Candidates)
        self.critics: list[CriticVersion] = self.listen("critic_version", CriticVersion)
        self.beats: list[Heartbeat] = self.listen("heartbeat", Heartbeat)
        self.diagnostics: list[DiagnosticArray] = self.listen("/diagnostics", DiagnosticArray)
        self.privileged = [0.1] * 51
        self._asked, self._sent, self._at = False, 0, 0.0
        joints = JointState(name=[f"joint_{i}" for i in range(6)] + ["gripper", "gripper_command"])
        joints.position = [0.0] * 7 + [0.5]
        pose = PoseStamped()
        pose.pose.position.x, pose.pose.position.z, pose.pose.orientation.w = 0.25, 0.2, 1.0
        self._measured = {"joint_states": joints, "ee_pose": pose, "environment_state": Float32MultiArray()}
        question = ("chunk_request", ChunkRequest) if node == "policy" else ("candidates", Candidates)
        self._out = {
            topic: self.node.create_publisher(kind, topic, qos(topic))
            for topic, kind in ((*((t, type(m)) for t, m in self._measured.items()), question))
        }
        self._question = question[0]
        self._timer = self.node.create_timer(PERIOD_S, self._tick)

    def ask(self) -> None:
        """Begin to ask."""
        self._asked = True

    def serves(self, number: int, shadow: int = 0) -> CriticVersion:
        """Wait until the node says that these versions serve and are in shadow."""

        def found() -> CriticVersion | None:
            last = self.critics[-1] if self.critics else None
            return last if last and (last.number, last.shadow_number) == (number, shadow) else None

        return self.until(found, f"version {number} in service, {shadow} in shadow", LONG_S)

    def decided(self, count: int, version: str) -> list[Decision]:
        """Wait for so many decisions from now on; the last ones are by this critic. All of them."""
        start = len(self.decisions)

        def by() -> bool:
            last = self.decisions[start:][-count:]
            return len(last) == count and all(one.critic_version == version for one in last)

        self.until(by, f"{count} decisions by {version}", LONG_S)
        return self.decisions[start:]

    def warns(self, text: str) -> str:
        """Wait until the node's diagnostics warn of this; what they say."""

        def found() -> str:
            for array in self.diagnostics[::-1]:
                for status in array.status:
                    if status.name == f"/{self.of}":
                        warns = status.level == DiagnosticStatus.WARN and text in status.message
                        return status.message if warns else ""
            return ""

        return self.until(found, f"warning of {text!r}", LONG_S)

    def well(self) -> None:
        """Wait until the next diagnostics of the node are without a warning."""
        del self.diagnostics[:]

        def found() -> bool:
            states = [s for a in self.diagnostics for s in a.status if s.name == f"/{self.of}"]
            return bool(states) and states[-1].level == DiagnosticStatus.OK

        self.until(found, "diagnostics without a warning", LONG_S)

    def _tick(self) -> None:
        stamp = self.node.get_clock().now().to_msg()
        for topic, message in self._measured.items():
            if topic == "environment_state":
                message.data = self.privileged
            else:
                message.header.stamp = stamp
            self._out[topic].publish(message)
        answered = bool(self.decisions) and self.decisions[-1].request_id == self._sent
        # What is published before the two have found each other is lost, so it asks again after a while.
        if self._asked and (answered or not self._sent or time.monotonic() - self._at > 5.0):
            self._sent, self._at = self._sent + 1, time.monotonic()
            self._out[self._question].publish(self._next(stamp))

    def _next(self, stamp: Any) -> Any:
        common = {"request_id": self._sent, "instruction": TASK, "mode": "guided", "seed": self._sent}
        if self._question == "chunk_request":
            return ChunkRequest(**common, action_dim=_ACTIONS, not_before=stamp)
        rng = np.random.default_rng(self._sent)
        actions = rng.uniform(-0.02, 0.02, (_K, _HORIZON, _ACTIONS)).astype(np.float32)
        message = Candidates(**common, k=_K, horizon=_HORIZON, action_dim=_ACTIONS)
        message.actions = actions.ravel().tolist()
        message.header.stamp = stamp
        return message
