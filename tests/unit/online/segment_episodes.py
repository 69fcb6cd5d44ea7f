"""Small episodes with stated commanders, and segments that are a pure function of a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from valueguide.online.segments import STORES, Segment
from valueguide.types import Episode, Observation, Source, Step

TASKS = ("put the carrot on the plate", "open the drawer")
LETTERS: dict[str, Source] = {"p": "policy", "h": "human", "e": "expert", "-": "hold"}


def observation(t: int, pictures: bool = False) -> Observation:
    images = {"front": np.full((4, 6, 3), t, np.uint8)} if pictures else {}
    return Observation(images, np.array([t, -t], np.float32), TASKS[0], t, np.array([t + 0.5], np.float32))


def episode(
    commanders: str, ending: str = "success", replan: int = 4, horizon: int = 6, pictures: bool = False
) -> Episode:
    """One letter a step, see LETTERS. State t is (t, -t), action t is (t,), the policy plans every `replan`
    steps of its own and whenever it takes over; step c of plan i is planned as 100 i + c."""
    steps: list[Step] = []
    plan, within = -1, replan
    for t, letter in enumerate(commanders):
        step = Step(observation(t, pictures), np.array([t], np.float32), source=LETTERS[letter])
        if letter == "p":
            if within == replan or steps[-1].source != "policy":
                plan, within = plan + 1, 0
            step.chunk_id, step.chunk_step = plan, within
            step.planned_chunk = (100 * plan + np.arange(horizon, dtype=np.float32))[:, None]
            step.policy_version, step.critic_version = "base-1", "aloe-2"
            within += 1
        step.intervention = letter == "h"
        steps.append(step)
    steps[-1].success = ending == "success"
    steps[-1].terminated = ending in ("success", "failure")
    steps[-1].truncated = ending == "limit"
    return Episode(steps, observation(len(commanders), pictures), TASKS[0])


def segment(number: int, store: str = "", steps: int = 0) -> Segment:
    """A valid random segment, the same for the same number; by default its store goes by the number."""
    rng = np.random.default_rng(number)
    steps = steps or int(rng.integers(3, 12))
    chosen = store or STORES[number % 3]
    starts = np.arange(0, steps, 4) if chosen == "rollout" else np.zeros(0, np.int64)
    planned = rng.normal(size=(len(starts), 6, 2)).astype(np.float32)
    planned[:, 5] = np.nan
    policy = chosen == "rollout"
    return Segment(
        state=rng.normal(size=(steps + 1, 3)).astype(np.float32),
        action=rng.normal(size=(steps, 2)).astype(np.float32),
        chunk_id=np.arange(steps) // 4 if policy else np.full(steps, -1),
        chunk_step=np.arange(steps) % 4 if policy else np.zeros(steps, np.int64),
        planned=planned,
        planned_start=starts,
        source="policy" if policy else "human",
        end=("takeover", "success")[number % 2] if policy else ("success", "handback")[number % 2],
        store=chosen,
        task=TASKS[number % 2],
        episode=f"day1:{number}",
        environment_state=rng.normal(size=(steps + 1, 1)).astype(np.float32),
        images={"front": rng.integers(0, 256, (steps + 1, 4, 6, 3)).astype(np.uint8)},
        policy_version="base-1" if policy else "",
        episode_steps=steps,
        episode_success=bool(number % 2),
        episode_terminated=bool(number % 2),
    )


def assert_same_segment(a: Segment, b: Segment) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "images":
            assert value.keys() == other.keys()
            pairs: Sequence = [(value[camera], other[camera]) for camera in value]
        elif isinstance(value, np.ndarray):
            pairs = [(value, other)]
        else:
            assert value == other, name
            continue
        for first, second in pairs:
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second, name)
