"""Cheap rendering for LeRobot's environments: on a CPU their pictures cost up to a hundred times the physics.

Stock, every step draws every camera with shadows and multisampling. Here the expensive effects are off,
cameras that no observation holds are not drawn, and drawing can be switched off between decisions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from valueguide.types import UInt8

_FLAGS_OFF = {"shadow": False, "reflection": False}


class RenderSwitch:
    """Stands before the `render` of an environment's physics; while `on` is False it answers black."""

    def __init__(self, owner: Any, camera: str | None, options: dict[str, Any]) -> None:
        """owner: the object whose `render` is replaced. camera: the only camera_id that is drawn, None
        for all. options: passed on to the real `render`."""
        self.on = True
        self._draw, self._camera, self._options = owner.render, camera, options
        self._blank: UInt8 | None = None
        owner.render = self

    def __call__(self, **call: Any) -> UInt8:
        used = self._camera is None or call.get("camera_id") == self._camera
        if self._blank is not None and not (self.on and used):
            return self._blank
        picture: UInt8 = self._draw(**call, **self._options)
        self._blank = np.zeros_like(picture)
        return picture


def install(env: Any) -> RenderSwitch | None:
    """Make an unwrapped LeRobot environment cheap to draw; None where its renderer is not known.

    Call before the first picture: multisampling is fixed when the drawing context is made.
    """
    if hasattr(env, "_ensure_env"):  # Meta-World builds its simulator late
        env._ensure_env()
    inner = getattr(env, "_env", None)
    physics = getattr(inner, "physics", None)  # dm_control, as in gym-aloha
    model = getattr(physics if physics is not None else inner, "model", None)
    if model is None or not hasattr(model, "vis"):
        return None
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    if physics is not None:
        return RenderSwitch(physics, "top", {"render_flag_overrides": _FLAGS_OFF})
    return RenderSwitch(inner, None, {})
