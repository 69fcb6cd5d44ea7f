"""Side-by-side videos of two arms from the same initial state, with the candidates drawn in."""

from __future__ import annotations

from typing import Any

from valueguide.drawing import draw_candidates, draw_scores
from valueguide.evaluation.arms import ArmFactory, sampling_seed
from valueguide.evaluation.report import Video
from valueguide.evaluation.rollout import rollout
from valueguide.evaluation.runner import Plan
from valueguide.evaluation.video import encode_mp4, side_by_side
from valueguide.types import Candidates, Decision, Float32, Observation, UInt8

#: Pixels; small pictures are enlarged by a whole number to about this.
_HEIGHT = 384
_VERDICT = {True: "success", False: "failure"}


def make_videos(plan: Plan, suite: Any, rows: list[dict[str, Any]], count: int) -> list[Video]:
    """Re-runs up to `count` episodes of base and guided and films them.

    First those where the two differ, successes that guidance gained and lost in proportion (at least one
    loss if there is any), then others; one a task before any repeats. Empty when either arm is missing or
    the suite cannot be filmed.
    """
    if count < 1 or not {"base", "guided"} <= set(plan.arms) or not _can_be_filmed(suite, plan):
        return []
    factory = ArmFactory(suite, plan.settings, ("base", "guided"))
    videos = []
    for task, episode, caption in _choose(rows, count):
        left, left_ok = _film(plan, suite, factory, "base", task, episode)
        right, right_ok = _film(plan, suite, factory, "guided", task, episode)
        verdicts = (_VERDICT[left_ok], _VERDICT[right_ok])
        frames = side_by_side(left, right, ("policy alone", "guided"), verdicts)
        videos.append(Video(task.replace("_", " "), caption, encode_mp4(frames, suite.fps)))
    return videos


def _can_be_filmed(suite: Any, plan: Plan) -> bool:
    return bool(suite.cameras) or hasattr(suite.make(plan.tasks[0]), "pictures")


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
    gains, losses, same = (
        [(*key, labels[name]) for key in _spread(groups[name])] for name in ("gain", "loss", "same")
    )
    differing = min(count, len(gains) + len(losses))
    lost = round(differing * len(losses) / max(len(gains) + len(losses), 1))
    if losses and differing > 1:
        lost = max(lost, 1)
    return (gains[: differing - lost] + losses[:lost] + same)[:count]


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
) -> tuple[list[UInt8], bool]:
    """Every step of one episode, drawn, and whether it succeeded."""
    recorder = _Recorder(suite.make(task, plan.wording, plan.visuals))
    seed = plan.seed + episode
    done = rollout(
        recorder,
        factory.build(arm),
        seed,
        suite.max_steps,
        sampling_seed=sampling_seed(seed, task, suite.tasks),
        record_images=not recorder.has_pictures,
        watch=recorder.watch,
    )
    recorder.keep(final=True)
    recorder.close()
    return recorder.frames, done.success


class _Recorder:
    """An environment that keeps a drawn picture of every step it is asked to make.

    Pictures come from its first camera; from `pictures()` where it has them, since a suite may leave
    images out of its observations. Paths are drawn where it can project them, else bars of the scores.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self.has_pictures = hasattr(env, "pictures")
        self.frames: list[UInt8] = []
        self._raw: dict[str, Any] = {}
        self._lines: list[Float32] | None = None
        self._values: Float32 | None = None
        self._chosen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: int | None = None) -> Any:
        self._raw, info = self._env.reset(seed=seed)
        return self._raw, info

    def step(self, action: Float32) -> Any:
        self.keep()
        self._raw, *rest = self._env.step(action)
        return (self._raw, *rest)

    def watch(self, observation: Observation, candidates: Candidates, decision: Decision) -> None:
        if hasattr(self._env, "project_candidates"):
            self._lines = self._env.project_candidates(candidates.actions)
        self._values, self._chosen = decision.values, decision.index

    def keep(self, final: bool = False) -> None:
        """Draw the current picture; the final one has no plan."""
        pictures = self._env.pictures() if self.has_pictures else self._raw["pixels"]
        frame = next(iter(pictures.values()))
        scale = max(1, round(_HEIGHT / frame.shape[0]))
        if self._lines is None:
            values = None if final else self._values
            self.frames.append(draw_scores(frame, values, self._chosen, scale))
        else:
            lines = [] if final else self._lines
            self.frames.append(draw_candidates(frame, lines, self._values, self._chosen, scale))
