"""What is drawn from one segment, worked out once; rows of many segments put into the order of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.online.replay import state_id
from valueguide.online.segments import Segment, SegmentTransitions

Int64 = NDArray[np.int64]


class Drawable:
    """A segment and its n transitions.

    frames, following: int64 (n,), the observations before and after each. columns: what else a batch says
    of them, by the names of `ReplayBatch`, n rows each; observations stay in the segment's map.
    """

    def __init__(self, sequence: int, segment: Segment, transitions: SegmentTransitions) -> None:
        chunks, starts = transitions.chunks, transitions.starts
        self.sequence, self.segment, self.count = sequence, segment, len(starts)
        self.frames, self.following = starts, chunks.successor[starts]
        actions, valid = chunks.actions(segment.action, starts, transitions.plans)
        self.columns: dict[str, NDArray[Any]] = {
            "actions": actions,
            "valid": valid,
            "reward": chunks.reward[starts],
            "discount": chunks.discount[starts],
            "mc_return": chunks.mc_return[starts],
            "cut": transitions.cut[starts],
            "index": state_id(sequence, 0) + self.frames,
            "next_index": state_id(sequence, 0) + self.following,
        }


class Rows:
    """Arrays of a batch of rows from several segments. chosen: int64 (B,), the segment of each row."""

    def __init__(self, chosen: Int64) -> None:
        self._order = np.argsort(chosen, kind="stable")
        self._numbers, first = np.unique(chosen[self._order], return_index=True)
        self._groups = np.split(self._order, first[1:])
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def groups(self) -> Iterator[tuple[int, Int64]]:
        """Each segment's number and the rows that come from it; `put` wants them in this order."""
        for number, rows in zip(self._numbers, self._groups, strict=True):
            yield int(number), rows

    def put(self, name: str, values: NDArray[Any]) -> None:
        """What the rows of the present group hold."""
        self._parts.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that was put, (B, ...) each."""
        return {name: self._arranged(np.concatenate(parts)) for name, parts in self._parts.items()}

    def labels(self, each: list[int]) -> Int64:
        """int64 (B,) from one number a group."""
        return self._arranged(np.repeat(np.array(each, np.int64), [len(rows) for rows in self._groups]))

    def _arranged(self, grouped: NDArray[Any]) -> NDArray[Any]:
        out = np.empty_like(grouped)
        out[self._order] = grouped
        return out
