"""Small random episodes that are a pure function of their seed, and the spec they fit."""

from __future__ import annotations

import numpy as np

from valueguide.data.schema import DatasetSpec
from valueguide.types import Candidates, Decision, Episode, Observation, Scores, Step

SPEC = DatasetSpec(
    fps=10,
    cameras={"front": (12, 16), "wrist": (8, 8)},
    state=("x", "y", "z"),
    action=("dx", "grip"),
    environment_state=("object_x",),
    horizon=4,
    k=3,
    members=2,
    robot_type="test_arm",
)
TASKS = ("put the carrot on the plate", "open the drawer")


def make_observation(rng: np.random.Generator, task: str, stamp_ns: int) -> Observation:
    return Observation(
        images={c: rng.integers(0, 256, (*size, 3)).astype(np.uint8) for c, size in SPEC.cameras.items()},
        state=rng.normal(size=3).astype(np.float32),
        task=task,
        stamp_ns=stamp_ns,
        environment_state=rng.normal(size=1).astype(np.float32),
    )


def make_step(rng: np.random.Generator, t: int, length: int, task: str, ending: str) -> Step:
    last = t == length - 1
    replan = t % 2 == 0
    candidates = Candidates(rng.normal(size=(3, 4, 2)).astype(np.float32)) if replan else None
    q = rng.normal(size=(2, 3)).astype(np.float32)
    decision = Decision(1, "argmax", 1, q.min(0), Scores(q), 7, 0.25) if replan else None
    return Step(
        observation=make_observation(rng, task, t * 100_000_000),
        action=rng.normal(size=2).astype(np.float32),
        reward=1.0 if last and ending == "success" else 0.0,
        terminated=last and ending in ("success", "failure"),
        truncated=last and ending == "limit",
        success=last and ending == "success",
        source="human" if t == 2 else "policy",
        intervention=t == 2,
        chunk_id=t // 2,
        chunk_step=t % 2,
        executed_length=2,
        planned_chunk=candidates.actions[1] if candidates else None,
        policy_version="base-1",
        critic_version="calql-2",
        candidates=candidates,
        decision=decision,
    )


def make_episode(seed: int, length: int = 5, ending: str = "success") -> Episode:
    rng = np.random.default_rng(seed)
    task = TASKS[seed % len(TASKS)]
    steps = [make_step(rng, t, length, task, ending) for t in range(length)]
    final = make_observation(rng, task, length * 100_000_000)
    return Episode(steps, final, task, {"seed": seed, "progress": [0.0, 0.5]})


def assert_same_observation(a: Observation, b: Observation) -> None:
    assert a.images.keys() == b.images.keys()
    for camera in a.images:
        np.testing.assert_array_equal(a.images[camera], b.images[camera])
    np.testing.assert_array_equal(a.state, b.state)
    assert (a.task, a.stamp_ns) == (b.task, b.stamp_ns)
    np.testing.assert_array_equal(a.environment_state, b.environment_state)


def assert_same_step(a: Step, b: Step) -> None:
    assert_same_observation(a.observation, b.observation)
    np.testing.assert_array_equal(a.action, b.action)
    for name in (
        "reward", "terminated", "truncated", "success", "source", "intervention", "chunk_id", "chunk_step",
        "executed_length", "policy_version", "critic_version",
    ):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), name
    for first, second in ((a.planned_chunk, b.planned_chunk), (a.candidates, b.candidates)):
        assert (first is None) == (second is None)
    if a.planned_chunk is not None:
        np.testing.assert_array_equal(a.planned_chunk, b.planned_chunk)
    if a.candidates is not None:
        np.testing.assert_array_equal(a.candidates.actions, b.candidates.actions)
    assert (a.decision is None) == (b.decision is None)
    if a.decision is not None:
        for name in ("index", "reason", "preferred", "seed", "latency_s"):
            assert getattr(a.decision, name) == getattr(b.decision, name), name
        for first, second in ((a.decision.values, b.decision.values), (a.decision.scores, b.decision.scores)):
            assert (first is None) == (second is None)
        if a.decision.values is not None:
            np.testing.assert_array_equal(a.decision.values, b.decision.values)
        if a.decision.scores is not None:
            np.testing.assert_array_equal(a.decision.scores.q, b.decision.scores.q)


def assert_same_episode(a: Episode, b: Episode) -> None:
    assert len(a.steps) == len(b.steps)
    for first, second in zip(a.steps, b.steps, strict=True):
        assert_same_step(first, second)
    assert_same_observation(a.final_observation, b.final_observation)
    assert (a.task, a.metadata) == (b.task, b.metadata)
