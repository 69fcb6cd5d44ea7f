"""Results as JSON lines: one line for each episode, camera and variant, kept as soon as it is known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.data.layout import make_folder, write_atomic, write_json
from valueguide.errors import ConfigError, DataError
from valueguide.progress.request import Estimate, Float32, Reply, Shuffle

Row = dict[str, Any]
Key = tuple[int, str, str]
_SPENT = ("input", "output", "unknown")


def key_of(row: Row) -> Key:
    return int(row["episode"]), str(row["camera"]), str(row["variant"])


class RowFile:
    """Rows made under one plan; an interrupted run of the same plan goes on where it stopped.

    path: the file. The plan lies beside it, as <path>.plan.json. Rows with status "failed" are made again.
    Raises ConfigError when the file holds rows made under another plan, DataError when it holds no rows.
    """

    def __init__(self, path: Path, plan: Row) -> None:
        self._path, self._rows = path, {key_of(row): row for row in _read(path)}
        beside = path.with_name(path.name + ".plan.json")
        plan = json.loads(json.dumps(plan))
        if self._rows:
            found = json.loads(beside.read_text()) if beside.exists() else {}
            different = sorted(k for k in {*plan, *found} if plan.get(k) != found.get(k))
            if different:
                raise ConfigError(
                    f"{path}: holds rows made with other settings ({', '.join(different)}). Use another --out"
                )
        make_folder(path.parent.absolute())
        write_json(beside, plan)
        self._file = open(path, "ab")  # noqa: SIM115  open as long as rows come

    def finished(self, key: Key) -> bool:
        row = self._rows.get(key)
        return row is not None and row["status"] != "failed"

    def add(self, row: Row) -> None:
        """Append one row; it survives a crash from here on. What an earlier row of the key cost is added."""
        before = self._rows.get(key_of(row))
        if before is not None:
            spent = {kind: row["tokens"][kind] + before["tokens"][kind] for kind in _SPENT}
            row = {**row, "tokens": {**row["tokens"], **spent}}
        self._rows[key_of(row)] = row
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def by_key(self) -> dict[Key, Row]:
        """The newest row of each key, in order."""
        return {key: self._rows[key] for key in sorted(self._rows)}

    def close(self) -> None:
        """Sort the file and drop rows that were made again."""
        self._file.close()
        lines = b"".join(_line(row) for row in self.by_key().values())
        write_atomic(self._path, lambda file: _put(file, lines))


def estimate_row(key: Key, task: str, estimate: Estimate, facts: Row) -> Row:
    """One line: values and shuffles in the order of time, None where nothing is known.

    facts: more entries, such as times and the recorded outcome.
    """
    replies = [reply for shuffle in estimate.shuffles for reply in shuffle.replies]
    logs = estimate.log_probability
    return {
        "episode": key[0],
        "camera": key[1],
        "variant": key[2],
        "task": task,
        "status": estimate.status,
        "voc": estimate.voc,
        "final": _numbers(estimate.values)[-1],
        "parse_rate": estimate.parse_rate,
        "frames": estimate.positions.tolist(),
        **facts,
        "progress": _numbers(estimate.values),
        "spread": _numbers(estimate.spread),
        **({} if logs is None else {"log_probability": _numbers(logs)}),
        "shuffles": [_shuffle(shuffle) for shuffle in estimate.shuffles],
        "tokens": count_tokens(replies),
        "reasons": [],
    }


def failed_row(key: Key, reason: str) -> Row:
    """A line for what could not even be asked (a damaged picture); made again by the next run."""
    return {
        "episode": key[0],
        "camera": key[1],
        "variant": key[2],
        "status": "failed",
        "voc": None,
        "final": None,
        "parse_rate": None,
        "shuffles": [],
        "tokens": count_tokens([]),
        "reasons": [reason],
    }


def count_tokens(replies: Iterable[Reply]) -> Row:
    """Tokens of the answers that were asked for now; those from the cache cost nothing and are counted.

    unknown: answers whose tokens the backend did not tell; they are in no sum.
    """
    counts = {"input": 0, "output": 0, "answers": 0, "cached": 0, "unknown": 0}
    for reply in replies:
        counts["answers"] += 1
        if reply.cached:
            counts["cached"] += 1
        elif reply.input_tokens is None or reply.output_tokens is None:
            counts["unknown"] += 1
        else:
            counts["input"] += reply.input_tokens
            counts["output"] += reply.output_tokens
    return counts


def _shuffle(shuffle: Shuffle) -> Row:
    return {
        "seed": shuffle.seed,
        "status": shuffle.status,
        "order": shuffle.order.tolist(),
        "progress": _numbers(shuffle.values),
        "reasons": list(shuffle.reasons),
    }


def _numbers(values: Float32) -> list[float | None]:
    return [None if math.isnan(value) else round(float(np.float64(value)), 6) for value in values]


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _put(file: Any, content: bytes) -> None:
    file.write(content)


def _read(path: Path) -> list[Row]:
    """Whole rows; a last line without its end, left by a kill, is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in complete.splitlines()]
        for row in rows:
            key_of(row), row["status"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected rows of `valueguide progress`, found something else") from error
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return rows
