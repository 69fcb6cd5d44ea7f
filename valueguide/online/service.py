"""The learner as a process of its own: takes in finished episodes, learns from them, publishes critics.

settings = ServiceSettings("runs/learner", "outputs/policy", "outputs/critic", ("runs/day1/dataset",))
with LearnerService(settings) as service:
    while running:
        if not service.work():      # one bounded piece; False when there is nothing to do now
            time.sleep(0.2)

The robot reads `versions/` and never waits for this process; what goes wrong here is a line in the status.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.language import MiniLMEncoder
from valueguide.critics.scorer import LearnedCritic
from valueguide.critics.warm_start import trainer_from
from valueguide.data.layout import make_folder, write_json
from valueguide.errors import ConfigError, ValueguideError, mismatch
from valueguide.interfaces import BatchProposer
from valueguide.online.intake import HELD_OUT, REPLAY, Intake
from valueguide.online.learner import CriticLearner, Embed
from valueguide.online.publisher import Publisher
from valueguide.online.service_files import STATUS, learner_name, lock_folder
from valueguide.online.service_settings import ServiceSettings, check_same_run
from valueguide.online.versions import CriticVersions
from valueguide.online.vision import frozen_tower
from valueguide.policies.load import load_policy

log = logging.getLogger("valueguide.online")
TRAINING, VERSIONS = "training", "versions"
_STATE, _JOURNAL, _NAME, _SHADOW = "state", "journal.jsonl", "name.json", "shadow.json"
#: Discount of critics that do not say theirs.
_GAMMA = 0.98
#: Seconds: of gradient steps in one piece of work, between looks at the datasets, between writings of the
#: status, and before something that failed is tried again.
_PIECE_S, _LOOK_S, _STATUS_S, _RETRY_S = 0.5, 0.5, 2.0, 10.0
_Failure = (ValueguideError, OSError, SafetensorError)


class LearnerService:
    """One learner in `settings.out`, fresh or resumed.

    proposer: the current policy; by default `settings.policy` is loaded. embed: for instructions that the
    starting critic does not know. clock: monotonic seconds.
    `work` and `close` belong to one thread; `status` may be called from any.
    Raises ConfigError when another learner works in the folder, or a run with other settings lies there;
    CheckpointError or DataError for a critic, a policy or a state that is damaged.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        proposer: BatchProposer | None = None,
        embed: Embed | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self._clock = settings, clock
        root = settings.root
        make_folder(root / TRAINING)
        self._lock: int | None = lock_folder(root)
        try:
            loaded = LoadedCritic(Path(settings.critic))
            check_same_run(settings, loaded.version)
            self._policy = proposer or load_policy(settings.policy, settings.device)
            _check_policy(self._policy, loaded)
            self.intake = Intake(
                root, settings.datasets, settings.offline, settings.hold_out, settings.max_bytes
            )
            self.learner = self._make_learner(loaded, embed or MiniLMEncoder().encode)
            self.versions = CriticVersions(root / VERSIONS, keep=settings.keep)
            self.publisher = Publisher(
                self.versions,
                self.learner,
                self._policy,
                root / HELD_OUT,
                learner_name(root / TRAINING / _NAME),
                partial(LearnedCritic.load, device=settings.device),
                root / TRAINING / _SHADOW,
                probe_from=settings.probe_from,
                probe_episodes=settings.probe_episodes,
                limits=settings.limits,
                promote_after=settings.promote_after,
                tower=self._tower,
            )
            self._state = root / TRAINING / _STATE
            if not self.learner.resume(self._state):
                self.learner.save(self._state)  # So that a restart before the first save draws the same.
            self.publisher.begin(Path(settings.critic))
            self._published = self.publisher.published_step()
        except BaseException:
            os.close(self._lock)
            raise
        self._saved = self.learner.trainer.step
        self._updates: Generator[dict[str, float]] | None = None
        self._metrics: dict[str, float] = {}
        self._held_out_changed = True
        self._problems: dict[str, str] = {}
        self._error: Exception | None = None
        self._not_before: dict[str, float] = {}
        self._next_look = self._next_status = -math.inf
        self._status: dict[str, Any] = {}
        self._tell("starts")

    # -- what drives it --------------------------------------------------------------------------

    def work(self) -> bool:
        """One piece: an episode taken in, half a second of gradient steps, a version published or checked.

        False when there is nothing to do now. Errors of the data, the disk and the critics become lines of
        the status; what failed is tried again some seconds later.
        """
        done = any(self._attempt(name, piece) for name, piece in self._pieces())
        if done or self._clock() >= self._next_status:
            self._tell("works" if done else "waits")
        return done

    def finish(self) -> None:
        """All there is: takes in what is recorded, takes the steps that are due and publishes.

        Raises the first error instead of trying again.
        """
        self._work_off()
        if self.learner.trainer.step > self._published:
            self._publish()
            self._work_off()
        self._tell("finished")

    def _work_off(self) -> None:
        self._next_look = -math.inf
        while self.work():
            self._raise_problem()
        self._raise_problem()

    def _raise_problem(self) -> None:
        if self._problems and self._error is not None:
            raise self._error

    def status(self) -> dict[str, Any]:
        """JSON-ready, as of the last piece of work.

        pid, written (seconds since 1970), doing. episodes: counts by what became of them. steps: control
        steps learned from. transitions: of the last batch's stores. gradient_step, steps_due: done in all,
        and due in all. metrics: of the last step. serving, shadow, newest: numbers or None. policy, its
        policy_share and hit_rate. data_wait: share of the time that learning waited for batches.
        problem: what is wrong now, "" if nothing; damaged: episodes and files left out, one line each.
        """
        return dict(self._status)

    def close(self) -> None:
        """Save and release the folder. Raises what saving raises; the folder is released all the same."""
        if self._lock is None:
            return
        try:
            self._pause()
            if self.learner.trainer.step > self._saved:
                self._save()
            self._tell("stopped")
        finally:
            self._release()

    def _release(self) -> None:
        self._pause()
        self.intake.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> LearnerService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Saves, unless an error ended the block: a step may be half done then."""
        if kind is None:
            self.close()
        else:
            self._release()

    # -- pieces of work --------------------------------------------------------------------------

    def _pieces(self) -> list[tuple[str, Callable[[], bool]]]:
        """In the order in which they are tried; each says whether it did something."""
        return [
            ("intake", self._take_in),
            ("save", self._save_if_due),
            ("publish", self._publish_if_due),
            ("promote", self._promote_if_due),
            ("learn", self._learn),
        ]

    def _attempt(self, name: str, piece: Callable[[], bool]) -> bool:
        if self._clock() < self._not_before.get(name, -math.inf):
            return False
        try:
            done = piece()
        except _Failure as error:
            line = f"{name}: {' '.join(str(error).split())}"
            if self._problems.get(name) != line:
                log.error("%s", line)
            self._problems[name] = line
            self._not_before[name] = self._clock() + _RETRY_S
            self._error = error
            return False
        self._problems.pop(name, None)
        return done

    def _take_in(self) -> bool:
        if not self.intake.waiting:
            if self._clock() < self._next_look:
                return False
            self._next_look = self._clock() + _LOOK_S
            if not self.intake.look():
                return False
        entry = self.intake.take()
        self._held_out_changed |= entry is not None and entry.held_out
        return True

    def _save_if_due(self) -> bool:
        step, every = self.learner.trainer.step, self.settings.save_every
        if step // every == self._saved // every:
            return False
        self._save()
        return True

    def _save(self) -> None:
        self.learner.save(self._state)
        self._saved = self.learner.trainer.step

    def _publish_if_due(self) -> bool:
        step, every = self.learner.trainer.step, self.settings.publish_every
        if step // every == self._published // every:
            return False
        self._publish()
        return True

    def _publish(self) -> None:
        """Saved before, so that a restart never learns again what it has published."""
        self._pause()
        if self.learner.trainer.step > self._saved:
            self._save()
        self.publisher.publish()
        self._published = self.learner.trainer.step
        self._held_out_changed = True

    def _promote_if_due(self) -> bool:
        """Check what was not checked yet, and what has been in shadow for long enough."""
        recorded = self.intake.ledger.recorded_episodes
        if self._held_out_changed and self.publisher.check_due():
            self._pause()
            self.publisher.check(recorded)
            self._held_out_changed = False
            return True
        self._held_out_changed = False
        if self.publisher.promotion_due(recorded):
            self._pause()
            self.publisher.promote(recorded)
            return True
        return False

    def _learn(self) -> bool:
        due, step = self.settings.steps_due(self.intake.ledger.recorded_steps), self.learner.trainer.step
        if step >= due:
            return False
        # Not past a step at which something is to be saved or published.
        stops = [
            (step // every + 1) * every for every in (self.settings.save_every, self.settings.publish_every)
        ]
        until, enough = min(due, *stops), self._clock() + _PIECE_S
        updates = self._updates = self._updates or self.learner.learn(sys.maxsize)
        try:
            self._metrics = next(updates)
            while self.learner.trainer.step < until and self._clock() < enough:
                self._metrics = next(updates)
        except _Failure:
            # A step that failed may have left numbers that are none: back to what was saved.
            self._pause()
            self.learner.resume(self._state)
            raise
        return True

    def _pause(self) -> None:
        """End the thread that asks the policy ahead, so that others may ask it."""
        if self._updates is not None:
            self._updates.close()
            self._updates = None

    # -- what it is made of, and what it says ----------------------------------------------------

    def _make_learner(self, loaded: LoadedCritic, embed: Embed) -> CriticLearner:
        settings, root = self.settings, self.settings.root
        gamma = float(loaded.manifest.get("gamma", _GAMMA))
        self._tower = frozen_tower(loaded, root / TRAINING / "features")
        return CriticLearner(
            root / REPLAY,
            trainer_from(loaded, settings.training(gamma), settings.device),
            loaded.instructions,
            self._policy,
            settings.learning,
            embed=embed,
            features=None if self._tower is None else self._tower.of_segment,
            journal=root / TRAINING / _JOURNAL,
        )

    def _tell(self, doing: str) -> None:
        """Renew the status, and every few seconds, or when something else is done than before, its file."""
        learner, targets = self.learner, self.learner.targets
        before = self._status.get("doing")
        try:
            state, numbers = self.versions.state(), self.versions.numbers()
            roles = (state.serving, state.shadow, max(numbers, default=None))
            self._problems.pop("versions", None)
        except _Failure as error:
            roles = (None, None, None)
            self._problems["versions"] = f"versions: {error}"
        self._status = {
            "pid": os.getpid(),
            "written": time.time(),
            "doing": doing,
            "episodes": self.intake.counts(),
            "steps": self.intake.ledger.recorded_steps,
            "transitions": {str(store): count for store, count in learner.loader.transitions.items()},
            "gradient_step": learner.trainer.step,
            "steps_due": self.settings.steps_due(self.intake.ledger.recorded_steps),
            "saved_step": self._saved,
            "published_step": self._published,
            "metrics": {n: v for n, v in self._metrics.items() if math.isfinite(v)},
            **dict(zip(("serving", "shadow", "newest"), roles, strict=True)),
            "policy": targets.proposer.version,
            "policy_share": targets.policy_share,
            "hit_rate": targets.hit_rate,
            "data_wait": self._metrics.get("data_wait_share", 0.0),
            "check": self.publisher.problem,
            "problem": "; ".join(self._problems.values()),
            "damaged": list(self.intake.problems.values()),
        }
        now = self._clock()
        if doing == before and now < self._next_status:
            return
        self._next_status = now + _STATUS_S
        try:
            write_json(self.settings.root / STATUS, self._status)
        except OSError as error:
            self._problems["status"] = f"status: {error}"
        else:
            self._problems.pop("status", None)


def _check_policy(policy: BatchProposer, loaded: LoadedCritic) -> None:
    """Raises ConfigError when its chunks are no chunks for the critic."""
    steps, size = getattr(policy, "horizon", None), getattr(policy, "action_dim", None)
    wanted = loaded.spec.executed_length, loaded.spec.action_dim
    if (steps is not None and steps < wanted[0]) or (size is not None and size != wanted[1]):
        expected = f"{wanted[0]} steps or more of {wanted[1]} numbers, as the critic's"
        raise ConfigError(mismatch("--policy", "chunks", expected, f"{steps} steps of {size}"))
