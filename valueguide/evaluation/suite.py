"""The contract for a suite of tasks, and the step from its observations to ours."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from valueguide.types import Float32, Observation


class Suite(Protocol):
    """Named tasks that share robot, cameras and action convention.

    Environments follow gymnasium. Their observation is a dictionary with `agent_pos` float32 (S,),
    and `pixels` {camera: uint8 (H, W, 3)} and/or `environment_state` float32 (N,). Their info has
    `is_success`, `task_description`, and may have `failure` and `progress`. An environment may offer
    `set_render(bool)` with `observe()`, and `project_candidates(actions)`.
    """

    name: str
    tasks: tuple[str, ...]
    fps: int
    max_steps: int
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]

    @property
    def action_low(self) -> Float32: ...

    @property
    def action_high(self) -> Float32: ...

    @property
    def cameras(self) -> dict[str, tuple[int, int]]: ...

    @property
    def environment_state_names(self) -> tuple[str, ...]: ...

    def make(self, task: str, wording: str = "train", visuals: str = "train") -> Any: ...


def to_observation(raw: dict[str, Any], task: str, step: int, fps: float) -> Observation:
    """An environment's observation as ours, stamped with simulated time."""
    privileged = raw.get("environment_state")
    return Observation(
        images=dict(raw.get("pixels", {})),
        state=np.asarray(raw["agent_pos"], np.float32),
        task=task,
        stamp_ns=round(step / fps * 1e9),
        environment_state=None if privileged is None else np.asarray(privileged, np.float32),
    )
