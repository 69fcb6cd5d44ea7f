"""Results as JSON lines: one line for each episode, camera and variant, kept as soon as it is known."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.data.layout import make_folder, read_json, write_bytes, write_json
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.progress.request import Estimate, Float32, Reply, Shuffle
from valueguide.progress.shards import ALONE, Place, held, in_use, try_lock

Row = dict[str, Any]
Key = tuple[int, str, str]
_SPENT = ("input", "output", "unknown")


def key_of(row: Row) -> Key:
    return int(row["episode"]), str(row["camera"]), str(row["variant"])


class RowFile:
    """Rows made under one plan; an interrupted run of the same plan goes on where it stopped.

    path: the file. The plan lies beside it, as <path>.plan.json. Rows with status "failed" are made again.
    place: each process of several appends to a part of its own, <path>.part-<rank>. Whoever closes puts the
        rows of all parts into `path`, sorted, and removes the parts that nobody writes any more; what a
        kill left is found there by the next run, whatever its number of processes.
    Raises ConfigError when the file holds rows made under another plan or another process has the same
    place, DataError when it holds no rows.
    """

    def __init__(self, path: Path, plan: Row, place: Place = ALONE) -> None:
        self._path = path
        make_folder(path.parent.absolute())
        with held(path):
            self._rows = _collected(path)
            _keep_plan(path.with_name(path.name + ".plan.json"), plan, bool(self._rows), path)
            part = path.with_name(f"{path.name}.part-{place.rank}")
            self._file = open(part, "ab")  # noqa: SIM115  open as long as rows come
            if not try_lock(self._file.fileno()):
                self._file.close()
                raise ConfigError(f"{path}: another process is writing it. Wait for it, or use another --out")
            self._file.truncate(_complete(part.read_bytes()))

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
        """The newest row of each key, in order; after `close`, also what the other processes have so far."""
        return {key: self._rows[key] for key in sorted(self._rows)}

    def close(self) -> None:
        """Put all rows there are into the file, sorted, without those that were made again."""
        with held(self._path):
            self._file.close()
            self._rows = _collected(self._path)
            lines = b"".join(_line(row) for row in self.by_key().values())
            write_bytes(self._path, lines)
            for part in _parts(self._path):
                if not in_use(part):
                    part.unlink()


def read_rows(path: Path) -> list[Row]:
    """The rows of a finished run, in order. Raises DataError when the file is missing or holds others."""
    if not path.is_file():
        raise DataError(mismatch(str(path), "file", "rows of `valueguide progress score`", "none"))
    return _read(path)


def read_plan(path: Path) -> Row:
    """The settings under which the rows of `path` were made, {} where nothing tells."""
    beside = path.with_name(path.name + ".plan.json")
    return dict(read_json(beside)) if beside.exists() else {}


def kind_of(metadata: Row, success: bool) -> str:
    """How an episode ended: "success", else the demonstrator's flaws or the failure, as far as recorded."""
    if success:
        return "success"
    return "+".join(metadata.get("flaws") or []) or str(metadata.get("failure") or "failure")


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


def _keep_plan(beside: Path, plan: Row, rows: bool, path: Path) -> None:
    plan = json.loads(json.dumps(plan))
    if rows:
        found = json.loads(beside.read_text()) if beside.exists() else {}
        different = sorted(k for k in {*plan, *found} if plan.get(k) != found.get(k))
        if different:
            raise ConfigError(
                f"{path}: holds rows made with other settings ({', '.join(different)}). Use another --out"
            )
    write_json(beside, plan)


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part-*"))


def _collected(path: Path) -> dict[Key, Row]:
    """The rows of the file and of all parts; of two of the same key, the later one that is not failed."""
    rows: dict[Key, Row] = {}
    for row in (row for file in (path, *_parts(path)) if file.exists() for row in _read(file)):
        if row["status"] != "failed" or rows.get(key_of(row), row)["status"] == "failed":
            rows[key_of(row)] = row
    return rows


def _complete(content: bytes) -> int:
    """How many bytes are whole lines; a kill may have left half of one."""
    return content.rfind(b"\n") + 1


def _read(path: Path) -> list[Row]:
    content = path.read_bytes()
    try:
        rows = [json.loads(line) for line in content[: _complete(content)].splitlines()]
        for row in rows:
            key_of(row), row["status"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected rows of `valueguide progress score`, found something else"
        ) from error
    return rows
