"""Node `replay`: what the policy heard when a bag was recorded, in the original timing, with `/clock`.

It publishes observations, commands, the task and the requests for chunks, so that a policy or critic of
today answers the requests of then. Keep robots out of its namespace: `command` is among what it says.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import rclpy
from rosgraph_msgs.msg import Clock
from valueguide_msgs.msg import Heartbeat

from valueguide.config.robot import load_robot
from valueguide.errors import DataError, mismatch
from valueguide.ros import topics as graph_topics
from valueguide.ros.bag import BagMessage, BagReader
from valueguide.ros.definitions import definition
from valueguide.ros.observe import observation_topics
from valueguide.ros.recording import graph_of
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run
from valueguide_nodes.convert import to_time

_QOS = {"sensor": SENSOR, "reliable": RELIABLE, "latched": LATCHED}
_HEARD = ("command", "task", "chunk_request")
_CLOCK = "/clock"
#: How often it looks for messages that are due, and how far the clock may run ahead of the last one.
_TICK_S = 0.002


class ReplayNode(VgNode):
    NAME = "replay"
    PARAMETERS = (
        Param("bag", "", ".mcap file, or folder of one recording"),
        Param("session", 0, "which recording, where the folder holds several", 0, 100000),
        Param("rate", 1.0, "recorded seconds per second", 0.01, 100.0),
        Param("wait_for", "policy", "begin when these nodes beat, names with spaces between; empty: at once"),
    )

    def setup(self) -> None:
        sessions = BagReader.open(self.param("bag")).sessions()
        number = self.param("session")
        if number >= len(sessions):
            raise DataError(mismatch(self.param("bag"), "recordings", f"number {number}", len(sessions)))
        reader = sessions[number]
        graph = graph_of(reader)
        robot = graph.robot or load_robot(self.param("robot"))
        wanted = {name for name, _ in observation_topics(robot, graph.privileged).values()} | {*_HEARD}
        self.namespace = graph.namespace
        self.topics = [
            topic
            for topic in graph_topics.recorded_topics(robot, graph.privileged)
            if topic.name in wanted or topic.name == _CLOCK
        ]
        # All of them now: a publisher made at its first message would lose that message.
        self.publisher_of = {topic.name: self.publisher(topic) for topic in self.topics}
        self.out: dict[str, Any] = {}
        self.found: list[str] = []
        self.clock_out = self.publisher_of[_CLOCK]
        self.own_clock = any(message.topic == _CLOCK for message in _beginning(reader))
        self.messages: Iterator[BagMessage] = iter(reader)
        self.waiting = set(self.param("wait_for").split())
        self.asked = self.publisher_of["chunk_request"] if self.waiting else None
        self.next: BagMessage | None = None
        self.first_ns, self.published, self.finished = 0, 0, False
        self.create_subscription(Heartbeat, "heartbeat", self.guarded(self.on_heartbeat), RELIABLE)

    def publisher(self, topic: graph_topics.Topic) -> Any:
        package, _, name = topic.type.split("/")
        kind = getattr(importlib.import_module(f"{package}.msg"), name)
        # Recorders listen to the clock with best effort, but it is offered reliably, as by sim_robot.
        profile = RELIABLE if topic.name == _CLOCK else _QOS[topic.qos]
        return self.create_publisher(kind, topic.name, profile)

    def start(self) -> None:
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.timer = self.create_timer(_TICK_S, self.guarded(self.tick), clock=steady)

    def on_heartbeat(self, message: Heartbeat) -> None:
        self.waiting.discard(message.node.rsplit("/", 1)[-1])

    def tick(self) -> None:
        """Publish everything that is due."""
        if self.waiting or self.finished or (self.asked and not self.asked.get_subscription_count()):
            return
        if self.next is None:
            self.next = next(self.messages, None)
            if self.next is None:
                raise DataError(f"{self.param('bag')}: expected messages, found none")
            self.first_ns, self.started = self.next.log_ns, self.monotonic()
        elapsed_ns = round((self.monotonic() - self.started) * self.param("rate") * 1e9)
        while self.next is not None and self.next.log_ns - self.first_ns <= elapsed_ns:
            self.play(self.next)
            self.next = next(self.messages, None)
        if self.next is None:
            self.finished = True
            self.get_logger().info(f"end of the bag: {self.published} messages")
        elif not self.own_clock:
            self.clock_out.publish(Clock(clock=to_time(self.first_ns + elapsed_ns)))

    def play(self, message: BagMessage) -> None:
        if message.topic not in self.found:
            self.found.append(message.topic)
            self.prepare(message)
        publisher = self.out.get(message.topic)
        if publisher is not None:
            publisher.publish(message.data)
            self.published += 1

    def prepare(self, message: BagMessage) -> None:
        """Find the publisher of a topic that occurs for the first time, where the policy listens to it."""
        topic = graph_topics.match_topics(self.topics, self.found, self.namespace).get(message.topic)
        if topic is None:
            return
        where = f"bag topic {message.topic}"
        if message.type != topic.type:
            raise DataError(mismatch(where, "type", topic.type, message.type))
        if _fields(message.schema.data.decode()) != _fields(definition(topic.type)):
            raise DataError(mismatch(where, "definition", f"that of {topic.type} here", "another version's"))
        self.out[message.topic] = self.publisher_of[topic.name]

    def stop(self) -> None:
        self.destroy_timer(self.timer)

    def status(self) -> dict[str, Any]:
        waiting = f"waits for {', '.join(sorted(self.waiting))}" if self.waiting else ""
        return {"published": self.published, "finished": self.finished, "warning": waiting}


def _beginning(reader: BagReader, seconds: float = 2.0) -> Iterator[BagMessage]:
    """The messages of the first seconds."""
    first_ns = None
    for message in reader:
        first_ns = message.log_ns if first_ns is None else first_ns
        if message.log_ns - first_ns > seconds * 1e9:
            return
        yield message


def _fields(text: str) -> list[str]:
    """A message definition without comments and layout: equal for definitions with the same encoding."""
    lines = (" ".join(line.split("#")[0].split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("=")]


def main() -> None:
    run(ReplayNode)


if __name__ == "__main__":
    main()
