"""Node `progress`: placeholder until a vision-language model estimates it. Passes on the simulator's truth.

On a real robot it says `no_estimator`; an operator then ends the episode (services of the node task).
"""

from __future__ import annotations

from typing import Any

import rclpy
from valueguide_msgs.msg import Progress

from valueguide_nodes.base import RELIABLE, VgNode, run

_SILENCE_S = 1.0


class ProgressNode(VgNode):
    NAME = "progress"

    def setup(self) -> None:
        self.heard = -float("inf")
        self.out = self.create_publisher(Progress, "progress", RELIABLE)
        self.create_subscription(Progress, "sim_truth", self.guarded(self.on_truth), RELIABLE)
        steady = rclpy.clock.Clock(clock_type=rclpy.clock.ClockType.STEADY_TIME)
        self.create_timer(0.5, self.guarded(self.on_silence), clock=steady)

    def on_truth(self, message: Progress) -> None:
        self.heard = self.monotonic()
        self.out.publish(message)

    def on_silence(self) -> None:
        if self.monotonic() - self.heard > _SILENCE_S:
            message = Progress(value=float("nan"), status="no_estimator")
            message.header.stamp = self.stamp()
            self.out.publish(message)

    def status(self) -> dict[str, Any]:
        return {"source": "sim_truth" if self.monotonic() - self.heard < _SILENCE_S else "none"}


def main() -> None:
    run(ProgressNode)


if __name__ == "__main__":
    main()
