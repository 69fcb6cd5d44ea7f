"""Bags to datasets, through the same assembler as live recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from valueguide.config.robot import RobotConfig
from valueguide.errors import ConfigError, DataError
from valueguide.ros.assemble import EpisodeAssembler
from valueguide.ros.bag import BagReader
from valueguide.ros.messages import stamp_ns
from valueguide.ros.recording import DatasetRecorder, Graph, StoreSettings, graph_of
from valueguide.ros.topics import Topic, match_topics, recorded_topics, resolve
from valueguide.types import Episode

#: Metadata record of an exported episode: its facts as they were, under its number.
EPISODE_FACTS = "valueguide_episode"


def import_bag(
    bag: str | Path,
    out: str | Path,
    *,
    robot: RobotConfig | None = None,
    namespace: str | None = None,
    settings: StoreSettings | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Append the bag's episodes to the dataset `out`, which is made when it is missing.

    robot, namespace: where the bag does not say. progress: called with bytes read. Returns counts, and one
    line for every episode that was dropped. Raises ConfigError without a robot; DataError for a damaged
    bag or a dataset that does not fit.
    """
    reader = BagReader.open(bag)
    saved, frames, dropped = 0, 0, []
    recorder: DatasetRecorder | None = None
    try:
        for session in reader.sessions():
            graph = graph_of(session, robot, namespace)
            if graph.robot is None:
                raise ConfigError(f"{bag}: expected a robot description in the bag or --robot, found neither")
            if recorder is None:
                recorder = DatasetRecorder(out, graph.robot, settings or StoreSettings())
            for result in episodes_of(session, graph, progress):
                if isinstance(result, DataError):
                    dropped.append(str(result))
                    continue
                recorder.save(result)
                saved, frames = saved + 1, frames + len(result.steps)
    finally:
        if recorder is not None:
            recorder.close()
    return {"bag": str(bag), "episodes": saved, "frames": frames, "dropped": dropped}


def episodes_of(session: BagReader, graph: Graph, progress: Callable[[int], None] = lambda _: None) -> Any:
    """The episodes of one recording in order, and a DataError for each that is incomplete: an iterator."""
    assert graph.robot is not None
    assembler = EpisodeAssembler(graph.robot, privileged=graph.privileged)
    roles = _roles(session, graph)
    ours = bool(session.facts)
    received, read = 0, 0
    for message in session:
        if session.position > read + 1_000_000:
            progress(session.position - read)
            read = session.position
        role = roles.get(message.topic)
        if role is None:
            continue
        decoded = session.decode(message)
        if ours:
            received = message.log_ns
        elif hasattr(decoded, "header"):
            # Other recorders log wall time even where stamps are simulated.
            received = max(received, stamp_ns(decoded))
        for result in assembler.feed(role, decoded, received):
            yield _with_facts(result, session)
    progress(session.position - read)
    yield from assembler.close()


def _roles(session: BagReader, graph: Graph) -> dict[str, str]:
    """Full topic name -> role, for the topics that make up episodes."""
    assert graph.robot is not None
    topics = [topic for topic in recorded_topics(graph.robot, graph.privileged) if topic.role]
    if graph.namespace is not None:
        matched: dict[str, Topic] = {resolve(topic.name, graph.namespace): topic for topic in topics}
    else:
        matched = match_topics(topics, session.topics(), None)
    return {name: topic.role for name, topic in matched.items()}


def _with_facts(result: Episode | DataError, session: BagReader) -> Episode | DataError:
    """An exported episode gets its own metadata back."""
    if isinstance(result, Episode):
        for record in session.records.get(EPISODE_FACTS, []):
            if record.get("episode_id") == str(result.metadata["episode_id"]):
                result.metadata = json.loads(record["metadata"])
    return result
