"""A replay without a disk, for tests that need thousands of segments and none of the files."""

from __future__ import annotations

from collections.abc import Iterable

from valueguide.online.replay import ReplayReader
from valueguide.online.segments import Segment


class FakeReplayReader(ReplayReader):
    """Holds the segments that it is given, numbered from 0, and never finds others."""

    def __init__(self, segments: Iterable[Segment]) -> None:
        super().__init__("fake-replay")
        self.segments = dict(enumerate(segments))

    def refresh(self) -> tuple[list[int], list[int]]:
        return [], []
