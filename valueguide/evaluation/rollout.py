"""One episode of one arm: observe, plan, execute E steps, until the episode ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from valueguide.evaluation.suite import to_observation
from valueguide.steering.steer import Steerer
from valueguide.types import ActionChunk, Candidates, Decision, Episode, Observation, Step

#: Called at every replan with (observation, candidates, decision); for videos.
Watcher = Callable[[Observation, Candidates, Decision], None]


@dataclass
class _Log:
    steps: list[Step] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    policy_s: list[float] = field(default_factory=list)
    critic_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)


def rollout(
    env: Any,
    steerer: Steerer,
    seed: int,
    max_steps: int,
    *,
    sampling_seed: int = 0,
    record_images: bool = False,
    watch: Watcher | None = None,
) -> Episode:
    """Run one episode from `env.reset(seed=seed)`. At `max_steps` it is truncated.

    sampling_seed: with the decision's number it seeds the policy's noise, so that two arms see the
    same proposals in the same state. record_images: keep pictures in every step, not only at replans.
    The metadata hold the seed, timings per decision, reasons, failure and final progress.
    """
    steerer.reset()
    history = int(getattr(steerer.policy, "history", 1))
    lazy = history == 1 and not record_images and hasattr(env, "set_render")
    fps = float(env.metadata.get("render_fps", 10))
    if lazy:
        env.set_render(False)
    raw, info = env.reset(seed=seed)
    task = str(info.get("task_description") or getattr(env.unwrapped, "task_description", ""))
    log, done, replan = _Log(), False, 0
    while not done:
        if lazy:
            env.set_render(True)
            raw = env.observe()
            env.set_render(False)
        observation = to_observation(raw, task, len(log.steps), fps)
        steerer.observe(observation)
        noise = int(np.random.default_rng([sampling_seed, replan]).integers(2**31))
        chunk, candidates, decision = steerer.plan(noise)
        replan += 1
        _note(log, steerer, decision)
        if watch is not None:
            watch(observation, candidates, decision)
        raw, info, done = _execute(
            env, steerer, log, (observation, chunk, candidates, decision), max_steps, fps
        )
    if lazy:
        env.set_render(True)
    final = to_observation(raw, task, len(log.steps), fps)
    return Episode(log.steps, final, task, _facts(log, info, seed))


def _execute(
    env: Any,
    steerer: Steerer,
    log: _Log,
    plan: tuple[Observation, ActionChunk, Candidates, Decision],
    max_steps: int,
    fps: float,
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Run the first E steps of the chosen chunk, or fewer when the episode ends."""
    observation, chunk, candidates, decision = plan
    task, first = observation.task, len(log.steps)
    done = False
    for number in range(chunk.executed_length):
        action = np.clip(chunk.actions[number], env.action_space.low, env.action_space.high)
        raw, reward, terminated, truncated, info = env.step(action)
        succeeded = bool(info.get("is_success", False))
        terminated = bool(terminated) or succeeded
        truncated = not terminated and (bool(truncated) or len(log.steps) + 1 >= max_steps)
        log.steps.append(
            Step(
                observation=observation,
                action=np.asarray(action, np.float32),
                reward=float(reward),
                terminated=terminated,
                truncated=truncated,
                success=succeeded,
                chunk_id=chunk.chunk_id,
                chunk_step=number,
                planned_chunk=chunk.actions,
                policy_version=steerer.policy.version,
                critic_version=steerer.critic.version if steerer.critic else "",
                candidates=candidates if number == 0 else None,
                decision=decision if number == 0 else None,
            )
        )
        done = terminated or truncated
        if done:
            break
        if number + 1 < chunk.executed_length:
            observation = to_observation(raw, task, len(log.steps), fps)
            if int(getattr(steerer.policy, "history", 1)) > 1:
                steerer.observe(observation)
    executed = len(log.steps) - first
    for step in log.steps[first:]:
        step.executed_length = executed
    return raw, info, done


def _note(log: _Log, steerer: Steerer, decision: Decision) -> None:
    log.reasons[decision.reason] += 1
    log.policy_s.append(steerer.timing.policy_s)
    log.critic_s.append(steerer.timing.critic_s)
    log.total_s.append(steerer.timing.total_s)


def _facts(log: _Log, info: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "failure": str(info.get("failure", "")),
        "progress": float(info.get("progress", float("nan"))),
        "decisions": len(log.total_s),
        "reasons": dict(log.reasons),
        "policy_s": log.policy_s,
        "critic_s": log.critic_s,
        "total_s": log.total_s,
    }
