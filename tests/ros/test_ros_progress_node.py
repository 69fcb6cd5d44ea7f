"""The node `progress` with an endpoint: live values are the offline ones, a stuck endpoint blocks nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from valueguide.config.robot import load_robot
from valueguide.progress.estimate import AskSettings, GvlEstimator
from valueguide.progress.frames import sample_positions
from valueguide.progress.openai import OpenAiBackend
from valueguide.progress.request import Clip
from valueguide.testing.fake_openai_server import FakeOpenAiServer

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]

LEVELS = (0, 8, 20, 31, 27, 44, 60, 59, 78, 90)
ROBOT = "sim"
CAMERA = next(iter(load_robot(ROBOT).cameras))


def _frame(level: int) -> np.ndarray:
    camera = load_robot(ROBOT).cameras[CAMERA]
    return np.full((camera.height, camera.width, 3), level, np.uint8)


def _image(client: Any, level: int, stamp_ns: int) -> Any:
    from sensor_msgs.msg import Image

    frame = _frame(level)
    message = Image(height=frame.shape[0], width=frame.shape[1], encoding="rgb8", step=3 * frame.shape[1])
    message.data = frame.tobytes()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


class _Rest:
    """Camera, task and simulator of a graph around one node progress."""

    def __init__(self, client: Any, topic: str) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import Image
        from valueguide_msgs.msg import Heartbeat, Progress, Task

        self.client, self.episode = client, 0
        self.heard = client.listen("progress", Progress)
        self.beats = client.listen("heartbeat", Heartbeat)
        self.diagnostics = client.listen("/diagnostics", DiagnosticArray)
        client.active("progress", timeout=60)
        self.camera = client.publisher(topic, Image)
        self.task = client.publisher("task", Task)
        self.truth = client.publisher("sim_truth", Progress)

    def now(self) -> int:
        return int(self.client.node.get_clock().now().nanoseconds)

    def begin(self) -> None:
        from valueguide_msgs.msg import Task

        self.episode += 1
        message = Task(active=True, episode_id=self.episode, instruction="push it", mode="guided")
        message.header.stamp = self.client.node.get_clock().now().to_msg()
        self.task.publish(message)
        self.client.spin(0.5)
        del self.heard[:]

    def show(self, level: int) -> int:
        """One picture; its stamp."""
        stamp = self.now()
        self.camera.publish(_image(self.client, level, stamp))
        return stamp


def _stamp(message: Any) -> int:
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


def _replay(topic: str, levels: list[int]) -> list[list[Any]]:
    """Shows the pictures one by one; [[value, status, confidence], …], what was said about each."""
    from ros_client import Client

    said = []
    with Client() as client:
        rest = _Rest(client, topic)
        rest.begin()
        rest.show(levels[0])
        for level in levels[1:]:
            client.spin(0.1)
            stamp = rest.show(level)
            client.until(lambda at=stamp: at in map(_stamp, rest.heard), f"estimate of {level}", 30)
            found = next(m for m in rest.heard if _stamp(m) == stamp)
            assert not found.success and not found.failure and found.age_s >= 0
            said.append([found.value, found.status, found.confidence])
    return said


def test_live_values_are_those_of_the_offline_estimate_of_the_same_prefix(node: Any, in_ros: Any) -> None:
    topic = load_robot(ROBOT).cameras[CAMERA].topic
    with FakeOpenAiServer() as server:
        node("progress", robot=ROBOT, backend="openai", url=server.url, model="m", camera=CAMERA, frames=5,
             shuffles=2, rate_hz=2.0)  # fmt: skip
        said = in_ros(_replay, timeout=200, topic=topic, levels=list(LEVELS))
        asked = list(server.bodies)
        offline = GvlEstimator(OpenAiBackend(server.url, "m"), AskSettings(shuffles=2, reasks=0))
        for count, (value, status, confidence) in enumerate(said, 2):
            at = sample_positions(count, 5)
            wanted = offline.estimate(Clip(np.stack([_frame(LEVELS[i]) for i in at]), "push it", at))
            assert value == pytest.approx(wanted.final, abs=1e-6) and value == pytest.approx(
                LEVELS[count - 1] / 100
            )
            assert (status, confidence) == ("ok", 1.0)
        # The very same questions: text, pictures and their order.
        again = server.bodies[len(asked) :]
        assert len(again) == 1 + 2 * len(said) and all(body in asked for body in again)


def _stuck(topic: str, hang_s: float) -> dict[str, Any]:
    """Pictures at 10 Hz to a node whose endpoint hangs, then answers; what was said, and the beats' gaps."""
    from ros_client import Client
    from valueguide_msgs.msg import Progress

    with Client() as client:
        rest = _Rest(client, topic)
        rest.begin()
        del rest.beats[:]
        gaps, last, limit = [], time.monotonic(), time.monotonic() + hang_s
        while time.monotonic() < limit:
            rest.show(30)
            before = len(rest.beats)
            client.spin(0.1)
            if len(rest.beats) > before:
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
        during = [[None if math.isnan(m.value) else m.value, m.status] for m in rest.heard]
        warned = [status.message for array in rest.diagnostics for status in array.status]

        def good() -> bool:
            rest.show(70)
            client.spin(0.1)
            return any(m.status == "ok" and abs(m.value - 0.7) < 1e-6 for m in rest.heard)

        client.until(good, "estimate once the endpoint answers", 60)
        del rest.heard[:]
        truth = Progress(value=1.0, status="ok", success=True)
        truth.header.stamp = client.node.get_clock().now().to_msg()
        rest.truth.publish(truth)
        client.until(lambda: any(m.success for m in rest.heard), "the simulator's verdict")
        verdict = next(m for m in rest.heard if m.success)
        return {
            "during": during,
            "gap": max(gaps),
            "warned": warned,
            "verdict": [verdict.value, verdict.status],
        }


def test_a_stuck_endpoint_blocks_nothing_and_gives_no_number(node: Any, in_ros: Any) -> None:
    """The first requests hang for 60 s; a question is given up after 2 s and asked again later."""
    topic = load_robot(ROBOT).cameras[CAMERA].topic
    with FakeOpenAiServer(["hang", "hang"], hang_s=60.0) as server:
        node("progress", robot=ROBOT, backend="openai", url=server.url, model="m", camera=CAMERA, frames=4,
             shuffles=1, rate_hz=2.0, timeout_s=2.0)  # fmt: skip
        found = in_ros(_stuck, timeout=200, topic=topic, hang_s=4.5)
    assert {value for value, status in found["during"] if status != "ok"} <= {None}
    assert found["during"][0] == [None, "waiting"] and [None, "no_estimator"] in found["during"]
    assert found["gap"] < 2.0  # ten beats a second, on a machine that may be busy
    assert any("no answer within 2 s" in text for text in found["warned"])
    assert found["verdict"] == [pytest.approx(0.7), "sim_truth"]


def _without() -> dict[str, Any]:
    from ros_client import Client
    from valueguide_msgs.msg import Progress

    with Client() as client:
        heard = client.listen("progress", Progress)
        client.active("progress", timeout=60)
        client.until(lambda: heard, "a word without a simulator")
        silent = [math.isnan(heard[0].value), heard[0].status]
        truth = client.publisher("sim_truth", Progress)
        truth.publish(Progress(value=0.25, status="ok", failure=True, detail="dropped"))
        client.until(lambda: any(m.failure for m in heard), "the simulator's truth")
        passed = next(m for m in heard if m.failure)
        return {"silent": silent, "passed": [passed.value, passed.status, passed.detail]}


def test_without_a_backend_the_simulators_truth_is_passed_on(node: Any, in_ros: Any) -> None:
    node("progress", robot=ROBOT)
    found = in_ros(_without, timeout=120)
    assert found == {"silent": [True, "no_estimator"], "passed": [0.25, "ok", "dropped"]}
