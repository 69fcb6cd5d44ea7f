"""How our observations and actions are named and scaled for somebody else's policy server; one YAML each.

The files are in configs/policies/servers/; docs/policies.md describes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import draccus
import numpy as np
import yaml
from numpy.typing import NDArray

from valueguide.errors import ConfigError, DataError, mismatch
from valueguide.types import Float32, Observation, UInt8

SERVERS = Path(__file__).resolve().parents[2] / "configs" / "policies" / "servers"


@dataclass(frozen=True)
class Picture:
    """One picture of the request: which camera of ours, and how the server wants it.

    width, height: in pixels; 0: as it comes. pad: keep the aspect ratio and fill up with black, as openpi's
    own client does; otherwise the picture is stretched. layout: `hwc` (height, width, 3) or `chw`.
    """

    camera: str
    width: int = 0
    height: int = 0
    pad: bool = True
    layout: Literal["hwc", "chw"] = "hwc"


@dataclass(frozen=True)
class Number:
    """One number of the request: theirs = scale * ours + offset. name: of `state_names`; "": the offset."""

    name: str = ""
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Action:
    """One number of an action: ours = scale * theirs + offset.

    name: our action's name. key, index: which array of the reply, and which of the last dimension.
    """

    name: str
    key: str
    index: int = 0
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class ServerConfig:
    """What a server expects and answers, and how long it is waited for.

    dialect: `openpi`; `groot` (N1.6 and later), `groot_sim` (its flat keys, run_gr00t_server.py with
        --use-sim-policy-wrapper), `groot_n1_5`.
    state_names: what the numbers of our `Observation.state` are, in order; only their count is compared
        with the robot. horizon: steps used of a reply; a reply may have more.
    rate_hz: the rate of the server's actions, which must be the robot's; 0: not checked.
    pictures, state: their key -> what is in it. instruction, environment_state: their keys, "" to leave out.
    environment_state_size: numbers in it, simulations only.
    state_dtype: of the state's arrays. seed_key: a key for the candidate's seed, for servers that read one.
    key_variable: the environment variable that holds the server's key, "" for servers without one.
    timeout_s: for one decision, all K candidates. first_timeout_s: for connecting and for the first
        decision, at which models compile. reply_bytes: the largest reply that is read.
    """

    dialect: Literal["openpi", "groot", "groot_sim", "groot_n1_5"]
    horizon: int
    state_names: list[str]
    actions: list[Action]
    pictures: dict[str, Picture] = field(default_factory=dict)
    state: dict[str, list[Number]] = field(default_factory=dict)
    instruction: str = ""
    environment_state: str = ""
    state_dtype: Literal["float32", "float64"] = "float32"
    environment_state_size: int = 0
    seed_key: str = ""
    key_variable: str = ""
    rate_hz: float = 0.0
    timeout_s: float = 5.0
    first_timeout_s: float = 120.0
    reply_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in (("horizon", self.horizon), ("actions", len(self.actions))):
            if value < 1:
                raise ConfigError(mismatch("server", name, "1 or more", value))
        for name, seconds in (("timeout_s", self.timeout_s), ("first_timeout_s", self.first_timeout_s)):
            if not 0 < seconds <= 3600:
                raise ConfigError(mismatch("server", name, "more than 0 seconds, 3600 at most", seconds))
        if not 1 <= self.reply_bytes <= 1 << 26:
            raise ConfigError(mismatch("server", "reply_bytes", f"1 to {1 << 26}", self.reply_bytes))
        for key, numbers in self.state.items():
            for number in numbers:
                if number.name and number.name not in self.state_names:
                    raise ConfigError(
                        mismatch(f"server: state {key}", "name", self.state_names, repr(number.name))
                    )
        if any(action.index < 0 for action in self.actions):
            raise ConfigError(mismatch("server", "actions.index", "0 or more", "a negative one"))
        if any(min(picture.width, picture.height) < 0 for picture in self.pictures.values()):
            raise ConfigError(mismatch("server", "picture size", "0 or more pixels", "a negative one"))


@dataclass(frozen=True)
class RobotFacts:
    """What a robot or a suite of tasks offers.

    cameras: name -> (height, width), 0 where it is not known. environment_state_size: 0: none; None: some.
    rate_hz: control steps a second, 0 where it is not known.
    """

    action_names: Sequence[str]
    state_size: int
    cameras: Mapping[str, tuple[int, int]]
    environment_state_size: int | None = 0
    rate_hz: float = 0.0


def load_server(name_or_path: str) -> ServerConfig:
    """`configs/policies/servers/<name>.yaml`, or any path. Raises ConfigError naming file and field."""
    path = Path(name_or_path)
    if not path.suffix:
        path = SERVERS / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in SERVERS.glob("*.yaml")))
        raise ConfigError(f"{name_or_path}: expected one of {known}, or a YAML file; found none at {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, found {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(mismatch(str(path), "content", "a mapping", type(content).__name__))
    try:
        return draccus.decode(ServerConfig, content)
    except Exception as error:  # draccus raises several kinds; all of them mean a wrong file
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def check_robot(config: ServerConfig, robot: RobotFacts, where: str) -> None:
    """Raises ConfigError naming what of the robot the server's description does not fit."""
    for what, theirs, ours in (
        ("actions", [action.name for action in config.actions], list(robot.action_names)),
        ("numbers in the state", len(config.state_names), robot.state_size),
    ):
        if theirs != ours:
            raise ConfigError(mismatch(where, what, f"the robot's {ours}", theirs))
    for key, picture in config.pictures.items():
        if picture.camera not in robot.cameras:
            raise ConfigError(
                mismatch(where, f"pictures {key}", f"a camera of {sorted(robot.cameras)}", picture.camera)
            )
    offered = robot.environment_state_size
    if config.environment_state and offered not in (None, config.environment_state_size):
        found = config.environment_state_size
        raise ConfigError(mismatch(where, "environment_state_size", f"the robot's {offered}", found))
    if config.rate_hz and robot.rate_hz and config.rate_hz != robot.rate_hz:
        raise ConfigError(mismatch(where, "rate_hz", f"the robot's {robot.rate_hz}", config.rate_hz))


def request_parts(config: ServerConfig, observation: Observation) -> dict[str, Any]:
    """Their key -> uint8 picture, float vector (n,) or text. Raises DataError for what does not fit."""
    parts: dict[str, Any] = {}
    for key, picture in config.pictures.items():
        if picture.camera not in observation.images:
            found = sorted(observation.images) or "no images"
            raise DataError(mismatch("observation.images", "camera", repr(picture.camera), found))
        parts[key] = _shaped(observation.images[picture.camera], picture)
    state = _finite(observation.state, len(config.state_names), "state").astype(np.float64)
    ours = dict(zip(config.state_names, state, strict=True))
    for key, numbers in config.state.items():
        parts[key] = np.array(
            [n.scale * ours.get(n.name, 0.0) + n.offset for n in numbers], config.state_dtype
        )
    if config.environment_state:
        extra = _finite(observation.environment_state, config.environment_state_size, "environment_state")
        parts[config.environment_state] = extra.astype(config.state_dtype)
    if config.instruction:
        parts[config.instruction] = observation.task
    return parts


def _finite(values: Float32 | None, size: int, name: str) -> Float32:
    if values is None or values.shape != (size,) or not np.isfinite(values).all():
        found = "none" if values is None else f"{values.shape}, or NaN or infinity"
        raise DataError(mismatch(f"observation.{name}", "value", f"{size} finite numbers", found))
    return values


def read_actions(config: ServerConfig, reply: Any, rows: int | None, where: str) -> Float32:
    """The reply's chunks as float32 (rows, horizon, A), physical, in our order; one row for rows None.

    reply: their key -> array (rows, H, D), or (H, D) for rows None; H may exceed the horizon, and D be left
    out where it is 1. Raises DataError naming `where` for anything missing, misshapen or not finite.
    """
    if not isinstance(reply, dict):
        raise DataError(mismatch(where, "reply", "a map", type(reply).__name__))
    arrays: dict[str, NDArray[Any]] = {}
    actions = np.empty((rows or 1, config.horizon, len(config.actions)), np.float32)
    for column, action in enumerate(config.actions):
        if action.key not in arrays:
            arrays[action.key] = _chunks(
                reply.get(action.key), config.horizon, rows, f"{where}: {action.key}"
            )
        theirs = arrays[action.key]
        if action.index >= theirs.shape[2]:
            wanted = f"more than {action.index} for {action.name}"
            raise DataError(mismatch(f"{where}: {action.key}", "numbers an action", wanted, theirs.shape[2]))
        actions[:, :, column] = action.scale * theirs[:, : config.horizon, action.index] + action.offset
    if not np.isfinite(actions).all():
        raise DataError(mismatch(where, "actions", "finite numbers", "NaN or infinity"))
    return actions


def _chunks(array: Any, horizon: int, rows: int | None, where: str) -> NDArray[np.float64]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(mismatch(where, "value", "an array of numbers", found))
    chunks = array if rows is not None else array[None]
    if chunks.ndim == 2:
        chunks = chunks[:, :, None]
    if chunks.ndim != 3 or chunks.shape[0] != (rows or 1) or chunks.shape[1] < horizon:
        wanted = f"{horizon} steps or more" + (f" in each of {rows} rows" if rows is not None else "")
        raise DataError(mismatch(where, "shape", wanted, array.shape))
    return chunks.astype(np.float64)


def _shaped(image: UInt8, picture: Picture) -> UInt8:
    """One camera picture as the server wants it, contiguous."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {image.shape}"
        raise DataError(
            mismatch(f"observation.images[{picture.camera!r}]", "image", "uint8 (H, W, 3)", found)
        )
    height, width = picture.height or image.shape[0], picture.width or image.shape[1]
    if image.shape[:2] != (height, width):
        image = _padded(image, height, width) if picture.pad else _resized(image, height, width)
    return np.ascontiguousarray(image.transpose(2, 0, 1) if picture.layout == "chw" else image)


def _padded(image: UInt8, height: int, width: int) -> UInt8:
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = _resized(image, max(1, int(image.shape[0] * scale)), max(1, int(image.shape[1] * scale)))
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    out = np.zeros((height, width, 3), np.uint8)
    out[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return out


def _resized(image: UInt8, height: int, width: int) -> UInt8:
    """Area averages when shrinking (no aliasing), bilinear when growing."""
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how).astype(np.uint8)
