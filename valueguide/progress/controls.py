"""Clips on which a model that looks at the pictures must do differently than on the real ones.

first_frame: the anchor repeated. Nothing happens, so values that order themselves come from elsewhere.
blank: black pictures, the anchor too.
wrong_instruction: the real pictures under another task.
reversed: the real pictures in reverse, the anchor kept. The shuffled pictures are those of the real clip, so
    VOC must change its sign; it stays where a model counts pictures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from valueguide.errors import ConfigError, mismatch
from valueguide.progress.request import Clip

REAL = "real"
CONTROLS = ("first_frame", "blank", "wrong_instruction", "reversed")


def control_clip(clip: Clip, control: str, other_task: str) -> Clip:
    """The clip of one of CONTROLS, or the same one for REAL. Raises ConfigError for other names."""
    frames = clip.frames
    if control == REAL:
        return clip
    if control == "first_frame":
        return replace(clip, frames=np.repeat(frames[:1], len(frames), axis=0))
    if control == "blank":
        return replace(clip, frames=np.zeros_like(frames))
    if control == "wrong_instruction":
        return replace(clip, task=other_task)
    if control == "reversed":
        return replace(clip, frames=np.concatenate([frames[:1], frames[:0:-1]]))
    raise ConfigError(mismatch("controls", "name", f"one of {', '.join(CONTROLS)}", repr(control)))
