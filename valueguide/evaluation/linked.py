"""One episode in real time: the models answer from elsewhere while the arm moves on or holds.

`rollout` lets simulated time stand still while a chunk is planned. Here every control period takes as long
as on a robot, and what has not arrived by its beginning does not run in it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from valueguide.evaluation.suite import to_observation
from valueguide.execution.executor import Motion
from valueguide.robots.remote import Planned, RemotePilot
from valueguide.types import Episode, Step

#: Called in every control period with its number and what is about to be sent, None for a hold.
Watcher = Callable[[int, Motion | None], None]
LINK_LOST = "link_lost"


@dataclass(frozen=True)
class LinkedSettings:
    """fps: control periods a second. max_steps: of the episode, holds included.

    lost_s: an episode whose questions go unanswered for so long ends as truncated. Periods held for that
    reason do not count towards max_steps: an arm that waits for a server has not used up its time.
    kept: positions in the action that a hold leaves as last commanded, such as the gripper's; at first open.
    stretch: seconds of the clock for one of the robot's. lost_s is of the clock.
    """

    fps: float
    max_steps: int
    lost_s: float = 30.0
    kept: tuple[int, ...] = ()
    stretch: float = 1.0


@dataclass
class _Run:
    env: Any
    pilot: RemotePilot
    settings: LinkedSettings
    task: str
    raw: dict[str, Any]
    info: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    plans: dict[int, Planned] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    round_trips_s: list[float] = field(default_factory=list)
    unused: int = 0
    waited: int = 0
    lost_at: float | None = None
    slips_s: list[float] = field(default_factory=list)
    done: bool = False

    def note(self, planned: Planned) -> None:
        self.plans[planned.chunk_id] = planned
        self.reasons[planned.decision.reason] += 1
        self.round_trips_s.append(planned.round_trip_s)
        self.unused += not planned.used

    def step(self, now: float, watch: Watcher) -> None:
        """One control period: see, decide, send."""
        observation = to_observation(self.raw, self.task, len(self.steps), self.settings.fps)
        motion = self.pilot.step(observation)
        watch(len(self.steps), motion)
        lost = self._lost(now)
        if motion is None:
            outcome, step = self.env.hold(), Step(observation, self._held(), source="hold")
        else:
            outcome, step = self.env.step(motion.values), self._moved(observation, motion)
        self.raw, reward, terminated, truncated, self.info = outcome
        self.waited += motion is None and bool(self.pilot.trouble)
        step.reward, step.success = float(reward), bool(self.info.get("is_success", False))
        step.terminated = bool(terminated) or step.success
        over = len(self.steps) + 1 - self.waited >= self.settings.max_steps
        step.truncated = not step.terminated and (bool(truncated) or over or lost)
        if lost and step.truncated:
            self.info = {**self.info, "failure": LINK_LOST}
        self.steps.append(step)
        self.done = step.terminated or step.truncated

    def _lost(self, now: float) -> bool:
        if not self.pilot.trouble:
            self.lost_at = None
            return False
        self.lost_at = now if self.lost_at is None else self.lost_at
        return now - self.lost_at >= self.settings.lost_s

    def _held(self) -> Any:
        """What a hold comes to in a log: no motion."""
        last = self.steps[-1].action if self.steps else np.asarray(self.env.action_space.high, np.float32)
        action, kept = np.zeros_like(last), list(self.settings.kept)
        action[kept] = last[kept]
        return action

    def _moved(self, observation: Any, motion: Motion) -> Step:
        planned = self.plans[motion.chunk_id]
        first = not any(step.chunk_id == motion.chunk_id for step in self.steps[-motion.chunk_step - 1 :])
        policy, critic = self.pilot.steerer.policy, self.pilot.steerer.critic
        return Step(
            observation,
            np.asarray(motion.values, np.float32),
            chunk_id=motion.chunk_id,
            chunk_step=motion.chunk_step,
            planned_chunk=planned.chunk.actions,
            policy_version=policy.version,
            critic_version=critic.version if critic else "",
            candidates=planned.candidates if first else None,
            decision=planned.decision if first else None,
        )


def linked(
    env: Any,
    pilot: RemotePilot,
    seed: int,
    settings: LinkedSettings,
    *,
    sampling_seed: int = 0,
    watch: Watcher = lambda number, motion: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Episode:
    """Run one episode from `env.reset(seed=seed)`, one period of `clock` for every control step.

    env: as for `rollout`, with `hold()`, which keeps the measured pose for one control step and returns what
    `step` does. The pilot's `on_planned` is used. A period in which nothing has arrived is a step with source
    "hold". An episode whose link is lost for `lost_s` ends truncated, its failure "link_lost".
    The metadata hold the seed, failure, progress, decisions and their reasons, `holds`, `waited` (those held
    because the server did not answer), `round_trips_s` of all answers, `unused` answers that came too late
    to run, and `slips_s`: by how much each period began late where the computer was too slow.
    """
    raw, info = env.reset(seed=seed)
    run = _Run(env, pilot, settings, str(info.get("task_description", "")), raw, info)
    pilot.on_planned = run.note
    pilot.start(sampling_seed)
    due = clock()
    try:
        while not run.done:
            run.step(clock(), watch)
            due += settings.stretch / settings.fps
            ahead = due - clock()
            if ahead > 0:
                sleep(ahead)
            else:
                # The schedule starts again from here: hurrying would make the link slower than it is.
                run.slips_s.append(-ahead)
                due -= ahead
    finally:
        pilot.stop()
    ran = Counter(step.chunk_id for step in run.steps)
    for step in run.steps:
        step.executed_length = 1 if step.source == "hold" else ran[step.chunk_id]
    last = to_observation(run.raw, run.task, len(run.steps), settings.fps)
    return Episode(run.steps, last, run.task, _facts(run, seed))


def _facts(run: _Run, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "failure": str(run.info.get("failure", "")),
        "progress": float(run.info.get("progress", float("nan"))),
        "decisions": len(run.round_trips_s),
        "reasons": dict(run.reasons),
        "holds": sum(step.source == "hold" for step in run.steps),
        "waited": run.waited,
        "round_trips_s": run.round_trips_s,
        "unused": run.unused,
        "slips_s": run.slips_s,
    }
