"""Node `recorder`: everything into MCAP as it came, and finished episodes into a LeRobotDataset.

Both get the same bytes in the same order, so importing the bag gives the dataset again. Reception only
copies and assembles; two threads write, each behind a bounded queue.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.data.schema import IMAGE_FORMATS
from valueguide.errors import ConfigError, DataError, ValueguideError, mismatch
from valueguide.ros.assemble import EpisodeAssembler
from valueguide.ros.background import BackgroundWriter
from valueguide.ros.bag import BagWriter
from valueguide.ros.recording import DatasetRecorder, StoreSettings, bag_facts
from valueguide.ros.topics import Topic, recorded_topics
from valueguide.types import Episode
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run

#: Deeper than elsewhere: a recorder would rather be late than lose a message.
_QOS = {"sensor": (SENSOR, 50), "reliable": (RELIABLE, 500), "latched": (LATCHED, 10)}
_WATCH_HZ = 10.0
_CLOSE_S = 60.0


class RecorderNode(VgNode):
    NAME = "recorder"
    PARAMETERS = (
        Param("out", "", "folder: gets bag/*.mcap and dataset/"),
        Param("bag", True, "write MCAP"),
        Param("dataset", True, "write a LeRobotDataset"),
        Param("image_format", "png", "of the dataset: png or jpeg"),
        Param("split_mb", 1024, "begin a new MCAP file beyond this size; 0: never", 0, 1_000_000),
        Param("privileged", True, "the simulator's own state belongs to observations, where there is one"),
        Param("horizon", 0, "most planned steps stored; 0: as in the first episode", 0, 100_000),
        Param("k", 0, "most candidates stored; 0: as in the first episode", 0, 1024),
        Param("members", 0, "most ensemble members stored; 0: as in the first episode", 0, 1024),
        Param("queue_mb", 256, "what may wait for the disk; beyond, episodes fail", 1, 100_000),
        Param("queue_episodes", 4, "episodes that may wait for the disk; beyond, they fail", 1, 1000),
    )

    def setup(self) -> None:
        self.robot: RobotConfig = load_robot(self.param("robot"))
        if not self.param("out"):
            raise ConfigError("recorder: out: expected a folder, found nothing")
        formats = IMAGE_FORMATS
        if self.param("image_format") not in formats:
            raise ConfigError(mismatch("recorder", "image_format", formats, self.param("image_format")))
        self.out = Path(self.param("out"))
        self.messages, self.saved, self.dropped, self.lost, self.trouble = 0, 0, 0, 0, ""

    def start(self) -> None:
        self.early: list[tuple[Topic, str, Any, bytes]] = []
        self.listening: list[Any] = []
        self.told: list[Exception] = []
        self.store: DatasetRecorder | None = None
        self.stores: BackgroundWriter[Episode] | None = None
        self.bag: BagWriter | None = None
        self.bags: BackgroundWriter[tuple[str, str, bytes, int]] | None = None
        self.assembler: EpisodeAssembler | None = None
        try:
            self.open()
        except ValueguideError:
            self.close()
            raise
        for topic in recorded_topics(self.robot, self.param("privileged")):
            package, _, name = topic.type.split("/")
            kind = getattr(importlib.import_module(f"{package}.msg"), name)
            full = self.resolve_topic_name(topic.name)
            callback = self.guarded(partial(self.on_message, topic, full, kind))
            self.listening.append(self.create_subscription(kind, topic.name, callback, _qos(topic), raw=True))
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.timer = self.create_timer(1.0 / _WATCH_HZ, self.guarded(self.check), clock=steady)

    def open(self) -> None:
        """Make what is written to, so that a folder that cannot be written fails the activation."""
        privileged = self.param("privileged")
        if self.param("dataset"):
            sizes = {name: self.param(name) for name in ("horizon", "k", "members")}
            settings = StoreSettings(self.param("image_format"), **sizes)
            self.store = DatasetRecorder(self.out / "dataset", self.robot, settings)
            self.assembler = EpisodeAssembler(self.robot, privileged=privileged)
            self.stores = BackgroundWriter(self.save, self.param("queue_episodes"))
        if self.param("bag"):
            facts = bag_facts(self.robot, self.get_namespace(), privileged)
            split = self.param("split_mb") * 1_000_000
            self.bag = bag = BagWriter(self.out / "bag", facts, split_bytes=split)
            limit = self.param("queue_mb") * 1_000_000
            self.bags = BackgroundWriter(lambda entry: bag.write(*entry), limit, bag.tick)

    def on_message(self, topic: Topic, full: str, kind: Any, raw: bytes) -> None:
        received = self.now_ns()
        if received == 0:
            # Simulated time has not begun, but what is latched arrives only this once.
            self.early.append((topic, full, kind, raw))
            return
        while self.early:
            self.take(*self.early.pop(0), received)
        self.take(topic, full, kind, raw, received)

    def take(self, topic: Topic, full: str, kind: Any, raw: bytes, received: int) -> None:
        self.messages += 1
        if self.bags is not None and not self.bags.put((full, topic.type, raw, received), len(raw)):
            self.overflow()
        if self.assembler is None or self.stores is None or not topic.role:
            return
        for result in self.assembler.feed(topic.role, deserialize_message(raw, kind), received):
            if not self.keep(result):
                self.check()

    def keep(self, result: Episode | DataError) -> bool:
        """Queue an episode for the dataset; False when that takes none."""
        queued = isinstance(result, Episode) and self.stores is not None and self.stores.put(result)
        if isinstance(result, DataError):
            self.drop(str(result))
        elif not queued:
            self.drop(f"episode {result.metadata['episode_id']} dropped: dataset: not written in time")
        return queued or isinstance(result, DataError)

    def save(self, episode: Episode) -> None:
        """On the dataset's thread."""
        index = self.store.save(episode)
        self.saved += 1
        number, steps = episode.metadata["episode_id"], len(episode.steps)
        self.get_logger().info(f"episode {number}: {steps} steps stored as number {index} of the dataset")

    def drop(self, line: str) -> None:
        """An episode that will not be in the dataset."""
        self.dropped += 1
        self.trouble = line
        self.get_logger().error(line)

    def overflow(self) -> None:
        """A message is not in the bag, so the episode from this bag would not be the one stored."""
        self.check()
        self.lost += 1
        self.drop_running("bag: the disk is too slow, messages were lost")
        line = f"bag: the disk is too slow: {self.lost} messages lost"
        self.get_logger().error(line, throttle_duration_sec=1.0)

    def drop_running(self, reason: str) -> None:
        for error in self.assembler.drop(reason) if self.assembler else ():
            self.drop(str(error))

    def check(self) -> None:
        """Raises DataError when writing has failed."""
        for queue in (self.stores, self.bags):
            if queue is not None and queue.error is not None:
                self.told.append(queue.error)
                self.drop_running("writing failed")
                raise DataError(str(queue.error) or repr(queue.error)) from queue.error

    def stop(self) -> None:
        self.destroy_timer(self.timer)
        for subscription in self.listening:
            self.destroy_subscription(subscription)
        for result in self.assembler.close() if self.assembler else ():
            self.keep(result)
        self.close()

    def close(self) -> None:
        """Write what waits and release the folders. Whatever goes wrong is one line in the log."""
        for queue, writer in ((self.stores, self.store), (self.bags, self.bag)):
            if queue is not None and not queue.close(_CLOSE_S):
                self.get_logger().error(f"{self.out}: not written within {_CLOSE_S:.0f} s; the rest is lost")
                continue
            if queue is not None and queue.error is not None and queue.error not in self.told:
                self.get_logger().error(str(queue.error))
            try:
                if writer is not None:
                    writer.close()
            except DataError as error:
                self.get_logger().error(str(error))

    def status(self) -> dict[str, Any]:
        waiting = self.bags.waiting / 1e6 if self.bags else 0.0
        return {
            "messages": self.messages,
            "file": self.bag.path if self.bag else "",
            "waiting_mb": f"{waiting:.1f}",
            "episodes": self.saved,
            "dropped": self.dropped,
            "lost_messages": self.lost,
            "warning": self.trouble,
        }


def _qos(topic: Topic) -> QoSProfile:
    base, depth = _QOS[topic.qos]
    return QoSProfile(
        history=base.history, depth=depth, reliability=base.reliability, durability=base.durability
    )


def main() -> None:
    run(RecorderNode)


if __name__ == "__main__":
    main()
