"""What a test does on the ROS side. Runs only in a child process with the ROS environment.

`in_ros(function, ...)` of conftest.py starts this file, which imports the function's module, calls it,
and writes what it returned as JSON. Such a function imports `ros_client` and messages inside itself.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from valueguide_msgs.action import ExecuteTask
from valueguide_msgs.msg import Heartbeat

from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR

_SENSOR_TOPICS = ("joint_states", "ee_pose", "wrench", "environment_state")
_LATCHED_TOPICS = ("task", "intervention", "safety_state", "critic_version")


def qos(topic: str) -> QoSProfile:
    """The QoS that docs/ros.md gives a topic."""
    name = topic.rsplit("/", 1)[-1]
    if name in _SENSOR_TOPICS or name == "image":
        return SENSOR
    return LATCHED if name in _LATCHED_TOPICS else RELIABLE


class Client:
    """A node for a test, spun only inside its own waiting calls, so that a test reads top to bottom.

    Names are relative to `namespace`. Every wait ends in a TimeoutError that says what was waited for.
    """

    def __init__(self, namespace: str = "", use_sim_time: bool = False, name: str = "test_client") -> None:
        rclpy.init()
        parameters = [Parameter("use_sim_time", value=use_sim_time)]
        self.node = rclpy.create_node(name, namespace=namespace, parameter_overrides=parameters)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown()

    def spin(self, seconds: float) -> None:
        """Handle what comes in for a while: only to see that something does not happen."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self._executor.spin_once(timeout_sec=0.05)

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 15.0) -> Any:
        """Spin until the condition gives something true, and return that."""
        limit = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > limit:
                raise TimeoutError(f"no {what} within {timeout:.0f} s")
            self._executor.spin_once(timeout_sec=0.02)
        return found

    def listen(self, topic: str, kind: Any, profile: QoSProfile | None = None) -> list[Any]:
        """A list that fills with the topic's messages while this client spins."""
        heard: list[Any] = []
        self.node.create_subscription(kind, topic, heard.append, profile or qos(topic))
        return heard

    def wait(
        self, topic: str, kind: Any, condition: Callable[[Any], Any] = lambda _: True, timeout: float = 15.0
    ) -> Any:
        """The topic's first message from now on (a latched one: the last, too) that meets the condition."""
        heard: list[Any] = []
        subscription = self.node.create_subscription(
            kind, topic, lambda message: heard.append(message) if condition(message) else None, qos(topic)
        )
        self.until(lambda: heard, f"fitting message on {topic}", timeout)
        self.node.destroy_subscription(subscription)
        return heard[0]

    def publisher(self, topic: str, kind: Any, listeners: int = 1, timeout: float = 15.0) -> Any:
        """A publisher that at least `listeners` subscriptions have found."""
        publisher = self.node.create_publisher(kind, topic, qos(topic))
        self.until(
            lambda: publisher.get_subscription_count() >= listeners,
            f"{listeners} listeners of {topic}",
            timeout,
        )
        return publisher

    def active(self, *names: str, timeout: float = 30.0) -> None:
        """Wait until every one of these nodes beats, that is, is active."""
        beats = self.listen("heartbeat", Heartbeat)
        wanted = set(names)
        try:
            self.until(lambda: wanted <= {beat.node.rsplit("/", 1)[-1] for beat in beats}, "beats", timeout)
        except TimeoutError:
            missing = sorted(wanted - {beat.node.rsplit("/", 1)[-1] for beat in beats})
            raise TimeoutError(f"not active within {timeout:.0f} s: {', '.join(missing)}") from None

    def call(self, service: str, kind: Any, request: Any = None, timeout: float = 15.0) -> Any:
        """The response of a service."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, f"service {service}", timeout)
        future = client.call_async(request or kind.Request())
        self.until(future.done, f"answer of {service}", timeout)
        self.node.destroy_client(client)
        return future.result()

    def send_task(self, timeout: float = 15.0, **goal: Any) -> Task:
        """Start a task; goal: fields of ExecuteTask.Goal. Raises RuntimeError when it is rejected."""
        client = ActionClient(self.node, ExecuteTask, "execute_task")
        self.until(client.server_is_ready, "action execute_task", timeout)
        feedback: list[Any] = []
        sent = client.send_goal_async(
            ExecuteTask.Goal(**goal), feedback_callback=lambda message: feedback.append(message.feedback)
        )
        self.until(sent.done, "answer of execute_task to a goal", timeout)
        if not sent.result().accepted:
            raise RuntimeError(f"execute_task: goal rejected: {goal}")
        return Task(self, sent.result(), feedback)

    def execute_task(self, timeout: float = 90.0, **goal: Any) -> Any:
        """Run a task to its end; goal: fields of ExecuteTask.Goal. Returns ExecuteTask.Result."""
        return self.send_task(**goal).result(timeout)


class Task:
    """A task under way. `feedback` fills while the client spins."""

    def __init__(self, client: Client, handle: Any, feedback: list[Any]) -> None:
        self._client, self._handle, self.feedback = client, handle, feedback
        self._result = handle.get_result_async()

    def done(self) -> bool:
        return bool(self._result.done())

    def cancel(self) -> None:
        """Ask for its end."""
        canceled = self._handle.cancel_goal_async()
        self._client.until(canceled.done, "answer of execute_task to a cancellation")

    def result(self, timeout: float = 90.0) -> Any:
        """ExecuteTask.Result, once it is over."""
        self._client.until(self._result.done, "result of execute_task", timeout)
        return self._result.result().result


def _plain(value: Any) -> Any:
    """Arrays and NumPy numbers as JSON."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _main(module: str, function: str, arguments: str, result: str) -> None:
    """Call a test module's function and write what it returns."""
    sys.modules["ros_client"] = sys.modules["__main__"]
    sys.path.insert(0, str(Path(module).parent))
    found = getattr(importlib.import_module(Path(module).stem), function)(**json.loads(arguments))
    Path(result).write_text(json.dumps(found, default=_plain))


if __name__ == "__main__":
    _main(*sys.argv[1:])
