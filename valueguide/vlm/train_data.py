"""What the small vision-language model learns from: simulated episodes, questions about them, answers.

The value that is taught is the simulator's true progress, never time: a failed episode ends where the task
was left. As the anchor is declared to be 0 % in every prompt, progress p becomes (p - p0) / (1 - p0), at
least 0, where p0 is that of the first frame. It is 1 exactly when the task is done.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from valueguide.data.frames import FrameCache
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.controls import REAL, control_clip
from valueguide.progress.frames import sample_positions
from valueguide.progress.prompt import Wording, build_request
from valueguide.progress.request import Answer, Clip, Int64, Prompt
from valueguide.types import Float32, UInt8

#: Of the clips that are drawn. A reversed clip asks about the same pictures and needs no share of its own.
SHARES = {REAL: 0.74, "first_frame": 0.06, "blank": 0.03, "still": 0.03, "wrong_instruction": 0.14}
#: Every tenth episode of a dataset is held out.
_HOLD_EVERY = 10
#: How often frames are spread over the whole episode; else over its beginning, as a live run shows it.
_WHOLE = 0.6


@dataclass(frozen=True)
class TaughtEpisode:
    """rows: int64 (n,), pictures in `EpisodePictures`, the one after the last action included.
    values: float32 (n,) in [0, 1], what is taught about each. task: which task the instruction words.
    """

    rows: Int64
    values: Float32
    instruction: str
    task: str
    success: bool


@dataclass(frozen=True)
class Question:
    """A prompt as it is asked, and what would be right.

    rows: int64 (asked + 1,), the pictures in the order of the prompt, the anchor first; see
        `EpisodePictures.blank` for black ones. percentages: the answer, in the order of the prompt.
    values: float32 (asked,), the same unrounded. instruction: as the prompt words the task.
    """

    prompt: Prompt
    rows: Int64
    values: Float32
    instruction: str

    @property
    def percentages(self) -> list[int]:
        """Rounded; 100 only where the task is done."""
        return [100 if value >= 1.0 else min(99, round(100 * float(value))) for value in self.values]


class EpisodePictures:
    """One camera's pictures of several datasets, decoded once. Row `blank` (the last) is black.

    Raises DataError when the datasets lack the camera or differ in its size.
    """

    def __init__(self, datasets: Sequence[EpisodeDataset], camera: str, progress: bool = True) -> None:
        self._maps = [FrameCache.build(d, cameras=[camera], progress=progress).maps[camera] for d in datasets]
        shapes = {maps.shape[1:] for maps in self._maps}
        if len(shapes) > 1:
            raise DataError(mismatch("datasets", f"size of {camera}", "one size", sorted(shapes)))
        self.starts = np.cumsum([0, *(len(maps) for maps in self._maps)])
        self.blank = int(self.starts[-1])

    def __len__(self) -> int:
        return self.blank + 1

    def take(self, rows: Int64) -> UInt8:
        """uint8 (B, H, W, 3)."""
        frames = np.zeros((len(rows), *self._maps[0].shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            if row != self.blank:
                part = int(np.searchsorted(self.starts, row, side="right")) - 1
                frames[i] = self._maps[part][row - self.starts[part]]
        return frames


def progress_values(facts: dict[str, Any], frames: int, where: str) -> Float32:
    """float32 (frames,): what is taught, from the true progress in an episode's metadata.

    Raises DataError when the episode does not have it: it was not recorded by `valueguide collect` from a
    scripted demonstrator.
    """
    true = facts.get("progress")
    if not isinstance(true, list) or len(true) != frames:
        found = f"{len(true)} values" if isinstance(true, list) else "none"
        raise DataError(mismatch(where, "true progress of each frame", f"{frames} values", found))
    values = np.asarray(true, np.float64)
    if not (np.all((values >= 0) & (values <= 1)) and values[0] < 1):
        raise DataError(mismatch(where, "true progress", "from 0 to 1, not done at the start", true[:3]))
    return np.clip((values - values[0]) / (1 - values[0]), 0, 1).astype(np.float32)


def taught_episodes(datasets: Sequence[EpisodeDataset], pictures: EpisodePictures) -> list[TaughtEpisode]:
    """Every episode, in order. Raises DataError for one without true progress or final observation."""
    episodes = []
    for dataset, offset in zip(datasets, pictures.starts[:-1], strict=True):
        for i, (start, end) in enumerate(zip(dataset.episode_start, dataset.episode_end, strict=True)):
            where = f"{dataset.root}: episode {dataset.episode_index[i]}"
            if not dataset.has_final[i]:
                raise DataError(f"{where}: expected the observation after the last action, found none")
            rows = np.append(np.arange(start, end), dataset.frames + i) + offset
            facts, instruction = dataset.metadata[i], dataset.instructions[dataset.instruction[start]]
            episodes.append(
                TaughtEpisode(
                    rows.astype(np.int64),
                    progress_values(facts, len(rows), where),
                    instruction,
                    str(facts.get("task_name", instruction)),
                    bool(dataset.episode_success[i]),
                )
            )
    return episodes


def split(episodes: Sequence[TaughtEpisode]) -> tuple[list[TaughtEpisode], list[TaughtEpisode]]:
    """Episodes to learn from, and every tenth, held out; of fewer than ten, the last is held out.

    Raises DataError when there are not at least two.
    """
    if len(episodes) < 2:
        raise DataError(mismatch("datasets", "episodes", "2 or more", len(episodes)))
    every = min(_HOLD_EVERY, len(episodes))
    held = [e for i, e in enumerate(episodes) if i % every == every - 1]
    return [e for i, e in enumerate(episodes) if i % every != every - 1], held


class Questions:
    """Draws questions about episodes.

    episodes: those that are asked about. known: all, whose instructions serve as wrong ones. frames: fewest
    and most of a question. related: tasks of which one is progress of another (picking up a can, and
    carrying it somewhere), which are never the wrong one for each other.
    Raises ConfigError when a task has no other to be wrong about, or no episode is long enough.
    """

    def __init__(
        self,
        episodes: Sequence[TaughtEpisode],
        known: Sequence[TaughtEpisode],
        pictures: EpisodePictures,
        frames: tuple[int, int],
        related: Sequence[str] = (),
    ) -> None:
        self._episodes, self._pictures, self._frames = list(episodes), pictures, frames
        self._related = set(related)
        self._wordings: dict[str, list[str]] = {}
        for episode in known:
            wordings = self._wordings.setdefault(episode.task, [])
            if episode.instruction not in wordings:
                wordings.append(episode.instruction)
        if len(set(self._wordings) - self._related) + bool(self._related & set(self._wordings)) < 2:
            raise ConfigError(mismatch("datasets", "unrelated tasks", "2 or more", sorted(self._wordings)))
        if max(len(episode.rows) for episode in self._episodes) < frames[1]:
            raise ConfigError(mismatch("datasets", "frames of an episode", f"{frames[1]} or more", "fewer"))

    def batch(self, rng: np.random.Generator, size: int, answer: Answer, most: int) -> list[Question]:
        """`size` questions about equally many frames each, a number up to `most` drawn for the batch."""
        count = int(rng.integers(self._frames[0], most + 1))
        long_enough = [episode for episode in self._episodes if len(episode.rows) >= count]
        return [self._draw(long_enough, count, answer, rng) for _ in range(size)]

    def _draw(
        self, episodes: list[TaughtEpisode], count: int, answer: Answer, rng: np.random.Generator
    ) -> Question:
        episode = episodes[int(rng.integers(len(episodes)))]
        length = len(episode.rows)
        if rng.random() > _WHOLE:
            length = int(rng.integers(count, length + 1))
        positions = sample_positions(length, count)
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        rows, values = episode.rows[positions], episode.values[positions]
        if kind == "still":  # something has happened, once: the same value everywhere, and not 0
            shown = int(rng.integers(1, count))
            rows, values = rows[[0] + [shown] * (count - 1)], values[[0] + [shown] * (count - 1)]
        clip = Clip(self._pictures.take(rows), episode.instruction, positions)
        if kind not in (REAL, "still"):
            clip = control_clip(clip, kind, self._other(episode, rng))
            values = np.zeros_like(values)
        if kind == "first_frame":
            rows = np.repeat(rows[:1], count)
        if kind == "blank":
            rows = np.full(count, self._pictures.blank)
        request = build_request(clip, int(rng.integers(2**31)), Wording(answer))
        return Question(request.prompt, rows[[0, *request.order]], values[request.order], clip.task)

    def _other(self, episode: TaughtEpisode, rng: np.random.Generator) -> str:
        """A wording of a task at which the demonstrator does not work."""
        others = other_tasks(episode.task, list(self._wordings), self._related)
        wordings = self._wordings[others[int(rng.integers(len(others)))]]
        return wordings[int(rng.integers(len(wordings)))]


def other_tasks(task: str, tasks: Sequence[str], related: Collection[str]) -> list[str]:
    """Of `tasks`, those of which nothing is done while `task` is; see Questions."""
    return [other for other in tasks if other != task and {other, task} - set(related)]


def order_ceiling(episodes: Sequence[TaughtEpisode], frames: int) -> float:
    """Mean VOC of the taught values themselves on successes: true progress does not only rise."""
    from valueguide.progress.voc import value_order_correlation

    found = [
        value_order_correlation(e.values[sample_positions(len(e.rows), frames)][1:])
        for e in episodes
        if e.success
    ]
    known = [value for value in found if value is not None]
    return math.fsum(known) / len(known) if known else float("nan")
