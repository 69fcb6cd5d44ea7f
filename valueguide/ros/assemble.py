"""`EpisodeAssembler`: the graph's messages in, finished episodes out; live and from a bag alike.

Which messages make a step:

- A step is a MOVE on `command` while a task runs; its observation is the newest one at the command's stamp.
- A hold step is recorded for every control period, counted from the last step and rounded, in which no MOVE
  passed: from the first step of an episode on, until its end or a STOP.
- The final observation is the first one of which every part was taken a control period after the last step.

Everything goes by stamps, and messages of different topics may overtake each other by `settle_s`.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from valueguide.config.robot import RobotConfig
from valueguide.errors import DataError
from valueguide.execution.sync import StaleError
from valueguide.ros.episodes import Ending, Plans, Taken, build_episode
from valueguide.ros.messages import stamp_ns
from valueguide.ros.observe import COMMAND, PRIVILEGED, ObservationBuilder, observation_topics
from valueguide.ros.topics import CANDIDATES, CHUNK, DECISION, HELP, SAFETY, TASK
from valueguide.safety.gate import Kind
from valueguide.types import Episode, Observation

#: Part of a control period after which the next observation counts as the successor: stamps jitter.
_PERIOD_OVER = 0.95
_NEVER = 2**63 - 1
_UNKNOWN_EPISODES = 4
_FRAMES = 1024


@dataclass
class _Running:
    """An episode of which not everything has arrived yet."""

    task: Any
    start: int
    end: Any = None
    end_ns: int = _NEVER
    stop_ns: int = _NEVER
    waiting: deque[tuple[int, Any]] = field(default_factory=deque)
    taken: list[Taken] = field(default_factory=list)
    held: list[tuple[int, Any]] = field(default_factory=list)
    last_move: int = -1

    @property
    def number(self) -> int:
        return int(self.task.episode_id)

    @property
    def until(self) -> int:
        return min(self.end_ns, self.stop_ns)


class EpisodeAssembler:
    """Feed every message in order of arrival; pure, so the same messages give the same episodes.

    privileged: the simulator's state is part of the observation. frozen_s: see ObservationBuilder.
    settle_s: how much later than its stamp's neighbours a message may arrive; None: the robot's staleness.
    """

    def __init__(
        self,
        robot: RobotConfig,
        *,
        privileged: bool = True,
        frozen_s: float = 1.0,
        settle_s: float | None = None,
    ) -> None:
        self._robot = robot
        privileged = privileged and bool(robot.environment_state_topic)
        self._builder = ObservationBuilder(robot, privileged=privileged, frozen_s=frozen_s)
        sources = [role for role in observation_topics(robot, privileged) if role != PRIVILEGED]
        self._roles = {*sources, PRIVILEGED} if privileged else set(sources)
        self._pace = sources[0]
        self._newest = dict.fromkeys(sources, -1)
        self._frames: list[int] = []
        self._period = round(1e9 / robot.rate_hz)
        self._tolerance = round(robot.sync.tolerance_s * 1e9)
        self._stale = round(robot.sync.stale_s * 1e9)
        self._settle = self._stale if settle_s is None else round(settle_s * 1e9)
        self._running: list[_Running] = []
        self._plans: dict[int, Plans] = {}
        self._recent: deque[tuple[int, Any]] = deque(maxlen=256)
        self._rejected: list[tuple[int, int]] = []

    @property
    def recording(self) -> bool:
        """An episode is under way or not yet complete."""
        return bool(self._running)

    def feed(self, role: str, message: Any, received_ns: int) -> Sequence[Episode | DataError]:
        """One message. role: of `valueguide.ros.topics`. received_ns: when it arrived, in ROS time.

        Returns the episodes that are complete with it, and a DataError, one line, for each that failed.
        """
        done: list[Episode | DataError] = []
        try:
            self._note(role, message, received_ns, done)
        except DataError as error:
            done += self._drop(error)
        for episode in list(self._running):
            self._advance(episode, received_ns, done)
        return done

    def drop(self, reason: str) -> Sequence[DataError]:
        """Give up what is under way, e.g. because messages were lost; one line for each episode."""
        return self._drop(DataError(reason))

    def close(self) -> Sequence[Episode | DataError]:
        """No more messages: an episode whose end was told is finished, any other is dropped."""
        done: list[Episode | DataError] = []
        for episode in [e for e in self._running if e.end is not None]:
            self._advance(episode, _NEVER, done)
        return [*done, *self.drop("the recording ended before the episode did")]

    def _advance(self, episode: _Running, now: int, done: list[Episode | DataError]) -> None:
        """Take the steps that are due, and finish the episode if nothing of it can still arrive."""
        try:
            self._take_due(episode, now)
            finished = self._finished(episode, now)
        except DataError as error:
            self._forget(episode)
            done.append(DataError(f"episode {episode.number} dropped: {error}"))
            return
        if finished is not None:
            self._forget(episode)
            done.append(finished)

    def _drop(self, error: DataError) -> list[DataError]:
        dropped = [DataError(f"episode {episode.number} dropped: {error}") for episode in self._running]
        for episode in list(self._running):
            self._forget(episode)
        return dropped

    def _forget(self, episode: _Running) -> None:
        self._running.remove(episode)
        self._plans.pop(episode.number, None)

    # What arrives.

    def _note(self, role: str, message: Any, received: int, done: list[Episode | DataError]) -> None:
        if role in self._roles:
            self._builder.push(role, message, received)
            if role != PRIVILEGED:
                self._on_source(role, stamp_ns(message))
        elif role == COMMAND:
            self._builder.push(role, message)
            self._recent.append((stamp_ns(message), message))
            for episode in self._running:
                self._on_command(episode, stamp_ns(message), message)
        elif role == TASK:
            self._on_task(message, received, done)
        elif role == SAFETY:
            self._rejected.append((stamp_ns(message), int(message.rejected)))
            del self._rejected[: -4096 if self._running else -64]
        elif role in (CHUNK, CANDIDATES, DECISION, HELP):
            self._plans.setdefault(int(message.episode_id), Plans()).add(role, message)
            known = {episode.number for episode in self._running}
            for number in [n for n in self._plans if n not in known][:-_UNKNOWN_EPISODES]:
                del self._plans[number]

    def _on_source(self, role: str, stamp: int) -> None:
        self._newest[role] = stamp
        if role == self._pace:
            if self._frames and stamp < self._frames[-1] - 1_000_000_000:
                self._frames.clear()  # the clock was set back
            bisect.insort(self._frames, stamp)
            del self._frames[:-_FRAMES]

    def _on_task(self, message: Any, received: int, done: list[Episode | DataError]) -> None:
        number, stamp = int(message.episode_id), stamp_ns(message)
        running = next((e for e in self._running if e.number == number and e.end is None), None)
        if message.finished:
            if running is not None:
                running.end, running.end_ns = message, stamp
            return
        if not message.active or running is not None:
            return
        for episode in [e for e in self._running if e.end is None]:
            self._forget(episode)
            done.append(
                DataError(f"episode {episode.number} dropped: episode {number} began before its end was told")
            )
        if received - stamp > self._settle:
            late = (received - stamp) / 1e9
            done.append(
                DataError(f"episode {number} dropped: it was {late:.1f} s old when the recording began")
            )
            return
        episode = _Running(message, stamp)
        self._running.append(episode)
        for earlier, command in self._recent:
            self._on_command(episode, earlier, command)

    def _on_command(self, episode: _Running, stamp: int, message: Any) -> None:
        if not episode.start <= stamp <= episode.until:
            return
        if message.kind == Kind.MOVE:
            if stamp <= episode.last_move:
                raise DataError(
                    f"command {message.sequence}: its stamp is {(episode.last_move - stamp) / 1e9:.3f} s "
                    "before the last one's"
                )
            episode.last_move = stamp
            episode.waiting.append((stamp, message))
        elif message.kind == Kind.HOLD:
            episode.held.append((stamp, message))
        elif message.kind == Kind.STOP:
            episode.stop_ns = stamp

    # Steps, as soon as nothing that arrives can change them any more.

    def _take_due(self, episode: _Running, now: int) -> None:
        while (due := self._due(episode, now)) is not None and self._settled(due[0], now):
            stamp, command = due
            if command is not None:
                episode.waiting.popleft()
            observation = self._builder.observe(
                str(episode.task.instruction), not_before=stamp - self._stale, not_after=stamp
            )
            episode.taken.append(Taken(stamp, command, observation))

    def _due(self, episode: _Running, now: int) -> tuple[int, Any] | None:
        """Stamp of the next step, with its command or None for a hold; None while it is not known."""
        hold = episode.taken[-1].stamp + self._period if episode.taken else _NEVER
        decided = min(hold + self._period // 2, _NEVER)
        if episode.waiting:
            stamp, command = episode.waiting[0]
            if episode.taken and episode.taken[-1].command is None and stamp < decided - self._period:
                late = (now - stamp) / 1e9
                raise DataError(f"command {command.sequence}: arrived {late:.2f} s after its stamp")
            if stamp < decided:
                return stamp, command
        if decided >= episode.until or not episode.waiting and now < decided + self._settle:
            return None
        return hold, None

    def _settled(self, stamp: int, now: int) -> bool:
        """Every source has told all that belongs to this stamp, or has had its time."""
        complete = all(newest >= stamp + self._tolerance for newest in self._newest.values())
        return complete or now >= stamp + self._settle

    # The end.

    def _finished(self, episode: _Running, now: int) -> Episode | None:
        """The episode, once its end is told and nothing of it can still arrive."""
        if episode.end is None or now < episode.end_ns + self._settle or episode.waiting:
            return None
        # A hold may have been counted before the end or the stop was heard of.
        half, until = self._period // 2, episode.until
        taken = [t for t in episode.taken if t.command is not None or t.stamp + half < until]
        taken = [t for t in taken if t.stamp <= until]
        if not taken:
            raise DataError("no command passed the safety gate")
        final = self._final_observation(episode, taken[-1].stamp, now)
        if final is None:
            return None
        ending = Ending(episode.task, episode.end, episode.held, self._count_rejected(episode))
        return build_episode(self._robot, taken, final, self._plans.get(episode.number, Plans()), ending)

    def _final_observation(self, episode: _Running, last: int, now: int) -> Observation | None:
        after = last + round(_PERIOD_OVER * self._period)
        limit = after + 2 * self._stale
        following = [other.start for other in self._running if other.start > episode.end_ns]
        latest = min([limit, *(start - 1 for start in following)])
        for stamp in self._frames[bisect.bisect_left(self._frames, after) :]:
            if stamp > latest:
                break
            if not self._settled(stamp, now):
                return None
            try:
                return self._builder.observe(str(episode.task.instruction), not_before=after, not_after=stamp)
            except StaleError:
                continue
        if now < latest + self._settle:
            return None
        raise DataError("no observation after the last action: the successor of the last step is unknown")

    def _count_rejected(self, episode: _Running) -> int:
        """How many commands the gate refused in the episode, by its own counter."""
        before = [count for stamp, count in self._rejected if stamp <= episode.start]
        within = [count for stamp, count in self._rejected if episode.start < stamp <= episode.end_ns]
        if not within:
            return 0
        return max(0, within[-1] - (before[-1] if before else within[0]))
