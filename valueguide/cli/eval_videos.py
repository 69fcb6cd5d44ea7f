"""Side-by-side videos of two arms from the same initial state, with the candidates drawn in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError
from valueguide.evaluation.arms import ArmFactory, sampling_seed
from valueguide.evaluation.report import Video
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.runner import Plan
from valueguide.evaluation.video import draw_candidates, encode_mp4, side_by_side
from valueguide.types import Candidates, Decision, Observation

_SCALE = 3


def make_videos(plan: Plan, suite: Any, rows: list[dict[str, Any]], count: int) -> list[Video]:
    """Re-runs up to `count` episodes of base and guided and films them.

    First those where guidance turned a failure into a success, then one where it lost, then others, at
    most one a task before any repeats. Empty when either arm is missing or the suite cannot be filmed.
    """
    if count < 1 or not {"base", "guided"} <= set(plan.arms):
        return []
    factory = ArmFactory(suite, plan.settings, ("base", "guided"))
    videos = []
    for task, episode, caption in _choose(rows, count):
        filmed = [_film(plan, suite, factory, arm, task, episode) for arm in ("base", "guided")]
        if any(frames is None for frames, _ in filmed):
            return []
        (left, left_ok), (right, right_ok) = filmed
        verdicts = tuple("success" if ok else "failure" for ok in (left_ok, right_ok))
        frames = side_by_side(left, right, ("policy alone", "guided"), verdicts)
        videos.append(Video(task.replace("_", " "), caption, encode_mp4(frames, suite.fps)))
    return videos


def _choose(rows: list[dict[str, Any]], count: int) -> list[tuple[str, int, str]]:
    won = {(r["arm"], r["task"], r["episode"]): bool(r["success"]) for r in rows}
    groups: dict[str, list[tuple[str, int]]] = {"gain": [], "loss": [], "same": []}
    for arm, task, episode in won:
        if arm == "base" and ("guided", task, episode) in won:
            change = int(won["guided", task, episode]) - int(won["base", task, episode])
            groups[{1: "gain", -1: "loss", 0: "same"}[change]].append((task, episode))
    labels = {
        "gain": "the critic saved this one",
        "loss": "the critic lost this one",
        "same": "no difference",
    }
    ordered = [(*key, labels[name]) for name in ("gain", "loss", "same") for key in _spread(groups[name])]
    losses = [item for item in ordered if item[2] == labels["loss"]][:1]
    first = [item for item in ordered if item not in losses][: max(count - len(losses), 0)]
    return (first + losses)[:count]


def _spread(keys: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """One of each task, then the second of each task, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for task, episode in keys:
        seen[task] = seen.get(task, 0) + 1
        ranked.append((seen[task], task, episode))
    return [(task, episode) for _, task, episode in sorted(ranked, key=lambda r: r[0])]


def _film(
    plan: Plan, suite: Any, factory: ArmFactory, arm: str, task: str, episode: int
) -> tuple[list[NDArray[np.uint8]] | None, bool]:
    env = suite.make(task, plan.wording, plan.visuals)
    recorder = _Recorder(env)
    if recorder.picture() is None:
        return None, False
    seed = plan.seed + episode
    done = rollout(
        recorder,
        factory.build(arm),
        seed,
        suite.max_steps,
        sampling_seed=sampling_seed(seed, task, suite.tasks),
        watch=recorder.watch,
    )
    frames = recorder.frames
    env.close()
    return frames, done.success


class _Recorder:
    """An environment that keeps a drawn picture of every step it is asked to make."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.frames: list[NDArray[np.uint8]] = []
        self._lines: list[NDArray[np.float32]] = []
        self._values: NDArray[np.float32] | None = None
        self._chosen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def picture(self) -> NDArray[np.uint8] | None:
        """The front view, whatever the observation mode; None when the suite cannot be drawn."""
        if not hasattr(self._env, "pictures"):
            return None
        if not self.frames and not self._lines:
            self._env.reset(seed=0)
        return self._env.pictures()["front"]

    def watch(self, observation: Observation, candidates: Candidates, decision: Decision) -> None:
        if not hasattr(self._env, "project_candidates"):
            raise ConfigError("videos: expected an environment that projects candidates, found none")
        self._lines = self._env.project_candidates(candidates.actions)
        self._values, self._chosen = decision.values, decision.index

    def step(self, action: NDArray[np.float32]) -> Any:
        frame = self._env.pictures()["front"]
        self.frames.append(draw_candidates(frame, self._lines, self._values, self._chosen, scale=_SCALE))
        return self._env.step(action)
