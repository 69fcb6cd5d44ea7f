"""Turns a scripted expert's attempt into an `Episode`, with the flaws that a skill level brings."""

from __future__ import annotations

import numpy as np

from sim.arm import CONTROL_HZ
from sim.env import TabletopEnv
from sim.experts import Expert, draw_flaws
from valueguide.types import Episode, Observation, Step


def demonstrate(env: TabletopEnv, seed: int, skill: float, flaw: str = "") -> Episode:
    """One attempt at `env`'s task. skill 1.0 is flawless, 0.0 nearly always flawed. flaw: see draw_flaws.

    The demonstrator stops when the task is done, has failed, or the plan is over without success, which
    counts as a failure ("gave_up"); an attempt that ran out of time is `truncated`. Actions are float32 (5,),
    [dx, dy, dz, dyaw, grip] as in `sim.env`, one a control step of 1 / CONTROL_HZ seconds.
    """
    raw, info = env.reset(seed=seed)
    rng = np.random.default_rng([10, seed])
    flaws = draw_flaws(skill, env.task, env.world, rng, flaw)
    expert = Expert(env.world, env.task, flaws, seed)
    instruction = info["task_description"]
    steps: list[Step] = []
    progress = [info["progress"]]
    while True:
        observation = to_observation(raw, instruction, len(steps), CONTROL_HZ)
        action = np.clip(expert.action(), env.action_space.low, env.action_space.high)
        raw, reward, terminated, truncated, info = env.step(action)
        # Giving up is a verdict, a failure that a critic must learn from; only the time limit is none.
        gave_up = expert.finished and not terminated and not truncated
        terminated = terminated or gave_up
        steps.append(
            Step(
                observation=observation,
                action=action,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                success=bool(info["is_success"]),
                source="expert",
                policy_version="scripted",
            )
        )
        progress.append(info["progress"])
        if terminated or truncated:
            break
    last = to_observation(raw, instruction, len(steps), CONTROL_HZ)
    facts = {
        "seed": seed,
        "task_name": env.task.name,
        "skill": skill,
        "flaws": list(flaws.kinds),
        "failure": "gave_up" if gave_up else info["failure"],
        "progress": [round(float(p), 4) for p in progress],
    }
    return Episode(steps, last, instruction, facts)


def to_observation(raw: dict, instruction: str, step: int, fps: float) -> Observation:
    """The environment's dictionary as an `Observation`, stamped with simulated time."""
    return Observation(
        images=dict(raw.get("pixels", {})),
        state=raw["agent_pos"],
        task=instruction,
        stamp_ns=round(step / fps * 1e9),
        environment_state=raw.get("environment_state"),
    )
