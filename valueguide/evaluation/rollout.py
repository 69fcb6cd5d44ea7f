"""One episode of one arm: observe, plan, execute E steps, until the episode ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from valueguide.evaluation.suite import to_observation
from valueguide.steering.steer import Steerer
from valueguide.types import ActionChunk, Candidates, Decision, Episode, Float32, Observation, Step

#: Called at every replan with (observation, candidates, decision); for videos.
Watcher = Callable[[Observation, Candidates, Decision], None]


class Operator(Protocol):
    """Someone who may take the controls from the policy, step by step, and give them back."""

    def begin(self, env: Any, seed: int) -> None:
        """A new episode starts; env has just been reset."""

    def wants_control(self, info: dict[str, Any], step: int) -> bool:
        """Whether the human commands step number `step`; asked exactly once before every step."""

    def action(self) -> Float32:
        """The human's command for this step, float32 (A,); asked for only after `wants_control` said yes."""

    def release(self) -> None:
        """Hands off the controls: the episode is over."""

    def facts(self) -> dict[str, Any]:
        """What to keep of the episode in its metadata, JSON-ready."""


@dataclass
class _Log:
    steps: list[Step] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    policy_s: list[float] = field(default_factory=list)
    critic_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)


@dataclass
class _Run:
    """An episode under way: its parts, where it stands, and who commands the next step."""

    env: Any
    steerer: Steerer
    operator: Operator | None
    max_steps: int
    fps: float
    task: str
    raw: dict[str, Any]
    info: dict[str, Any]
    log: _Log = field(default_factory=_Log)
    done: bool = False
    human: bool = False

    def observation(self) -> Observation:
        return to_observation(self.raw, self.task, len(self.log.steps), self.fps)

    @property
    def history(self) -> int:
        return int(getattr(self.steerer.policy, "history", 1))

    def ask(self) -> None:
        """Who commands the next step?"""
        if self.operator is not None and not self.done:
            self.human = self.operator.wants_control(self.info, len(self.log.steps))

    def step(self, observation: Observation, action: Float32, **facts: Any) -> None:
        """One control step. facts: what else is logged of it, fields of `Step`."""
        steps, space = self.log.steps, self.env.action_space
        action = np.clip(action, space.low, space.high)
        self.raw, reward, terminated, truncated, self.info = self.env.step(action)
        succeeded = bool(self.info.get("is_success", False))
        terminated = bool(terminated) or succeeded
        truncated = not terminated and (bool(truncated) or len(steps) + 1 >= self.max_steps)
        steps.append(
            Step(
                observation=observation,
                action=np.asarray(action, np.float32),
                reward=float(reward),
                terminated=terminated,
                truncated=truncated,
                success=succeeded,
                **facts,
            )
        )
        self.done = terminated or truncated
        self.ask()


def rollout(
    env: Any,
    steerer: Steerer,
    seed: int,
    max_steps: int,
    *,
    sampling_seed: int = 0,
    record_images: bool = False,
    watch: Watcher | None = None,
    operator: Operator | None = None,
) -> Episode:
    """Run one episode from `env.reset(seed=seed)`. At `max_steps` it is truncated.

    sampling_seed: with the decision's number it seeds the policy's noise, so that two arms see the
    same proposals in the same state. record_images: keep pictures in every step, not only at replans.
    operator: may take over before any step, also in the middle of a chunk, whose `executed_length` is then
    what ran of it; after the hand-back the policy plans anew. A human's steps have source "human",
    `intervention` and no chunk.
    The metadata hold the seed, timings per decision, reasons, failure and final progress; with an operator
    also `takeovers`, `human_steps` and the operator's own facts.
    """
    steerer.reset()
    history = int(getattr(steerer.policy, "history", 1))
    lazy = history == 1 and not record_images and hasattr(env, "set_render")
    fps = float(env.metadata.get("render_fps", 10))
    if lazy:
        env.set_render(False)
    raw, info = env.reset(seed=seed)
    task = str(info.get("task_description") or getattr(env.unwrapped, "task_description", ""))
    run, replan = _Run(env, steerer, operator, max_steps, fps, task, raw, info), 0
    if operator is not None:
        operator.begin(env, seed)
    run.ask()
    while not run.done:
        if run.human:
            _human_step(run)
            continue
        if lazy:
            env.set_render(True)
            run.raw = env.observe()
            env.set_render(False)
        observation = run.observation()
        steerer.observe(observation)
        noise = int(np.random.default_rng([sampling_seed, replan]).integers(2**31))
        chunk, candidates, decision = steerer.plan(noise)
        replan += 1
        _note(run.log, steerer, decision)
        if watch is not None:
            watch(observation, candidates, decision)
        _execute(run, observation, chunk, candidates, decision)
    if lazy:
        env.set_render(True)
    if operator is not None:
        operator.release()
    return Episode(run.log.steps, run.observation(), task, _facts(run, seed))


def _human_step(run: _Run) -> None:
    assert run.operator is not None
    observation = run.observation()
    if run.history > 1:  # what the policy will see behind it when it goes on
        run.steerer.observe(observation)
    run.step(observation, run.operator.action(), source="human", intervention=True)


def _execute(
    run: _Run, observation: Observation, chunk: ActionChunk, candidates: Candidates, decision: Decision
) -> None:
    """Run the first E steps of the chosen chunk, or fewer when the episode ends or a human takes over."""
    log, steerer = run.log, run.steerer
    first = len(log.steps)
    for number in range(chunk.executed_length):
        run.step(
            observation,
            chunk.actions[number],
            chunk_id=chunk.chunk_id,
            chunk_step=number,
            planned_chunk=chunk.actions,
            policy_version=steerer.policy.version,
            critic_version=steerer.critic.version if steerer.critic else "",
            candidates=candidates if number == 0 else None,
            decision=decision if number == 0 else None,
        )
        if run.done or run.human:
            break
        if number + 1 < chunk.executed_length:
            observation = run.observation()
            if run.history > 1:
                steerer.observe(observation)
    executed = len(log.steps) - first
    for step in log.steps[first:]:
        step.executed_length = executed


def _note(log: _Log, steerer: Steerer, decision: Decision) -> None:
    log.reasons[decision.reason] += 1
    log.policy_s.append(steerer.timing.policy_s)
    log.critic_s.append(steerer.timing.critic_s)
    log.total_s.append(steerer.timing.total_s)


def _facts(run: _Run, seed: int) -> dict[str, Any]:
    log = run.log
    facts = {
        "seed": seed,
        "failure": str(run.info.get("failure", "")),
        "progress": float(run.info.get("progress", float("nan"))),
        "decisions": len(log.total_s),
        "reasons": dict(log.reasons),
        "policy_s": log.policy_s,
        "critic_s": log.critic_s,
        "total_s": log.total_s,
    }
    if run.operator is None:
        return facts
    by_human = [False, *(step.intervention for step in log.steps)]
    return {
        **facts,
        **run.operator.facts(),
        "takeovers": sum(now and not before for before, now in pairwise(by_human)),
        "human_steps": sum(by_human),
    }
