"""Reads a model's answer, strictly: exactly one value from 0 to 100 for each frame number, or nothing.

A value that is read wrongly is worse than one that is missing, so whatever is not clear is refused with a
reason, and the caller asks again. Nothing is guessed, shifted, rescaled or filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from valueguide.progress.request import Answer
from valueguide.types import Float32

_THOUGHT = re.compile(r"<(think|thinking|thought)>.*?</\1>|◁think▷.*?◁/think▷", re.DOTALL)
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought)>|◁/think▷")
_THOUGHT_BEGIN = re.compile(r"<(?:think|thinking|thought)>|◁think▷")
_WRAPPER = re.compile(r"</?answer>|<\|(?:begin|end)_of_box\|>")
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_HEADER = re.compile(r"^[ \t]*(?:[-•][ \t]*)?frame[ \t]*#?[ \t]*([0-9]{1,6})\b", re.IGNORECASE | re.MULTILINE)
_NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
_LABEL = re.compile(r"completion(?:[ \t]+percentage)?[ \t]*:", re.IGNORECASE)
_VALUE = re.compile(rf"[ \t]*{_NUMBER}[ \t]*%?[ \t]*\.?[ \t]*(?:\n|$)")
_NUMBER_KEY, _VALUE_KEY, _TEXT_KEY = "frame_number", "task_completion_percentage", "frame_description"


class MalformedAnswer(ValueError):
    """An answer that does not say one value for each frame; the message says why, in a few words."""


def parse_answer(text: str, asked: int, answer: Answer, finish: str = "stop") -> Float32:
    """float32 (asked,): the percentages of frames 1 … asked, in the order of their numbers.

    text: what the model wrote, thoughts and code fences included.
    finish: see Reply.finish; an answer that was cut off is refused even if it looks whole ("8" of "80").
    Raises MalformedAnswer.
    """
    complete = finish == "stop" or (finish == "" and answer == "json")  # JSON shows itself where it ends
    if not complete:
        raise MalformedAnswer(f"the answer did not end by itself ({finish or 'no reason given'})")
    body = _without_thoughts(text)
    pairs = _from_json(body) if answer == "json" else _from_lines(body)
    values = _exact_set(pairs, asked)
    fractions = bool(np.all(values <= 1.0) and np.any(values % 1.0 != 0.0))
    if fractions:
        raise MalformedAnswer("values look like fractions of 1, percentages were asked for")
    return values


def write_answer(percentages: Sequence[int], answer: Answer) -> str:
    """The answer that says exactly this; percentages[i] is that of frame i + 1. `parse_answer` reads it."""
    if answer == "json":
        frames = [{_NUMBER_KEY: i, _VALUE_KEY: value} for i, value in enumerate(percentages, start=1)]
        return json.dumps({"frames": frames})
    return "\n".join(f"Frame {i}: {value}%" for i, value in enumerate(percentages, start=1))


def _without_thoughts(text: str) -> str:
    body = _THOUGHT.sub("", text)
    ends = list(_THOUGHT_END.finditer(body))
    if ends:  # the opening mark was part of the prompt
        body = body[ends[-1].end() :]
    if _THOUGHT_BEGIN.search(body):
        raise MalformedAnswer("thinking did not end")
    return _WRAPPER.sub("", body).strip()


def _from_json(body: str) -> list[tuple[int, float]]:
    fenced = _FENCE.findall(body)
    if len(fenced) > 1:
        raise MalformedAnswer("several code blocks")
    source = fenced[0] if fenced else body
    begin = re.search(r"[\[{]", source)
    if begin is None:
        raise MalformedAnswer("no JSON")
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    try:
        value, end = decoder.raw_decode(source, begin.start())
    except (ValueError, RecursionError) as error:
        if isinstance(error, MalformedAnswer):
            raise
        raise MalformedAnswer("broken JSON") from error
    if re.search(r"[\[\]{}]", source[end:]):
        raise MalformedAnswer("more than one JSON value")
    if isinstance(value, dict) and list(value) == ["frames"]:
        value = value["frames"]
    if not isinstance(value, list):
        raise MalformedAnswer("no list of frames")
    return [_entry(item) for item in value]


def _refuse_constant(name: str) -> Any:
    raise MalformedAnswer(f"{name} is no percentage")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedAnswer("a key stands twice")
    return found


def _entry(item: Any) -> tuple[int, float]:
    if not isinstance(item, dict) or not {_NUMBER_KEY, _VALUE_KEY} <= set(item) <= {
        _NUMBER_KEY,
        _VALUE_KEY,
        _TEXT_KEY,
    }:
        raise MalformedAnswer(f"an entry without {_NUMBER_KEY} and {_VALUE_KEY}, or with more")
    return _integer(item[_NUMBER_KEY]), _percentage(item[_VALUE_KEY])


def _integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value):
        return int(value)
    raise MalformedAnswer("a frame number that is no integer")


def _percentage(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Compared before the conversion, which overflows for integers of hundreds of digits.
        return float(value) if 0 <= value <= 100 else _out_of_range(value)
    match = re.fullmatch(rf"{_NUMBER}[ ]?%?", value) if isinstance(value, str) else None
    if match is None:
        raise MalformedAnswer("a value that is no number")
    return _percentage(float(match[1]))


def _out_of_range(value: float) -> float:
    raise MalformedAnswer(f"value {str(value)[:12]} is outside 0 to 100")


def _from_lines(body: str) -> list[tuple[int, float]]:
    text = re.sub(r"[*`]", "", body)
    headers = list(_HEADER.finditer(text))
    if not headers:
        raise MalformedAnswer("no line begins with a frame number")
    ends = [header.start() for header in headers[1:]] + [len(text)]
    return [
        (int(header[1]), _block_value(int(header[1]), text[header.end() : end]))
        for header, end in zip(headers, ends, strict=True)
    ]


def _block_value(number: int, block: str) -> float:
    """The one value between a frame's number and the next frame: after ":" or after "completion:"."""
    labels = [match.end() for match in _LABEL.finditer(block)]
    if len(labels) > 1:
        raise MalformedAnswer(f"frame {number} has more than one value")
    start = labels[0] if labels else len(block) - len(block.lstrip(" \t").removeprefix(":"))
    value = _VALUE.match(block, start)
    if value is None:
        raise MalformedAnswer(f"frame {number} has no value, or an unclear one")
    if re.search(r"[0-9]", block[value.end() :]):  # "40%", and below it "rather 60%"
        raise MalformedAnswer(f"numbers after the value of frame {number}")
    return _percentage(float(value[1]))


def _exact_set(pairs: list[tuple[int, float]], asked: int) -> Float32:
    values = np.full(asked, np.nan, np.float32)
    for number, value in pairs:
        if not 1 <= number <= asked:
            raise MalformedAnswer(f"there is no frame {str(number)[:12]}")
        if not np.isnan(values[number - 1]):
            raise MalformedAnswer(f"frame {number} stands twice")
        values[number - 1] = value
    missing = np.flatnonzero(np.isnan(values)) + 1
    if len(missing):
        raise MalformedAnswer(f"no value for frame {', '.join(map(str, missing))}")
    return values
