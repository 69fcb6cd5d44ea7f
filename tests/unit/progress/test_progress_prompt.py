"""Prompts: what they hold, and that nothing in them tells the order of the frames."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.progress.prompt import Wording, answer_schema, build_prefix_request, build_request
from valueguide.progress.request import Clip, Example, Prompt
from valueguide.testing.fake_progress import asked_pictures, brightness_clip

CLIP = brightness_clip([0, 10, 20, 40, 70, 100])
EXAMPLE = Example(
    np.stack([np.full((4, 4, 3), v, np.uint8) for v in (201, 202, 203, 204)]),
    np.array([0.0, 0.25, 0.5, 1.0], np.float32),
    "push that",
)
WORDINGS = [Wording(a, d, f) for a in ("json", "lines") for d in (False, True) for f in (False, True)]  # type: ignore[arg-type]


def _texts(prompt: Prompt) -> list[str]:
    return [part for part in prompt.parts if isinstance(part, str)]


def _place(prompt: Prompt, text: str) -> int:
    return next(i for i, part in enumerate(prompt.parts) if isinstance(part, str) and part == text)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(WORDINGS))
def test_the_text_is_the_same_for_every_order(seed: int, other: int, wording: Wording) -> None:
    """Also for other positions in time and other pictures: text depends on task and number of frames."""
    late = Clip(CLIP.frames[::-1].copy(), CLIP.task, CLIP.positions * 7)
    first, second = build_request(CLIP, seed, wording), build_request(late, other, wording)
    assert _texts(first.prompt) == _texts(second.prompt)
    assert [isinstance(p, str) for p in first.prompt.parts] == [
        isinstance(p, str) for p in second.prompt.parts
    ]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(1, 6)))
def test_pictures_are_the_only_difference(seed: int, order: list[int]) -> None:
    """Frames in another order in time, shown in the same order, make the very same prompt."""
    request = build_request(CLIP, seed, Wording())
    moved = Clip(CLIP.frames[[0, *order]], CLIP.task, CLIP.positions)
    other = build_request(moved, seed, Wording())
    shown = {p.tobytes() for p in asked_pictures(request.prompt)}
    assert shown == {p.tobytes() for p in asked_pictures(other.prompt)}
    assert {p.shape for p in request.prompt.pictures} == {CLIP.frames.shape[1:]}
    for number, index in enumerate(request.order, start=1):
        assert np.array_equal(asked_pictures(request.prompt)[number - 1], CLIP.frames[index])


def test_numbers_count_as_shown_and_the_anchor_stands_outside() -> None:
    prompt = build_request(CLIP, 3, Wording()).prompt
    texts = _texts(prompt)
    assert [t for t in texts if re.fullmatch(r"Frame \d+:", t)] == [f"Frame {i}:" for i in range(1, 6)]
    assert prompt.asked == 5 and len(prompt.pictures) == 6
    anchor = prompt.parts[_place(prompt, "Initial scene:") + 1]
    assert np.array_equal(anchor, CLIP.frames[0])
    assert not any(np.array_equal(p, CLIP.frames[0]) for p in asked_pictures(prompt))


def test_no_word_about_time_beyond_the_numbers() -> None:
    """Every number of the text is a frame number, the scale, or the count of frames."""
    texts = _texts(build_request(CLIP, 3, Wording()).prompt)
    assert {int(n) for t in texts for n in re.findall(r"\d+", t)} <= {0, 1, 2, 3, 4, 5, 100}
    assert not re.search(r"second|time|stamp|fps|\.png|\.jpg", " ".join(texts), re.IGNORECASE)


@pytest.mark.parametrize(
    "kind, task, words",
    [
        ("episode", "push it", "episode of the same task"),
        ("episode", "pull", "episode of another task"),
        ("human_video", "push it", "person of the same task"),
    ],
)
def test_examples_are_shown_with_their_progress_and_kind(kind: str, task: str, words: str) -> None:
    example = Example(EXAMPLE.frames, EXAMPLE.progress, task, kind)
    request = build_request(CLIP, 3, Wording(), [example])
    parts = list(request.prompt.parts)
    assert any(words in t and f"task is: {task}." in t for t in _texts(request.prompt))
    shown = {}
    for i, part in enumerate(parts):
        if isinstance(part, str) and part == "Example frame:":
            picture, value = parts[i + 1], parts[i + 2]
            assert not isinstance(picture, str) and isinstance(value, str)
            shown[int(picture.flat[0])] = int(re.findall(r"\d+", value)[0])
    assert shown == {201: 0, 202: 25, 203: 50, 204: 100}
    assert _place(request.prompt, "Initial scene:") < _place(request.prompt, "Example frame:")
    first = build_request(CLIP, 3, Wording(examples_first=True), [example]).prompt
    assert _place(first, "Initial scene:") > _place(first, "Example frame:")


def test_the_order_of_an_example_says_nothing_about_the_order_of_the_clip() -> None:
    """An example of as many frames, whose order in time a model could read off its values."""
    agreements = []
    example = Example(
        np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8),
        np.linspace(0.0, 1.0, 5).astype(np.float32),
        "t",
    )
    for seed in range(400):
        request = build_request(CLIP, seed, Wording(), [example])
        values = [
            int(re.findall(r"\d+", t)[0]) for t in _texts(request.prompt) if t.startswith("Task completion")
        ]
        agreements.append(np.corrcoef(values, request.order)[0, 1])
    assert abs(np.mean(agreements)) < 0.1  # four standard errors


def test_versions_tell_wordings_apart() -> None:
    assert len({build_request(CLIP, 0, wording).prompt.version for wording in WORDINGS}) == len(WORDINGS)


def test_schema_names_every_frame() -> None:
    prompt = build_request(CLIP, 0, Wording("json", describe=True)).prompt
    frames = answer_schema(prompt)["properties"]["frames"]  # type: ignore[index]
    assert frames["minItems"] == frames["maxItems"] == 5
    assert frames["items"]["required"] == ["frame_number", "frame_description", "task_completion_percentage"]
    plain = answer_schema(build_request(CLIP, 0, Wording()).prompt)
    assert "frame_description" not in str(plain)


def test_prefixes_show_frames_in_order() -> None:
    request = build_prefix_request(CLIP, 2)
    assert [int(p.flat[0]) for p in request.prompt.pictures] == [0, 10, 20]
    assert request.prompt.answer == "token" and request.prompt.continuation == " True"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="json or lines"):
        Wording("token")
    with pytest.raises(DataError, match="0 to 1"):
        Example(EXAMPLE.frames, EXAMPLE.progress * 100, "t")
    with pytest.raises(DataError, match="0 to 1"):
        Example(EXAMPLE.frames, EXAMPLE.progress * np.float32("nan"), "t")
    with pytest.raises(DataError, match="shapes"):
        Example(EXAMPLE.frames, EXAMPLE.progress[1:], "t")
    with pytest.raises(DataError, match="kind"):
        Example(EXAMPLE.frames, EXAMPLE.progress, "t", "book")
