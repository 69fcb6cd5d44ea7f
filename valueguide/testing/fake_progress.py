"""A model that answers progress prompts by rule: the brightness of a picture is its percentage.

It sees what any model sees, the parts of the prompt, so it cannot know the order of the frames.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import numpy as np

from valueguide.progress.request import Answer, Clip, Prompt, Reply, Request
from valueguide.types import UInt8


def brightness_clip(percentages: list[int], task: str = "push it", size: tuple[int, int] = (6, 8)) -> Clip:
    """A clip whose frame i has the value percentages[i] in all pixels; positions 0, 10, 20, …"""
    frames = np.stack([np.full((*size, 3), value, np.uint8) for value in percentages])
    return Clip(frames, task, np.arange(len(percentages), dtype=np.int64) * 10)


def asked_pictures(prompt: Prompt) -> list[UInt8]:
    """The numbered pictures of a GVL prompt, number 1 first."""
    parts = prompt.parts
    starts = (i for i, part in enumerate(parts) if isinstance(part, str) and part.startswith("Frame "))
    return [part for i in starts if not isinstance(part := parts[i + 1], str)]


def written(values: list[float], answer: Answer) -> str:
    """A good answer in one of the formats."""
    if answer == "lines":
        return "\n".join(f"Frame {i}: {value:g}%" for i, value in enumerate(values, 1))
    frames = [{"frame_number": i, "task_completion_percentage": v} for i, v in enumerate(values, 1)]
    return json.dumps({"frames": frames})


class FakeProgressBackend:
    """Answers with brightness, through `wrong` where that is given.

    wrong: called with the number of the question (from 0) and the request; returns another text, raises,
        or returns None for the right answer.
    requests: all that were asked. 10 input tokens a picture, 5 output tokens a frame.
    """

    answers: tuple[Answer, ...] = ("json", "lines", "token")

    def __init__(
        self,
        wrong: Callable[[int, Request], str | None] | None = None,
        name: str = "fake",
        concurrency: int = 4,
    ) -> None:
        self.requests: list[Request] = []
        self.concurrency = concurrency
        self._wrong, self._name, self._lock = wrong, name, threading.Lock()

    def identity(self) -> dict[str, str]:
        return {"model": self._name}

    def ask(self, request: Request) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
        inputs, outputs = 10 * len(request.prompt.pictures), 5 * request.prompt.asked
        text = self._wrong(number, request) if self._wrong else None
        if request.prompt.answer == "token":
            last = int(request.prompt.pictures[-1].flat[0])
            return Reply(log_probability=float(np.log(max(last, 1) / 100)), input_tokens=inputs)
        if text is None:
            values = [float(picture.flat[0]) for picture in asked_pictures(request.prompt)]
            text = written(values, request.prompt.answer)
        return Reply(text, input_tokens=inputs, output_tokens=outputs)
