"""A robot of `bench soak`, in a process of its own: episodes in real time over a link, one after another.

    python -m valueguide.bench.soak_robot '{"endpoint": ..., ...}'

Each line on stdout is a JSON object with "at", monotonic seconds, and one of "decision_ms", "error",
"episode" or "session". It ends when its standard input is closed, so it does not outlive who started it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from valueguide.errors import ValueguideError
from valueguide.evaluation.arms import sampling_seed
from valueguide.evaluation.linked import LinkedSettings, linked
from valueguide.execution.executor import ExecutorSettings, Motion
from valueguide.execution.splice import gripper_dimensions, increments
from valueguide.robots.remote import Planned, RemotePilot
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.input_end import input_closed
from valueguide.transport.link import ServerLink
from valueguide.transport.pending import LinkSettings, Pending
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import ActionChunk, Candidates, Decision

_CONNECT_S = 60.0


@dataclass(frozen=True)
class RobotPlan:
    """What one robot does. seed: of its first episode. timeout_s: until when an answer must have come.

    reconnect_s: after so long, at the end of an episode, it says goodbye and comes again; None: never.
    """

    endpoint: str
    suite: str
    tasks: tuple[str, ...]
    name: str
    seed: int
    k: int
    execute: int
    aggregate: str
    timeout_s: float
    reconnect_s: float | None


class _Ended(Exception):
    """In the middle of an episode."""


class _TellingSteerer(RemoteSteerer):
    """Says which questions failed that somebody waited for, without those that a new episode overtook."""

    def __init__(
        self, link: ServerLink, config: SteeringConfig, say: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(link, config, connect_s=_CONNECT_S)
        self._say = say

    def take(self, pending: Pending) -> tuple[ActionChunk, Candidates, Decision]:
        try:
            return super().take(pending)
        except ValueguideError as error:
            self._say({"error": str(error)})
            raise


class Robot:
    """See the module. say: takes what goes out as a line. ended: asked in every control period."""

    def __init__(
        self, plan: RobotPlan, say: Callable[[dict[str, Any]], None], ended: Callable[[], bool]
    ) -> None:
        from sim.suite import make_suite

        self.plan, self.suite = plan, make_suite(plan.suite)
        self._say, self._ended = say, ended
        self._kept = gripper_dimensions(self.suite.action_names)
        self._environments = [(task, self.suite.make(task)) for task in plan.tasks]
        self._episodes = 0
        self._planned: Planned | None = None

    def work(self) -> None:
        """Episodes until `ended`. Raises LinkError when no server answers at all."""
        with contextlib.suppress(_Ended):
            while not self._ended():
                self._session()

    def _session(self) -> None:
        plan = self.plan
        until = time.monotonic() + (math.inf if plan.reconnect_s is None else plan.reconnect_s)
        with ServerLink(LinkSettings(plan.endpoint, name=plan.name, timeout_s=plan.timeout_s)) as link:
            config = SteeringConfig(k=plan.k, execute=plan.execute, aggregate=plan.aggregate)
            pilot = self._pilot(_TellingSteerer(link, config, self._say))
            self._say({"session": plan.name})
            while time.monotonic() < until:
                self._episode(pilot)

    def _pilot(self, steerer: RemoteSteerer) -> RemotePilot:
        limits = self.suite.action_low, self.suite.action_high
        settings = ExecutorSettings(1 / self.suite.fps, self.plan.execute, *limits)
        return RemotePilot(steerer, settings, increments=increments(*limits, self._kept))

    def _episode(self, pilot: RemotePilot) -> None:
        task, env = self._environments[self._episodes % len(self._environments)]
        seed = self.plan.seed + self._episodes
        self._episodes += 1

        def watch(number: int, motion: Motion | None) -> None:
            self._note(pilot)

        settings = LinkedSettings(self.suite.fps, self.suite.max_steps, kept=self._kept)
        noise = sampling_seed(seed, task, self.suite.tasks)
        episode = linked(env, pilot, seed, settings, sampling_seed=noise, watch=watch)
        self._say({"episode": episode.success, "steps": len(episode.steps)})

    def _note(self, pilot: RemotePilot) -> None:
        """In every control period: what is new since the last."""
        if self._ended():
            raise _Ended
        if pilot.planned is not None and pilot.planned is not self._planned:
            self._planned = pilot.planned
            self._say({"decision_ms": 1e3 * pilot.planned.round_trip_s})


def main() -> None:
    """See the module."""
    fields = json.loads(sys.argv[1])
    closed = input_closed()

    def say(what: dict[str, Any]) -> None:
        print(json.dumps({"at": time.monotonic(), **what}), flush=True)

    Robot(RobotPlan(**{**fields, "tasks": tuple(fields["tasks"])}), say, closed.is_set).work()


if __name__ == "__main__":
    main()
