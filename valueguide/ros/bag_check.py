"""What a bag holds and what it lacks: counts, rates, gaps, stamps, truncation, missing topics."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valueguide.config.robot import RobotConfig
from valueguide.ros.bag import BagMessage, BagReader
from valueguide.ros.recording import graph_of
from valueguide.ros.topics import match_topics, recorded_topics, resolve

_HEADER = "std_msgs/Header"


@dataclass
class TopicReport:
    """One topic. rate_hz: mean over its time. longest_gap_s: between two messages, by time of reception.

    gaps: of a robot's sensors, how often the gap was longer than its staleness allows.
    backwards: how often a header's stamp was before its predecessor's.
    """

    type: str
    count: int = 0
    rate_hz: float = 0.0
    longest_gap_s: float = 0.0
    gaps: int = 0
    backwards: int = 0
    _first: int | None = field(default=None, repr=False)
    _last: int = field(default=0, repr=False)
    _stamp: int | None = field(default=None, repr=False)

    def add(self, message: BagMessage, allowed_s: float) -> None:
        if self._first is None:
            self._first = message.log_ns
        else:
            gap = (message.log_ns - self._last) / 1e9
            self.longest_gap_s = max(self.longest_gap_s, gap)
            self.gaps += gap > allowed_s
        self._last = message.log_ns
        self.count += 1
        seconds = (self._last - self._first) / 1e9
        self.rate_hz = (self.count - 1) / seconds if seconds > 0 else 0.0
        stamp = _header_stamp(message)
        if stamp is not None:
            self.backwards += self._stamp is not None and stamp < self._stamp
            self._stamp = stamp

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "count": self.count,
            "rate_hz": round(self.rate_hz, 2),
            "longest_gap_s": round(self.longest_gap_s, 3),
            "gaps": self.gaps,
            "backwards": self.backwards,
        }


def check_bag(
    path: str | Path, robot: RobotConfig | None = None, namespace: str | None = None
) -> dict[str, Any]:
    """JSON-ready facts about a bag; `problems` is a list of sentences, empty for a sound bag.

    robot: whose topics must be there; None: the description in the bag, when there is one. Reads all
    messages but decodes none. Raises DataError for a file that is no bag or is damaged before its end.
    """
    reader = BagReader.open(path)
    reports: dict[str, TopicReport] = {}
    sessions: list[dict[str, Any]] = []
    missing: set[str] = set()
    truncated: list[str] = []
    for session in reader.sessions():
        found, lacking = _check_session(session, robot, namespace, reports)
        sessions.append(found)
        missing |= set(lacking)
        truncated += [str(file) for file in session.truncated]
    problems = [f"{file}: cut off by a crash or a full disk; what came before reads" for file in truncated]
    problems += [f"{name}: nothing recorded" for name in sorted(missing)]
    for name, report in reports.items():
        if report.gaps:
            problems.append(f"{name}: {report.gaps} gaps, the longest {report.longest_gap_s:.2f} s")
        if report.backwards:
            problems.append(f"{name}: {report.backwards} stamps go backwards")
    return {
        "bag": str(path),
        "files": [str(file) for file in reader.paths],
        "sessions": sessions,
        "messages": sum(report.count for report in reports.values()),
        "topics": {name: report.to_dict() for name, report in sorted(reports.items())},
        "missing": sorted(missing),
        "truncated": truncated,
        "problems": problems,
    }


def _check_session(
    session: BagReader, robot: RobotConfig | None, namespace: str | None, reports: dict[str, TopicReport]
) -> tuple[dict[str, Any], list[str]]:
    """The session's summary and the sensors of which it holds nothing. Adds to `reports`."""
    graph = graph_of(session, robot, namespace)
    fresh: dict[str, TopicReport] = {}
    first, last = 0, 0
    topics = recorded_topics(graph.robot, graph.privileged) if graph.robot else []
    sensors = [topic for topic in topics if topic.qos == "sensor" and topic.role]
    names = {resolve(topic.name, graph.namespace or "") for topic in sensors}
    for message in session:
        first, last = first or message.log_ns, message.log_ns
        report = fresh.setdefault(message.topic, TopicReport(message.type))
        limit = graph.robot.sync.stale_s if graph.robot and message.topic in names else float("inf")
        report.add(message, limit)
    for name, report in fresh.items():
        _merge(reports, name, report)
    lacking: list[str] = []
    if graph.robot:
        required = [*sensors, *(topic for topic in topics if topic.name in ("task", "command"))]
        matched = set(match_topics(required, list(fresh), graph.namespace).values())
        lacking = [resolve(topic.name, graph.namespace or "") for topic in required if topic not in matched]
    return {
        "session": session.facts.get("session", ""),
        "robot": graph.robot.name if graph.robot else "",
        "duration_s": round((last - first) / 1e9, 3),
        "messages": sum(report.count for report in fresh.values()),
    }, lacking


def _merge(reports: dict[str, TopicReport], name: str, more: TopicReport) -> None:
    known = reports.get(name)
    if known is None:
        reports[name] = more
        return
    total = known.count + more.count
    known.rate_hz = (known.rate_hz * known.count + more.rate_hz * more.count) / total
    known.longest_gap_s = max(known.longest_gap_s, more.longest_gap_s)
    known.count, known.gaps, known.backwards = (
        total,
        known.gaps + more.gaps,
        known.backwards + more.backwards,
    )


def _header_stamp(message: BagMessage) -> int | None:
    """Nanoseconds of the header that most messages begin with, without decoding the rest."""
    first = next(
        (line.split() for line in message.schema.data.decode().splitlines() if line.split("#")[0].strip()), []
    )
    if not first or first[0] not in (_HEADER, "Header") or len(message.data) < 12:
        return None
    order = "<" if message.data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", message.data, 4)
    return seconds * 1_000_000_000 + nanoseconds
