"""Node `progress`: how far along the running episode is, by a vision-language model in the background.

It never gates motion: it publishes, and nothing waits for it. A model that is slow, stuck or gone shows in
`status` and `age_s` and holds up neither this node nor another. Without a backend it passes on the truth of
the simulator. With one, success and failure in a simulation are still the simulator's; on a real robot an
operator ends the episode (services of the node task), for no estimate does.
"""

from __future__ import annotations

import math
from typing import Any

import rclpy
from rclpy.time import Time
from valueguide_msgs.msg import Progress, Task

from valueguide.config.robot import RobotConfig, load_robot
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.estimate import AskSettings, Estimator, GvlEstimator
from valueguide.progress.http import Patience
from valueguide.progress.live import LiveEstimate, LiveProgress
from valueguide.progress.prompt import Wording
from valueguide.progress.request import ProgressBackend
from valueguide.ros.messages import image_from, stamp_ns
from valueguide.ros.observe import observation_topics
from valueguide_nodes.base import LATCHED, RELIABLE, SENSOR, Param, VgNode, run
from valueguide_nodes.convert import TYPES

_SILENCE_S = 1.0
_LOOK_S = 0.1
_BACKENDS = ("", "openai", "transformers")


class ProgressNode(VgNode):
    NAME = "progress"
    PARAMETERS = (
        Param("backend", "", "openai, transformers, or empty: pass on the simulator's truth"),
        Param("model", "", "name at the endpoint, or folder or Hub name of a local model"),
        Param("url", "", "base address of an endpoint"),
        Param("key_env", "", "environment variable with its key; empty: no key"),
        Param("device", "cpu", "torch device of a local model"),
        Param("camera", "", "whose pictures are shown; empty: the robot's first"),
        Param("rate_hz", 0.5, "questions a second, if answers come that fast", 0.2, 2.0),
        Param("frames", 10, "frames of a question, spread over the episode so far", 3, 64),
        Param("longest_edge", 0, "shrink pictures to this; 0: as they are", 0, 4096),
        Param("shuffles", 3, "orders in which the frames are shown", 1, 16),
        Param("timeout_s", 10.0, "for each answer of an endpoint", 0.1, 600.0),
        Param("late_s", 10.0, "age from which an estimate is called late", 0.1, 600.0),
    )

    def setup(self) -> None:
        backend = self.param("backend")
        if backend not in _BACKENDS:
            raise ConfigError(mismatch("progress", "backend", "openai, transformers or empty", repr(backend)))
        self.heard, self.live, self.told = -math.inf, None, None
        self.task, self.began_ns = Task(), 0
        self.out = self.create_publisher(Progress, "progress", RELIABLE)
        self.create_subscription(Progress, "sim_truth", self.guarded(self.on_truth), RELIABLE)
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        if not backend:
            self.create_timer(0.5, self.guarded(self.on_silence), clock=steady)
            return
        self.live = LiveProgress(self.make, self.param("frames"), longest_edge=self.param("longest_edge"))
        self.watch(load_robot(self.param("robot")))
        self.create_subscription(Task, "task", self.guarded(self.on_task), LATCHED)
        self.create_timer(1.0 / self.param("rate_hz"), self.guarded(self.ask), clock=steady)
        self.create_timer(_LOOK_S, self.guarded(self.look), clock=steady)

    def watch(self, robot: RobotConfig) -> None:
        name = self.param("camera") or next(iter(robot.cameras), "")
        if name not in robot.cameras:
            raise ConfigError(mismatch("progress", "camera", f"one of {sorted(robot.cameras)}", repr(name)))
        topic, kind = observation_topics(robot)[f"camera/{name}"]
        self.pictures = lambda message: image_from(message, robot.cameras[name], f"camera {name}")
        self.create_subscription(TYPES[kind], topic, self.guarded(self.on_image), SENSOR)

    def make(self) -> Estimator:
        """In the background, for a model may take minutes to load and an endpoint may be away."""
        local = self.param("backend") == "transformers"
        wording = Wording("lines" if local else "json")
        settings = AskSettings(shuffles=self.param("shuffles"), reasks=0, wording=wording)
        return GvlEstimator(self._local() if local else self._endpoint(), settings)

    def _local(self) -> ProgressBackend:
        from valueguide.progress.local import TransformersBackend

        return TransformersBackend(self.param("model"), device=self.param("device"))

    def _endpoint(self) -> ProgressBackend:
        from valueguide.progress.openai import OpenAiBackend

        patience = Patience(self.param("timeout_s"), tries=1)
        return OpenAiBackend(self.param("url"), self.param("model"), self.param("key_env"), patience=patience)

    def on_task(self, task: Task) -> None:
        if task.active and (not self.task.active or task.episode_id != self.task.episode_id):
            self.live.begin(int(task.episode_id), task.instruction)
            self.told, self.began_ns = None, stamp_ns(task)
        self.task = task

    def on_image(self, message: Any) -> None:
        stamp = stamp_ns(message)
        # Pictures from before the episode would be its first frame, to which all others are compared.
        if self.task.active and stamp >= self.began_ns:
            try:
                self.live.push(self.pictures(message), stamp)
            except DataError as error:
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)

    def ask(self) -> None:
        """A question's time has come: ask if none is open, and say how old the last answer is by now."""
        if self.task.active:
            self.live.ask()
        self.tell(self.live.latest)

    def look(self) -> None:
        """A new answer is passed on at once."""
        latest = self.live.latest
        if latest is not None and latest is not self.told:
            self.tell(latest)

    def tell(self, found: LiveEstimate | None, success: bool = False, failure: bool = False) -> None:
        message = Progress(
            value=math.nan, age_s=math.nan, confidence=math.nan, success=success, failure=failure
        )
        message.header.stamp = self.stamp()
        if found is None:
            message.status = "no_estimator" if self.live.trouble else "waiting"
            message.detail = self.live.trouble
        else:
            message.value, message.confidence = found.value, found.confidence
            message.age_s = (self.now_ns() - found.stamp_ns) / 1e9
            message.status = "late" if message.age_s > self.param("late_s") else found.status
            message.detail = found.detail or self.live.trouble
            message.header.stamp = Time(nanoseconds=found.stamp_ns).to_msg()
        self.told = found
        self.out.publish(message)

    def on_truth(self, message: Progress) -> None:
        self.heard = self.monotonic()
        if self.live is None:
            self.out.publish(message)
        elif (message.success or message.failure) and self.task.active:
            self.verdict(message)

    def verdict(self, truth: Progress) -> None:
        """The simulator says that the episode is over; the value stays the estimate's."""
        found = self.live.latest
        message = Progress(value=found.value if found else math.nan, age_s=math.nan, confidence=math.nan)
        message.header.stamp, message.detail = truth.header.stamp, truth.detail
        message.status = "sim_truth"
        message.success, message.failure = truth.success, truth.failure
        self.out.publish(message)

    def on_silence(self) -> None:
        if self.monotonic() - self.heard > _SILENCE_S:
            message = Progress(value=math.nan, status="no_estimator")
            message.header.stamp = self.stamp()
            self.out.publish(message)

    def status(self) -> dict[str, Any]:
        if self.live is None:
            return {"source": "sim_truth" if self.monotonic() - self.heard < _SILENCE_S else "none"}
        waiting, latest = self.live.waiting_s, self.live.latest
        facts: dict[str, Any] = {
            "source": self.param("backend"),
            "model": self.param("model"),
            "waiting_s": round(waiting, 1),
            "last": latest.status if latest else "none",
        }
        trouble = self.live.trouble or (latest.detail if latest else "")
        if trouble or waiting > self.param("late_s"):
            facts["warning"] = trouble or f"no answer for {waiting:.0f} s"
        return facts


def main() -> None:
    run(ProgressNode)


if __name__ == "__main__":
    main()
