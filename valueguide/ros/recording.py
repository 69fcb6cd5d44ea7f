"""What recorder and bag import share: a bag's facts, and the dataset that episodes go into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus

from valueguide import __version__
from valueguide.config.robot import RobotConfig, decode_robot
from valueguide.data import layout
from valueguide.data.schema import DatasetSpec, ImageFormat
from valueguide.data.writer import EpisodeWriter, recorded_spec
from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.ros.bag import BagReader
from valueguide.types import Episode


@dataclass(frozen=True)
class Graph:
    """Where a bag comes from. robot, namespace: None where nothing says. privileged: see recorded_topics."""

    robot: RobotConfig | None
    namespace: str | None
    privileged: bool


def bag_facts(robot: RobotConfig, namespace: str, privileged: bool) -> dict[str, str]:
    """The metadata record of a bag, texts only: the whole robot description, namespace and version."""
    return {
        "robot": json.dumps(draccus.encode(robot)),
        "namespace": namespace,
        "privileged": json.dumps(privileged),
        "valueguide": __version__,
    }


def graph_of(session: BagReader, robot: RobotConfig | None = None, namespace: str | None = None) -> Graph:
    """What one session of a bag says of itself; `robot` and `namespace` win over it."""
    facts = session.facts
    where = f"{session.paths[0]}: robot description"
    try:
        if robot is None and "robot" in facts:
            robot = decode_robot(json.loads(facts["robot"]), where)
        privileged = bool(json.loads(facts.get("privileged", "true")))
    except ValueError as error:
        raise DataError(f"{where}: not readable: {error}") from error
    return Graph(robot, facts.get("namespace") if namespace is None else namespace, privileged)


@dataclass(frozen=True)
class StoreSettings:
    """How episodes are stored. horizon, k, members: the most of each that fits (see DatasetSpec).

    0: as in the first episode, or DEFAULTS where that has no decision.
    """

    image_format: ImageFormat = "png"
    horizon: int = 0
    k: int = 0
    members: int = 0


#: H, K and M where neither a setting nor the first episode says.
DEFAULTS = {"horizon": 8, "k": 16, "members": 3}


def spec_for(robot: RobotConfig, episode: Episode, settings: StoreSettings) -> DatasetSpec:
    """The dataset spec of this robot; sizes that the description leaves open come from the episode.

    Raises ConfigError for a rate that is not a whole number, which datasets cannot hold.
    """
    if robot.rate_hz != round(robot.rate_hz):
        where = f"robot {robot.name}"
        raise ConfigError(mismatch(where, "rate_hz", "a whole number to record", robot.rate_hz))
    observation = episode.final_observation
    privileged = observation.environment_state
    cameras = {name: (len(image), len(image[0])) for name, image in observation.images.items()}
    return DatasetSpec(
        fps=round(robot.rate_hz),
        cameras=cameras,
        state=tuple(robot.state),
        action=tuple(robot.action.names),
        environment_state=() if privileged is None else tuple(f"env_{i}" for i in range(privileged.size)),
        image_format=settings.image_format if cameras else "none",
        robot_type=robot.name,
        **_sizes(episode, settings),
    )


def _sizes(episode: Episode, settings: StoreSettings) -> dict[str, int]:
    """Horizon, k and members: the setting, else what the episode shows, else the default."""
    found = {"horizon": 0, "k": 0, "members": 0}
    for step in episode.steps:
        if step.planned_chunk is not None:
            found["horizon"] = max(found["horizon"], len(step.planned_chunk))
        if step.candidates is not None:
            found["k"] = max(found["k"], step.candidates.k)
            found["horizon"] = max(found["horizon"], step.candidates.actions.shape[1])
        if step.decision is not None and step.decision.scores is not None:
            found["members"] = max(found["members"], len(step.decision.scores.q))
    return {name: getattr(settings, name) or found[name] or DEFAULTS[name] for name in found}


class DatasetRecorder:
    """Episodes of one robot into the folder `root`: a new dataset, or one that this robot recorded before.

    The dataset is made at the first episode, when all its sizes are known. Use from one thread.
    Raises DataError when the folder holds another robot's dataset or cannot be written.
    """

    def __init__(self, root: str | Path, robot: RobotConfig, settings: StoreSettings) -> None:
        self.root = Path(root)
        self._robot, self._settings = robot, settings
        self._writer: EpisodeWriter | None = None
        if (self.root / layout.INFO).exists():
            self._writer = EpisodeWriter(self.root, self._continued(recorded_spec(self.root)))
        else:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"{self.root}: cannot record here: {error}") from error

    def save(self, episode: Episode) -> int:
        """Store it durably; returns its index. Raises DataError; the episodes before stay."""
        if self._writer is None:
            self._writer = EpisodeWriter(self.root, spec_for(self._robot, episode, self._settings))
        return self._writer.save(episode)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _continued(self, spec: DatasetSpec) -> DatasetSpec:
        """The recorded spec, where it agrees with the robot and with every setting that is not open."""
        robot, settings = self._robot, self._settings
        wanted: dict[str, Any] = {
            "fps": round(robot.rate_hz),
            "state": tuple(robot.state),
            "action": tuple(robot.action.names),
            "robot_type": robot.name,
        }
        if spec.image_format != "none":
            wanted["image_format"] = settings.image_format
        wanted |= {name: getattr(settings, name) for name in DEFAULTS if getattr(settings, name)}
        for name, value in wanted.items():
            if getattr(spec, name) != value:
                raise DataError(
                    mismatch(
                        str(self.root), f"dataset {name}", value, getattr(spec, name), "Choose a new folder"
                    )
                )
        return spec
