"""Two servers' descriptions for one small robot, and a policy that anybody can work out by hand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from valueguide.transport.remote_mapping import Action, Number, Picture, RobotFacts, ServerConfig
from valueguide.types import Observation

ROBOT = RobotFacts(["dx", "grip"], 2, {"front": (4, 6)})
STATE = np.array([0.25, 0.75], np.float32)
OBSERVATION = Observation({"front": np.full((4, 6, 3), 9, np.uint8)}, STATE, "go")


def description(dialect: str, **changed: Any) -> ServerConfig:
    """Three steps of dx, which counts up from the state, and grip, which is the seed's last digit / 10."""
    flat = {"groot": "", "groot_sim": "action.", "groot_n1_5": "action.", "openpi": ""}[dialect]
    keys: dict[str, Any]
    if dialect == "openpi":
        actions = [Action("dx", "actions", 0), Action("grip", "actions", 1)]
        keys = {"pictures": {"image": Picture("front")}, "instruction": "prompt"}
        keys["state"] = {"state": [Number("reach"), Number("gripper")]}
    else:
        actions = [Action("dx", f"{flat}arm"), Action("grip", f"{flat}hand")]
        language = "language.task" if dialect == "groot" else "annotation.human.task"
        keys = {"pictures": {"video.front": Picture("front")}, "instruction": language}
        keys["state"] = {"state.arm": [Number("reach")], "state.hand": [Number("gripper")]}
    keys |= {"horizon": 3, "state_names": ["reach", "gripper"], "actions": actions}
    keys |= {"seed_key": "seed", "timeout_s": 0.5, "first_timeout_s": 5.0, "reply_bytes": 1 << 16}
    return ServerConfig(dialect, **(keys | changed))  # type: ignore[arg-type]


def address(tmp_path: Path, scheme: str, port: int, config: ServerConfig) -> str:
    """The description as a file, and the address that names it."""
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    return f"{scheme}://127.0.0.1:{port}?config={path}"


def answer(reach: float, seed: int, steps: int = 4) -> np.ndarray[Any, Any]:
    """(steps, 2): what the small policy answers; a step more than the horizon is used."""
    dx = reach + np.arange(steps)
    return np.stack([dx, np.full(steps, seed % 10 / 10)], axis=1).astype(np.float32)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is inside must not take longer, with some slack for a busy machine."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + 1.0
