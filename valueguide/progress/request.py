"""The values of a progress estimate: what is asked, what a model sees, what it said, what is believed.

A model sees a `Prompt` and nothing else. Whatever tells the true order of the frames (positions, order,
seed) is kept outside it, in `Clip` and `Request`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, ValueguideError, mismatch
from valueguide.types import Float32, UInt8

Int64 = NDArray[np.int64]
Answer = Literal["json", "lines", "token"]
Status = Literal["ok", "partial", "malformed", "failed"]
ANSWERS: tuple[Answer, ...] = ("json", "lines", "token")
#: What in-context episodes may show: a robot at work (on the same or another task), or a person.
KINDS = ("episode", "human_video")


class RequestFailed(ValueguideError):
    """No answer came: the endpoint was down, too slow, or sent what is no answer. Later it may work."""


@dataclass(frozen=True)
class Clip:
    """The sampled frames of one episode as one camera saw it.

    frames: uint8 (n, H, W, 3) RGB in the order of time, n >= 2; frame 0 is the anchor.
    task: the instruction.
    positions: int64 (n,), strictly ascending; which frames of the episode these are.

    Raises DataError when the shapes or the order do not fit.
    """

    frames: UInt8
    task: str
    positions: Int64

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            found = f"{self.frames.dtype} {self.frames.shape}"
            raise DataError(mismatch("clip", "frames", "uint8 (n, H, W, 3)", found))
        if len(self.frames) < 2 or self.positions.shape != (len(self.frames),):
            found = f"{len(self.frames)} frames, positions {self.positions.shape}"
            raise DataError(mismatch("clip", "frames", "two or more, one position each", found))
        if np.any(np.diff(self.positions) <= 0):
            raise DataError(mismatch("clip", "positions", "strictly ascending", self.positions.tolist()))

    @property
    def asked(self) -> int:
        """How many frames a model is asked about: all but the anchor."""
        return len(self.frames) - 1


@dataclass(frozen=True)
class Example:
    """An in-context episode whose progress is known.

    frames: uint8 (m, h, w, 3) RGB in the order of time; the size may differ from the clip's.
    progress: float32 (m,), each in [0, 1].
    task: its instruction.
    kind: one of KINDS.

    Raises DataError when these do not fit together.
    """

    frames: UInt8
    progress: Float32
    task: str
    kind: str = "episode"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(mismatch("example", "kind", f"one of {', '.join(KINDS)}", repr(self.kind)))
        if self.frames.ndim != 4 or len(self.frames) == 0 or self.progress.shape != (len(self.frames),):
            found = f"frames {self.frames.shape}, progress {self.progress.shape}"
            raise DataError(mismatch("example", "shapes", "frames (m, h, w, 3), progress (m,)", found))
        if not np.all((self.progress >= 0) & (self.progress <= 1)):
            raise DataError(mismatch("example", "progress", "values from 0 to 1", self.progress.tolist()))


@dataclass(frozen=True)
class Prompt:
    """All that a model is shown.

    parts: text and uint8 (H, W, 3) pictures, in the order in which they are shown.
    asked: m, how many frames are asked about; they are numbered 1 … m as they are shown.
    answer: "json" or "lines", the format that the text asks for; "token": how probable `continuation` is.
    version: names the wording; answers to different versions are never mixed.
    continuation: only for "token": the text whose log-probability after `parts` is asked for.
    """

    parts: tuple[str | UInt8, ...]
    asked: int
    answer: Answer
    version: str
    continuation: str = ""

    @property
    def pictures(self) -> list[UInt8]:
        """The pictures alone, as they are shown."""
        return [part for part in self.parts if not isinstance(part, str)]

    def with_correction(self, text: str) -> Prompt:
        """The same question with a note about the last answer at its end."""
        return replace(self, parts=(*self.parts, text))


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. temperature 0 is greedy. max_tokens 0: enough for the format asked for."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens >= 0):
            raise ConfigError(
                mismatch("sampling", "settings", "temperature >= 0, top_p in (0, 1], max_tokens >= 0", self)
            )


@dataclass(frozen=True)
class Request:
    """One question: a prompt, and what is needed to make sense of its answer.

    order: int64 (m,); frame number j + 1 of the prompt is frame order[j] of the clip (never 0, the anchor).
    seed: of the shuffle; also of the draw, together with `attempt`.
    attempt: 0, then 1, 2, … for questions asked again.
    """

    prompt: Prompt
    order: Int64
    seed: int
    sampling: Sampling = field(default_factory=Sampling)
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """What a backend answered.

    text: the answer, for the formats "json" and "lines".
    finish: "stop" when the model ended its answer itself, "length" when it was cut off, "" when unknown,
        else the server's word.
    log_probability: for "token": natural logarithm, at most 0.
    input_tokens, output_tokens: None where the backend does not say.
    seconds: how long the answer took.
    cached: it was on disk.
    """

    text: str = ""
    finish: str = "stop"
    log_probability: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float = 0.0
    cached: bool = False


class ProgressBackend(Protocol):
    """Anything that answers prompts: a local model, an endpoint.

    answers: the formats it can give.
    concurrency: how many questions it may be asked at once, from as many threads.
    """

    answers: tuple[Answer, ...]
    concurrency: int

    def identity(self) -> dict[str, str]:
        """All that its answers depend on besides the request; part of the cache's key. Holds no secrets."""

    def ask(self, request: Request) -> Reply:
        """Answer once. Raises RequestFailed when no answer came; ConfigError when none ever will."""


@dataclass(frozen=True)
class Shuffle:
    """One shuffle's answer.

    values: float32 (n,) in [0, 1] in the order of time; NaN for the anchor and where nothing is known.
    order: int64 (m,), see Request. status: "ok", "malformed" or "failed". reasons: one line for each
    answer that was refused. replies: all that were received, the last of which counts.
    """

    seed: int
    order: Int64
    values: Float32
    status: Status
    reasons: tuple[str, ...] = ()
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Progress over one clip, with its quality.

    values: float32 (n,) in [0, 1], the median over the shuffles that were answered; NaN where none was.
        values[0], the anchor's, is NaN: it was declared to be 0, not estimated.
    spread: float32 (n,), largest minus smallest value over the shuffles; NaN with fewer than two.
    positions: int64 (n,), see Clip.
    voc: rank correlation of the known values with time, in [-1, 1]; None when it is undefined.
    status: "ok" when every shuffle was answered, "partial" when some were, "malformed" when none was,
        "failed" when some request brought no answer (asking again later may help).
    parse_rate: answered shuffles over those whose request brought an answer; None when none did.
    log_probability: float32 (n,) for token probability, NaN for the anchor; None for other estimators.
    """

    values: Float32
    spread: Float32
    positions: Int64
    voc: float | None
    status: Status
    parse_rate: float | None
    shuffles: tuple[Shuffle, ...]
    log_probability: Float32 | None = None

    @property
    def final(self) -> float | None:
        """The value of the last frame, None when it is missing."""
        return None if np.isnan(self.values[-1]) else float(self.values[-1])
