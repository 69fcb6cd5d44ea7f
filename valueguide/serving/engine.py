"""From a batch of requests to decisions: one pass for all where the models can, else one by one.

A request that is alone in its batch is answered exactly as `steering.Steerer` does it in process, bit for
bit. With others, proposals and scores come from batched passes, equal up to rounding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, overload

import numpy as np

from valueguide.errors import CheckpointError, DataError, mismatch
from valueguide.execution.splice import splice
from valueguide.serving.sessions import Job
from valueguide.steering.decide import decide
from valueguide.steering.steer import SteeringConfig, rerank
from valueguide.transport.messages import (
    CALIBRATED,
    CriticFacts,
    DecideReply,
    DecideRequest,
    PolicyFacts,
)
from valueguide.types import Candidates, Decision, Observation, Scores


@dataclass(frozen=True)
class Models:
    """What is in service, swapped as a whole.

    policy: a `LeRobotPolicy`. critic: a `LearnedCritic` or None.
    """

    policy: Any
    critic: Any = None

    def __post_init__(self) -> None:
        """Raises CheckpointError when the two do not fit together."""
        if self.critic is None:
            return
        if self.policy.action_dim != self.critic.action_dim:
            wanted = f"the policy's {self.policy.action_dim}"
            raise CheckpointError(mismatch("critic", "action size", wanted, self.critic.action_dim))
        if self.policy.horizon < self.critic.executed_length:
            wanted = f"<= the policy's horizon {self.policy.horizon}"
            raise CheckpointError(mismatch("critic", "executed steps", wanted, self.critic.executed_length))

    def policy_facts(self) -> PolicyFacts:
        policy = self.policy
        return PolicyFacts(
            version=policy.version,
            action_dim=policy.action_dim,
            horizon=policy.horizon,
            history=int(getattr(policy, "history", 1)),
            cameras={name: (int(h), int(w)) for name, (h, w) in getattr(policy, "cameras", {}).items()},
            state_dim=int(getattr(policy, "state_dim", 0)),
            needs_environment_state=bool(getattr(policy, "needs_environment_state", False)),
        )

    def critic_facts(self) -> CriticFacts | None:
        critic = self.critic
        if critic is None:
            return None
        spec = getattr(critic, "spec", None)
        return CriticFacts(
            version=critic.version,
            executed_length=critic.executed_length,
            cameras={name: (int(h), int(w)) for name, (h, w) in getattr(spec, "cameras", {}).items()},
            environment_state_dim=int(getattr(spec, "environment_state_dim", 0)),
        )


#: A `ValueguideError` is the request's fault; any other exception the models'.
Outcome = DecideReply | Exception


@dataclass
class _Work:
    """A job on its way through the models."""

    job: Job
    candidates: Candidates | None = None
    decision: Decision | None = None
    error: Exception | None = None
    policy_s: float = 0.0
    critic_s: float = 0.0

    @property
    def request(self) -> DecideRequest:
        return self.job.request

    @property
    def latest(self) -> Observation:
        return self.request.window[-1]


class Engine:
    """Answers batches, one at a time, with the models of the moment. `pause` keeps it from beginning one."""

    def __init__(self, models: Models, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: the one on which jobs arrived, seconds."""
        self.models = models
        self.pause = threading.Lock()
        self._clock = clock

    @overload
    def answer(self, jobs: Sequence[Job]) -> list[Outcome]: ...

    @overload
    def answer(self, jobs: Sequence[Job], wait: bool) -> list[Outcome] | None: ...

    def answer(self, jobs: Sequence[Job], wait: bool = True) -> list[Outcome] | None:
        """One outcome a job, in order. What is wrong with one request is that request's error alone.

        wait: for the end of a pause; otherwise None while there is one.
        """
        if not self.pause.acquire(blocking=wait):
            return None
        try:
            models, begun = self.models, self._clock()
            works = [_Work(job) for job in jobs]
            for part in _groups(works, lambda w: (w.request.candidates is not None, w.request.k)):
                self._propose(models, part)
            for work in works:
                self._guard(work, self._adapt, models)
            alive = [work for work in works if work.error is None]
            for part in _groups(alive, lambda w: (_actions(w).shape, w.request.guided)):
                self._score(models, part)
            return [self._outcome(models, work, begun, len(jobs)) for work in works]
        finally:
            self.pause.release()

    def _guard(self, work: _Work, step: Callable[..., None], *arguments: Any) -> None:
        """One step for one job; what it raises becomes that job's error."""
        if work.error is not None:
            return
        try:
            step(*arguments, work)
        except Exception as error:  # whatever a model throws must not take the other robots' answers along
            work.error = error

    # -- proposals -------------------------------------------------------------------------------

    def _propose(self, models: Models, works: list[_Work]) -> None:
        start = self._clock()
        if len(works) > 1 and works[0].request.candidates is None and hasattr(models.policy, "propose"):
            try:
                self._propose_together(models.policy, works)
            except Exception:  # one request's fault, or too many for the memory: each alone will show
                for work in works:
                    self._guard(work, self._propose_one, models.policy)
        else:
            for work in works:
                self._guard(work, self._propose_one, models.policy)
        for work in works:
            work.policy_s = self._clock() - start

    def _propose_together(self, policy: Any, works: list[_Work]) -> None:
        history = int(getattr(policy, "history", 1))
        windows = [work.request.window[-history:] for work in works]
        seeds = np.array([work.request.seed for work in works], np.int64)
        rows = policy.propose(windows, works[0].request.k, seeds)
        for work, actions in zip(works, rows, strict=True):
            work.candidates = Candidates(np.ascontiguousarray(actions))

    def _propose_one(self, policy: Any, work: _Work) -> None:
        request = work.request
        if request.candidates is not None:
            work.candidates = Candidates(request.candidates)
            return
        policy.reset()
        for observation in request.window:
            policy.observe(observation)
        work.candidates = policy.sample(request.k, request.seed)

    def _adapt(self, models: Models, work: _Work) -> None:
        """Check the request against the models, and put the committed actions first."""
        request = work.request
        assert work.candidates is not None
        shape = work.candidates.actions.shape
        if request.execute > shape[1]:
            raise DataError(mismatch("request", "execute", f"<= {shape[1]} planned steps", request.execute))
        critic = models.critic if request.guided else None
        if critic is not None and critic.executed_length != request.execute:
            wanted = f"{critic.executed_length}, the steps that the critic scores"
            raise DataError(mismatch("request", "execute", wanted, request.execute))
        if request.committed is not None:
            work.candidates = splice(
                work.candidates,
                request.committed,
                absolute=request.absolute,
                increments=request.increments,
            )

    # -- choices ---------------------------------------------------------------------------------

    def _score(self, models: Models, works: list[_Work]) -> None:
        start = self._clock()
        critic = models.critic if works[0].request.guided else None
        together = critic is not None and len(works) > 1 and hasattr(critic, "score_batch")
        if together:
            try:
                self._score_together(critic, works)
            except Exception:  # as above
                together = False
        if not together:
            for work in works:
                self._guard(work, self._score_one, critic)
        for work in works:
            work.critic_s = self._clock() - start

    def _score_together(self, critic: Any, works: list[_Work]) -> None:
        actions = np.stack([_actions(work) for work in works])
        q = critic.score_batch([work.latest for work in works], actions)
        for row, work in enumerate(works):
            config = _config(work.request, critic)
            work.decision = decide(
                Scores(np.ascontiguousarray(q[:, row])),
                beta=config.beta,
                how=config.aggregate,
                seed=work.request.seed,
                elapsed_s=self._clock() - work.job.arrived,
                deadline_s=config.deadline_s,
                spread_limit=config.spread_limit,
                shadow=config.shadow,
            )

    def _score_one(self, critic: Any, work: _Work) -> None:
        request, arrived = work.request, work.job.arrived
        config = _config(request, critic)
        if critic is None:
            work.decision = decide(None, elapsed_s=self._clock() - arrived)
            return
        assert work.candidates is not None
        work.decision = rerank(
            critic, work.latest, work.candidates, config, request.seed, arrived, self._clock
        )

    def _outcome(self, models: Models, work: _Work, begun: float, batch: int) -> Outcome:
        if work.error is not None:
            return work.error
        assert work.candidates is not None and work.decision is not None
        request, decision = work.request, work.decision
        critic = models.critic if request.guided else None
        return DecideReply(
            actions=work.candidates.actions[decision.index],
            decision=decision,
            executed_length=request.execute,
            policy_version="" if request.candidates is not None else models.policy.version,
            critic_version=critic.version if critic else "",
            candidates=work.candidates if request.want_candidates else None,
            policy_s=work.policy_s,
            critic_s=work.critic_s,
            queue_s=max(0.0, begun - work.job.arrived),
            batch=batch,
        )


def warm_up(models: Models, k: int, batch: int) -> None:
    """Run it all once, alone and in a batch: no robot pays for what the first pass allocates.

    Raises what the models raise: what cannot answer a blank observation is not put in service.
    """
    observation = blank_observation(models)
    execute = models.critic.executed_length if models.critic else 1
    for size in dict.fromkeys((1, batch)):
        requests = [DecideRequest((observation,), row, k, execute=execute) for row in range(size)]
        now = time.perf_counter()
        for outcome in Engine(models).answer([Job(b"", 0, 0, r, now, 0) for r in requests]):
            if isinstance(outcome, Exception):
                raise outcome


def warm_critic(models: Models, k: int) -> None:
    """As `warm_up`, of the critic alone: the policy may be at work meanwhile."""
    critic, policy = models.critic, models.policy
    actions = np.zeros((k, policy.horizon, policy.action_dim), np.float32)
    critic.score(critic.encode(blank_observation(models)), actions)


def blank_observation(models: Models) -> Observation:
    """Black pictures and zeros, of the sizes that both models want, and a task that the critic knows."""
    policy, critic = models.policy_facts(), models.critic_facts()
    spec = getattr(models.critic, "spec", None)
    cameras = policy.cameras | (critic.cameras if critic else {})
    known = models.critic.manifest["instructions"] if critic else [""]
    environment = critic.environment_state_dim if critic else 0
    state = int(spec.state_dim) if spec else policy.state_dim
    privileged = bool(environment) or policy.needs_environment_state
    if privileged and not environment:
        feature = models.policy.policy.config.env_state_feature
        environment = int(feature.shape[0]) if feature else 0
    return Observation(
        images={name: np.zeros((*size, 3), np.uint8) for name, size in cameras.items()},
        state=np.zeros(state, np.float32),
        task=known[0] if known else "",
        environment_state=np.zeros(environment, np.float32) if privileged else None,
    )


def _actions(work: _Work) -> Any:
    assert work.candidates is not None
    return work.candidates.actions


def _config(request: DecideRequest, critic: Any) -> SteeringConfig:
    """Raises ConfigError for settings that steering would refuse."""
    limit = request.spread_limit
    return _checked_config(
        request.k,
        request.beta,
        request.execute,
        request.aggregate,
        request.deadline_s,
        getattr(critic, "spread_limit", None) if limit == CALIBRATED else limit,
        request.shadow,
    )


#: A robot's settings are the same each time. Not those that are refused: they are looked at again.
_checked_config = lru_cache(maxsize=64)(SteeringConfig)


def _groups(works: Iterable[_Work], key: Callable[[_Work], Any]) -> list[list[_Work]]:
    """Those that can go through a model together, in a fixed order."""
    works = list(works)
    if len(works) < 2:
        return [works] if works else []
    ordered = sorted(works, key=lambda work: repr(key(work)))
    return [list(part) for _, part in groupby(ordered, key=key)]
