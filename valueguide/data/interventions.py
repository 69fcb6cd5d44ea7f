"""Who acted at each frame of a LeRobotDataset v3, in valueguide's columns or one of LeRobot's conventions.

LeRobot (0.6.1) records human takeovers in three ways, depending on the program:

- "dagger": `lerobot-rollout --strategy.type=dagger`. rollout/context.py adds the feature `intervention`
  (bool, (1,)); `DAggerStrategy` in rollout/strategies/dagger.py writes True where the teleoperator drove
  and False where the policy did. Pauses are not recorded, outcomes neither. By default
  (`record_autonomous=False`) only corrections are recorded, each as an episode of its own, all True.
- "hil_serl": the online buffer of the HIL-SERL learner. rl/actor.py puts `TeleopEvents.IS_INTERVENTION`
  into each transition's complementary_info, and `ReplayBuffer.to_lerobot_dataset` in rl/buffer.py stores
  it as `complementary_info.is_intervention` (float32, (1,), 0 or 1).
- "gym_record": `control_loop` in rl/gym_manipulator.py with mode "record". A person drives throughout
  and nothing marks it; `complementary_info.discrete_penalty`, which it writes for arms with a gripper,
  tells such a dataset from others. The learner's offline buffer (demonstrations, to which it adds
  interventions) is stored in the same form when it began with such a dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from valueguide.data.schema import Feature
from valueguide.errors import DataError, mismatch
from valueguide.types import SOURCES

Convention = Literal["dagger", "hil_serl", "gym_record"]
CONVENTIONS: tuple[Convention, ...] = ("dagger", "hil_serl", "gym_record")
SOURCE = "vg.source"
INTERVENTION = "intervention"
IS_INTERVENTION = "complementary_info.is_intervention"
PENALTY = "complementary_info.discrete_penalty"
FLAGS = (INTERVENTION, IS_INTERVENTION)


def convention_of(features: dict[str, Feature], where: str) -> Convention | Literal["valueguide"] | None:
    """How a dataset with these features says who acted; None where nothing says it.

    where: the file that lists the features, for errors.
    Raises DataError when a column of one of the conventions is not one number or bool a frame.
    """
    for name in (SOURCE, *FLAGS):
        if name not in features:
            continue
        dtype, shape = features[name]["dtype"], tuple(features[name]["shape"])
        if shape != (1,) or dtype in ("string", "image", "video"):
            raise DataError(
                mismatch(where, f"column '{name}'", "one number or bool a frame", f"{dtype} {shape}")
            )
    if SOURCE in features:
        return "valueguide"
    if INTERVENTION in features:
        return "dagger"
    if IS_INTERVENTION in features:
        return "hil_serl"
    return "gym_record" if PENALTY in features else None


def read_sources(
    columns: dict[str, Any], features: dict[str, Feature], frames: int, place: Callable[[int], str]
) -> NDArray[np.int64]:
    """int64 (frames,): the index into types.SOURCES of who acted at each frame.

    With `vg.source` it is that. Otherwise frames under an intervention are "human" and the others
    "policy"; without any mark they are "human" in a "gym_record" dataset and "expert" in any other.

    columns: whatever the dataset has of `vg.source`, `intervention` and
        `complementary_info.is_intervention`, each (frames,). place: names the file and row of a frame.
    Raises DataError, naming file, row and column: values that are neither 0 nor 1, a source that does not
    exist, or columns that contradict each other. Of `vg.source`, only the policy's steps contradict an
    intervention: a hold can be part of one, and a human who drives from the start takes over from nobody.
    """
    flags = {name: _flag(columns[name], name, place) for name in FLAGS if name in columns}
    if len(flags) == 2:
        differing = np.flatnonzero(flags[INTERVENTION] != flags[IS_INTERVENTION])
        if differing.size:
            at = int(differing[0])
            found = " and ".join(str(bool(flags[name][at])) for name in FLAGS)
            raise DataError(
                mismatch(
                    place(at),
                    f"columns '{INTERVENTION}' and '{IS_INTERVENTION}'",
                    "the same answer",
                    found,
                    "Remove the column that is wrong",
                )
            )
    if SOURCE in columns:
        return _checked_source(columns[SOURCE], flags, place)
    for human in flags.values():
        return np.where(human, SOURCES.index("human"), SOURCES.index("policy")).astype(np.int64)
    unmarked = "human" if PENALTY in features else "expert"
    return np.full(frames, SOURCES.index(unmarked), np.int64)


def _flag(column: Any, name: str, place: Callable[[int], str]) -> NDArray[np.bool_]:
    values = np.asarray(column)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(mismatch(place(at), f"column '{name}'", "0 or 1", values[at]))
    return values.astype(bool)


def _checked_source(
    column: Any, flags: dict[str, NDArray[np.bool_]], place: Callable[[int], str]
) -> NDArray[np.int64]:
    values = np.asarray(column)
    wrong = np.flatnonzero(~np.isin(values, np.arange(len(SOURCES))))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(mismatch(place(at), f"column '{SOURCE}'", f"0 … {len(SOURCES) - 1}", values[at]))
    for name, human in flags.items():
        both = np.flatnonzero(human & (values == SOURCES.index("policy")))
        if both.size:
            raise DataError(
                mismatch(
                    place(int(both[0])),
                    f"columns '{SOURCE}' and '{name}'",
                    "the same answer",
                    "policy and an intervention",
                    "Remove the column that is wrong",
                )
            )
    return values.astype(np.int64)
