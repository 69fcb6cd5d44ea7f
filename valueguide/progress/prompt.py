"""The wording: what a model is told and shown, zero-shot or with in-context episodes.

The text of a query depends on the task, the number of frames and the examples, never on the shuffle: all
that differs between two shuffles is which picture stands at which number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.progress.frames import frames_digest, shuffled
from valueguide.progress.request import Answer, Clip, Example, Prompt, Request, Sampling
from valueguide.types import UInt8

#: Change it with every change of the wording: it is part of the cache's key and of every result.
PROMPT_VERSION = "gvl-1"
TOKEN_VERSION = "token-1"
Parts = list[str | UInt8]

_DESCRIBED = "described"
_FORMAT = {
    ("lines", False): "Answer with one line for each frame and nothing else: Frame <number>: <percentage>%",
    ("lines", True): "Answer with one line for each frame and nothing else: Frame <number>: "
    "<short description>, task completion: <percentage>%",
    ("json", False): 'Answer with JSON and nothing else: {"frames": [{"frame_number": <number>, '
    '"task_completion_percentage": <percentage>}, ...]}, one entry for each frame.',
    ("json", True): 'Answer with JSON and nothing else: {"frames": [{"frame_number": <number>, '
    '"frame_description": <short description>, "task_completion_percentage": <percentage>}, ...]}, '
    "one entry for each frame.",
}


@dataclass(frozen=True)
class Wording:
    """Choices about the prompt.

    answer: "json" or "lines".
    describe: ask for a description of each frame before its value (the paper does; several times as long).
    examples_first: in-context episodes before the clip's first picture, so that servers can reuse the
        prefix; the paper shows the first picture before them.
    """

    answer: Answer = "json"
    describe: bool = False
    examples_first: bool = False

    def __post_init__(self) -> None:
        if self.answer not in ("json", "lines"):
            raise ConfigError(mismatch("wording", "answer", "json or lines", repr(self.answer)))

    @property
    def version(self) -> str:
        """Names this wording; see Prompt.version."""
        extras = [_DESCRIBED] * self.describe + ["examples-first"] * self.examples_first
        return "/".join([PROMPT_VERSION, self.answer, *extras])


def build_request(
    clip: Clip,
    seed: int,
    wording: Wording,
    examples: Sequence[Example] = (),
    sampling: Sampling | None = None,
) -> Request:
    """The question about all frames of `clip` but the anchor, shuffled with `seed`."""
    order = shuffled(clip.asked, seed, frames_digest(clip.frames)) + 1
    anchor: Parts = [
        "Initial scene:",
        clip.frames[0],
        "In the initial scene the task completion percentage is 0.",
    ]
    shown: Parts = [
        part for i, e in enumerate(examples) for part in _example_parts(i + 1, e, clip.task, seed)
    ]
    first, second = (shown, anchor) if wording.examples_first else (anchor, shown)
    parts: Parts = [_introduction(clip.task), *first, *second, _question(clip, wording)]
    for number, index in enumerate(order, start=1):
        parts += [f"Frame {number}:", clip.frames[index]]
    prompt = Prompt(tuple(parts), clip.asked, wording.answer, wording.version)
    return Request(prompt, order, seed, sampling or Sampling())


def build_prefix_request(clip: Clip, last: int) -> Request:
    """How probable "True" is after frames 0 … last in order (TOPReward, arXiv 2602.19313)."""
    frames: Parts = list(clip.frames[: last + 1])
    statement = (
        f"The above images show, in order, a robot that completes the following task: {clip.task}. "
        "Decide whether this statement is True or not. The answer is:"
    )
    prompt = Prompt((*frames, statement), 1, "token", TOKEN_VERSION, " True")
    return Request(prompt, np.array([last], np.int64), 0)


def answer_schema(prompt: Prompt) -> dict[str, object]:
    """The JSON schema of an answer in the format "json" to `prompt`."""
    entry: dict[str, object] = {"frame_number": {"type": "integer", "minimum": 1, "maximum": prompt.asked}}
    if _DESCRIBED in prompt.version.split("/"):
        entry["frame_description"] = {"type": "string"}
    entry["task_completion_percentage"] = {"type": "integer", "minimum": 0, "maximum": 100}
    item = {
        "type": "object",
        "properties": entry,
        "required": list(entry),
        "additionalProperties": False,
    }
    frames = {"type": "array", "items": item, "minItems": prompt.asked, "maxItems": prompt.asked}
    return {
        "type": "object",
        "properties": {"frames": frames},
        "required": ["frames"],
        "additionalProperties": False,
    }


def tokens_needed(prompt: Prompt) -> int:
    """Room for a whole answer in the format asked for, even from a tokenizer that knows no words."""
    if prompt.answer == "token":
        return 1
    described = 80 if _DESCRIBED in prompt.version.split("/") else 0
    return 64 + prompt.asked * ({"json": 72, "lines": 20}[prompt.answer] + described)


def correction(reason: str) -> str:
    """What is added when an answer was refused."""
    return f"Your last answer could not be used ({reason}). Answer again, in exactly the format asked for."


def _introduction(task: str) -> str:
    return (
        "You are an expert roboticist. You say how far a task is done in pictures of it, as a task "
        "completion percentage between 0 and 100, where 100 means that the task is done. The pictures are "
        "in random order, so look at each of them for itself and compare them with each other. "
        f"The task is: {task}."
    )


def _example_parts(number: int, example: Example, task: str, seed: int) -> Parts:
    order = shuffled(len(example.frames), seed, f"example {frames_digest(example.frames)}")
    shown = "an episode" if example.kind == "episode" else "a video of a person"
    same = "the same task" if example.task == task else "another task"
    parts: Parts = [
        f"Example {number}, {shown} of {same}, also in random order. Its task is: {example.task}."
    ]
    for index in order:
        percentage = round(100 * float(example.progress[index]))
        parts += ["Example frame:", example.frames[index], f"Task completion percentage: {percentage}."]
    return parts


def _question(clip: Clip, wording: Wording) -> str:
    frames = "the frame" if clip.asked == 1 else f"each of the {clip.asked} frames"
    return (
        f"Now, for the task: {clip.task}, give the task completion percentage of {frames} below. "
        "They are in random order and numbered as they are shown. "
        f"{_FORMAT[wording.answer, wording.describe]}"
    )
