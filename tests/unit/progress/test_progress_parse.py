"""The parser: what it takes, what it refuses, and that it never makes a value up."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.progress.parse import MalformedAnswer, parse_answer

GOOD = '[{"frame_number": 2, "task_completion_percentage": 90}, %s]'
ONE = '{"frame_number": 1, "task_completion_percentage": %s}'


def _json(*pairs: tuple[object, object]) -> str:
    return json.dumps({"frames": [{"frame_number": n, "task_completion_percentage": v} for n, v in pairs]})


@pytest.mark.parametrize(
    "text",
    [
        _json((1, 10), (2, 90)),
        _json((2, 90), (1, 10)),  # another order
        GOOD % (ONE % "10"),
        GOOD % (ONE % '"10%"'),
        GOOD % (ONE % '"10"'),
        GOOD % '{"frame_number": "1", "frame_description": "an arm", "task_completion_percentage": 10.0}',
        "Here it is:\n```json\n" + _json((1, 10), (2, 90)) + "\n```\nDone.",
        "<think>Frame 1 {maybe 30}</think>" + _json((1, 10), (2, 90)),
        "Frame 1 may be [30]</think>\n" + _json((1, 10), (2, 90)),
        "<answer>" + _json((1, 10), (2, 90)) + "</answer>",
        "<|begin_of_box|>" + _json((1, 10), (2, 90)) + "<|end_of_box|>",
    ],
)
def test_json_that_is_taken(text: str) -> None:
    assert parse_answer(text, 2, "json").tolist() == [10.0, 90.0]


@pytest.mark.parametrize(
    "text",
    [
        "Frame 1: 10%\nFrame 2: 90%",
        "frame 2: 90\n\n  Frame 1 : 10 %.",
        "**Frame 1:** 10%\n- Frame #2: 90%",
        "Sure, here they are.\nFrame 1: 10%\nFrame 2: 90%\nI hope that helps.",
        "Frame 2: near 3 cups, task completion: 90%\nFrame 1: far off, Task Completion Percentage: 10%",
        "Frame 1:\nThe arm rests.\nTask completion: 10%\nFrame 2:\nDone.\nTask completion: 90%",
        "<think>Frame 1: 30%</think>Frame 1: 10%\nFrame 2: 90%",
    ],
)
def test_lines_that_are_taken(text: str) -> None:
    assert parse_answer(text, 2, "lines").tolist() == [10.0, 90.0]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no JSON"),
        ("I cannot help with that.", "no JSON"),
        (_json((1, 10)), "no value for frame 2"),
        (_json((1, 10), (2, 90), (3, 95)), "no frame 3"),
        (_json((0, 10), (1, 90)), "no frame 0"),
        (_json((-1, 10), (2, 90)), "no frame -1"),
        (_json((1, 10), (1, 10), (2, 90)), "frame 1 stands twice"),
        (_json((1, 101), (2, 90)), "outside 0 to 100"),
        (_json((1, -1), (2, 90)), "outside 0 to 100"),
        (_json((1, 10**400), (2, 90)), "outside 0 to 100"),
        (_json((1, 0.1), (2, 0.9)), "fractions"),
        (_json((1, 0.1), (2, 1)), "fractions"),
        (_json((1, None), (2, 90)), "no number"),
        (_json((1, True), (2, 90)), "no number"),
        (_json((1, "high"), (2, 90)), "no number"),
        (_json((1, "10-20%"), (2, 90)), "no number"),
        (_json((1, [10]), (2, 90)), "no number"),
        (_json((1.0, 10), (2, 90)), "no integer"),
        (_json((True, 10), (2, 90)), "no integer"),
        (_json(("first", 10), (2, 90)), "no integer"),
        (GOOD % (ONE % "NaN"), "NaN"),
        (GOOD % (ONE % "Infinity"), "Infinity"),
        (
            GOOD % '{"frame_number": 1, "task_completion_percentage": 3, "task_completion_percentage": 9}',
            "twice",
        ),
        (GOOD % '{"frame_number": 1, "value": 3}', "without"),
        (GOOD % '{"frame_number": 1, "task_completion_percentage": 3, "confidence": 9}', "with more"),
        (GOOD % "10", "without"),
        ("[10, 90]", "without"),
        ('{"1": 10, "2": 90}', "no list"),
        (_json((1, 10), (2, 90))[:-3], "broken JSON"),
        (_json((1, 10), (2, 90)) + _json((1, 20), (2, 80)), "more than one"),
        ("```json\n[]\n```\nor\n```json\n[]\n```", "several code blocks"),
        ("<think>" + _json((1, 10), (2, 90)), "thinking did not end"),
        ("[" * 100_000, "broken JSON"),
        ("Frame 1: 10%\nFrame 2: 90%", "no JSON"),
    ],
)
def test_json_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=reason):
        parse_answer(text, 2, "json")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no line begins"),
        ("10%\n90%", "no line begins"),  # in order of appearance: not keyed
        ("Frame 1: 10%", "no value for frame 2"),
        ("Frame 1: 10%\nFrame 2: 90%\nFrame 3: 95%", "no frame 3"),
        ("Frame 1: 10%\nFrame 2: 90%\nFrame 1: 10%", "stands twice"),
        ("Frame 1: 10%, Frame 2: 90%", "unclear"),
        ("Frame 1: 10% or 20%\nFrame 2: 90%", "unclear"),
        ("Frame 1: 10-20%\nFrame 2: 90%", "unclear"),
        ("Frame 1: about 10%\nFrame 2: 90%", "unclear"),
        ("Frame 1: 10%\nrather 20%\nFrame 2: 90%", "numbers after"),
        ("Frame 1: task completion: 10%\ntask completion: 20%\nFrame 2: 90%", "more than one"),
        ("Frame 1: 10%\nFrame 2: 90%\n90% overall", "numbers after"),
        ("Frame 1: 110%\nFrame 2: 90%", "outside 0 to 100"),
        ("Frame 1: -10%\nFrame 2: 90%", "outside 0 to 100"),
        ("Frame 1: 0.1\nFrame 2: 0.9", "fractions"),
        ("Frame 1: 1e1\nFrame 2: 90%", "unclear"),
        ("Frame 1: nan\nFrame 2: 90%", "unclear"),
        ("Frame one: 10%\nFrame 2: 90%", "no value for frame 1"),
    ],
)
def test_lines_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=reason):
        parse_answer(text, 2, "lines")


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
@pytest.mark.parametrize("answer", ["json", "lines"])
def test_an_answer_that_was_cut_off_is_refused(finish: str, answer: str) -> None:
    text = _json((1, 10), (2, 8)) if answer == "json" else "Frame 1: 10%\nFrame 2: 8"
    with pytest.raises(MalformedAnswer, match=finish):
        parse_answer(text, 2, answer, finish)  # type: ignore[arg-type]


def test_lines_need_to_be_known_complete_json_shows_its_end() -> None:
    assert parse_answer(_json((1, 10)), 1, "json", "").tolist() == [10.0]
    with pytest.raises(MalformedAnswer, match="no reason"):
        parse_answer("Frame 1: 1", 1, "lines", "")


@settings(deadline=None)
@given(st.permutations(range(1, 9)), st.lists(st.integers(0, 100), min_size=8, max_size=8))
def test_values_follow_the_numbers_whatever_the_order(order: list[int], values: list[int]) -> None:
    text = _json(*[(n, values[n - 1]) for n in order])
    lines = "\n".join(f"Frame {n}: {values[n - 1]}%" for n in order)
    assert parse_answer(text, 8, "json").tolist() == values == parse_answer(lines, 8, "lines").tolist()


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from(list('Frame completion:0123456789.%-\n {}[]",_')), max_size=200))
def test_fuzz_never_crashes_and_never_leaves_the_range(text: str) -> None:
    for answer in ("json", "lines"):
        try:
            values = parse_answer(text, 2, answer)  # type: ignore[arg-type]
        except MalformedAnswer:
            continue
        assert values.shape == (2,) and np.all((values >= 0) & (values <= 100))
        numbers = {float(n) for n in re.findall(r"-?[0-9]+(?:\.[0-9]+)?", text)}
        assert all(any(np.float32(n) == v for n in numbers) for v in values), "a value that nobody wrote"


@settings(deadline=None)
@given(st.data())
def test_one_change_to_a_good_answer_gives_no_other_value_silently(data: st.DataObject) -> None:
    """Cut a good text anywhere: refused, or exactly the same values."""
    text = _json((1, 10), (2, 85), (3, 100))
    cut = data.draw(st.integers(0, len(text)))
    try:
        assert parse_answer(text[:cut], 3, "json", "").tolist() == [10, 85, 100]
    except MalformedAnswer:
        assert cut < len(text)
