"""What one recorded frame holds: the columns of a valueguide dataset, as LeRobotDataset v3 features.

docs/data.md lists the same columns with their meaning. Everything here is data: no file is touched.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from valueguide.errors import ConfigError, mismatch
from valueguide.types import Episode

ImageFormat = Literal["png", "jpeg", "none"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "none")
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"

Feature = dict[str, Any]

# Columns that LeRobot itself fills in every dataset; it refuses a dataset without them.
INDEX_FEATURES: dict[str, Feature] = {
    "timestamp": {"dtype": "float32", "shape": (1,), "names": None},
    "frame_index": {"dtype": "int64", "shape": (1,), "names": None},
    "episode_index": {"dtype": "int64", "shape": (1,), "names": None},
    "index": {"dtype": "int64", "shape": (1,), "names": None},
    "task_index": {"dtype": "int64", "shape": (1,), "names": None},
}

SCALARS: dict[str, str] = {
    "next.reward": "float32",
    "next.done": "bool",
    "next.terminated": "bool",
    "next.truncated": "bool",
    "next.success": "bool",
    "intervention": "bool",
    "vg.source": "int64",
    "vg.stamp_ns": "int64",
    "vg.chunk_id": "int64",
    "vg.chunk_step": "int64",
    "vg.executed_length": "int64",
    "vg.policy_version": "string",
    "vg.critic_version": "string",
    "vg.replan": "bool",
    "vg.index": "int64",
    "vg.preferred": "int64",
    "vg.reason": "string",
    "vg.seed": "int64",
    "vg.latency_s": "float32",
}


@dataclass(frozen=True)
class DatasetSpec:
    """The shape of every episode in one dataset. Fixed when the dataset is created.

    fps: control steps per second.
    cameras: camera name -> (height, width) in pixels.
    state, environment_state, action: one name per dimension; environment_state may be empty.
    horizon: H, the longest planned chunk that is stored.
    k: K, the most candidates stored at a replan; 0 stores no candidate columns.
    members: M, the most ensemble members whose scores are stored.
    image_format: "png" (lossless), "jpeg" (quality 95) or "none" (pictures are not stored).
    """

    fps: int
    cameras: dict[str, tuple[int, int]]
    state: tuple[str, ...]
    action: tuple[str, ...]
    environment_state: tuple[str, ...] = ()
    horizon: int = 1
    k: int = 0
    members: int = 1
    image_format: ImageFormat = "png"
    robot_type: str = ""
    stored_cameras: dict[str, tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("fps", 1), ("horizon", 1), ("k", 0), ("members", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(
                    mismatch("dataset spec", name, f"an integer of {least} or more", repr(value))
                )
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(
                mismatch("dataset spec", "image_format", IMAGE_FORMATS, repr(self.image_format))
            )
        for name in ("state", "action"):
            if not getattr(self, name):
                raise ConfigError(mismatch("dataset spec", name, "at least one dimension name", "none"))
        cameras = {name: (int(size[0]), int(size[1])) for name, size in self.cameras.items()}
        for camera in cameras:
            if "/" in camera or not camera:
                raise ConfigError(mismatch("dataset spec", "camera name", "a name without '/'", repr(camera)))
        object.__setattr__(self, "cameras", cameras)
        object.__setattr__(self, "stored_cameras", {} if self.image_format == "none" else cameras)
        for name in ("state", "action", "environment_state"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def from_episode(cls, episode: Episode, fps: int, **settings: Any) -> DatasetSpec:
        """A spec with generated dimension names that fits `episode`; `settings` override fields."""
        observation = episode.final_observation
        privileged = observation.environment_state
        found: dict[str, Any] = {
            "cameras": {name: image.shape[:2] for name, image in observation.images.items()},
            "state": tuple(f"state_{i}" for i in range(observation.state.size)),
            "action": tuple(f"action_{i}" for i in range(episode.steps[0].action.size)),
            "environment_state": tuple(f"env_{i}" for i in range(privileged.size))
            if privileged is not None
            else (),
            "image_format": "png" if observation.images else "none",
        }
        return cls(fps=fps, **{**found, **settings})

    def features(self) -> dict[str, Feature]:
        """Column name -> {"dtype", "shape", "names"} as in the features of meta/info.json."""
        columns: dict[str, Feature] = {}
        for camera, (height, width) in self.stored_cameras.items():
            columns[IMAGE_PREFIX + camera] = {
                "dtype": "image",
                "shape": (height, width, 3),
                "names": ["height", "width", "channels"],
            }
        columns[STATE] = _vector(self.state)
        if self.environment_state:
            columns[ENVIRONMENT_STATE] = _vector(self.environment_state)
        columns[ACTION] = _vector(self.action)
        for name, dtype in SCALARS.items():
            columns[name] = {"dtype": dtype, "shape": (1,), "names": None}
        columns["vg.planned_chunk"] = _array(self.horizon, len(self.action))
        if self.k:
            columns["vg.candidates"] = _array(self.k, self.horizon, len(self.action))
            columns["vg.scores"] = _array(self.members, self.k)
            columns["vg.values"] = _array(self.k)
            columns["vg.num_candidates"] = {"dtype": "int64", "shape": (1,), "names": None}
            columns["vg.num_members"] = {"dtype": "int64", "shape": (1,), "names": None}
        return {**columns, **INDEX_FEATURES}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as kept in meta/valueguide/spec.json."""
        values = asdict(self)
        del values["stored_cameras"]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in {**values, "cameras": {c: list(s) for c, s in self.cameras.items()}}.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "dataset spec") -> DatasetSpec:
        """Inverse of `to_dict`. Raises ConfigError naming `where` on unknown or missing fields."""
        known = {f.name for f in fields(cls) if f.init}
        if set(values) - known:
            raise ConfigError(mismatch(where, "fields", sorted(known), sorted(set(values) - known)))
        try:
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: not a dataset spec: {error}") from error

    def difference(self, other: DatasetSpec) -> str | None:
        """The first field in which `other` differs, as "name: expected …, found …", or None."""
        mine, theirs = self.to_dict(), other.to_dict()
        for name, value in mine.items():
            if value != theirs[name]:
                return f"{name}: expected {value}, found {theirs[name]}"
        return None


def _vector(names: tuple[str, ...]) -> Feature:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def _array(*shape: int) -> Feature:
    return {"dtype": "float32", "shape": shape, "names": None}
