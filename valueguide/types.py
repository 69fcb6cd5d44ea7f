"""The values that cross package borders. Plain numpy, no torch, no ROS.

Units: everything here is physical and unnormalised: metres, radians, gripper 0 closed … 1 open,
float32. Shapes use K candidates, H planned steps, E executed steps (E <= H), A action
dimensions, S state dimensions, M ensemble members.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Source = Literal["policy", "human", "expert", "hold"]
SOURCES: tuple[Source, ...] = ("policy", "human", "expert", "hold")


@dataclass(frozen=True)
class Observation:
    """What the robot knows at one instant.

    images: camera name -> uint8 (height, width, 3), RGB. May be empty (state-only suites).
    state: float32 (S,), proprioception.
    task: the instruction in natural language.
    stamp_ns: source time of the oldest part.
    environment_state: float32 (N,), privileged simulator state, or None on images-only suites.
    """

    images: dict[str, UInt8]
    state: Float32
    task: str
    stamp_ns: int = 0
    environment_state: Float32 | None = None


@dataclass(frozen=True)
class Candidates:
    """K action chunks proposed for one observation.

    actions: float32 (K, H, A). Candidate 0 is what the policy alone would have done.
    """

    actions: Float32

    @property
    def k(self) -> int:
        return int(self.actions.shape[0])


@dataclass(frozen=True)
class Scores:
    """q: float32 (M, K), one row per ensemble member, from the target network."""

    q: Float32


@dataclass(frozen=True)
class Decision:
    """Which candidate runs, and why.

    index: the candidate executed.
    reason: "argmax", "softmax", "shadow", or why candidate 0 was taken instead
        ("deadline", "non_finite", "all_equal", "spread", "no_critic").
    preferred: the index the critic preferred (differs from `index` in shadow mode and on
        fallback); -1 when there was no usable score.
    values: float32 (K,), the aggregated score of each candidate, or None without a score.
    scores: the per-member scores, or None.
    seed: seed of the softmax draw, -1 when nothing was drawn.
    latency_s: seconds from the start of sampling to the decision.
    """

    index: int
    reason: str
    preferred: int = -1
    values: Float32 | None = None
    scores: Scores | None = None
    seed: int = -1
    latency_s: float = 0.0


@dataclass(frozen=True)
class ActionChunk:
    """The chosen plan. actions: float32 (H, A); only the first `executed_length` are meant to run."""

    actions: Float32
    chunk_id: int
    executed_length: int
    stamp_ns: int = 0


@dataclass
class Step:
    """One control step as it is logged; see docs/data.md for the column names.

    action: float32 (A,), what was sent to the motors.
    planned_chunk: float32 (H, A), the plan this step belongs to; chunk_step counts from 0 in it.
    executed_length: how many steps of the chunk were in fact executed (known at the chunk's end).
    candidates, decision: present only on the first step of a chunk (a replan).
    """

    observation: Observation
    action: Float32
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    source: Source = "policy"
    intervention: bool = False
    chunk_id: int = -1
    chunk_step: int = 0
    executed_length: int = 1
    planned_chunk: Float32 | None = None
    policy_version: str = ""
    critic_version: str = ""
    candidates: Candidates | None = None
    decision: Decision | None = None


@dataclass
class Episode:
    """Steps in order plus the observation after the last action (the true last successor).

    metadata: JSON-serialisable facts (seed, suite, task name, skill, true progress, ...).
    """

    steps: list[Step]
    final_observation: Observation
    task: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return bool(self.steps) and self.steps[-1].success


@dataclass(frozen=True)
class Progress:
    """Estimated task progress. value in [0, 1] or NaN when missing; age in seconds."""

    value: float
    age_s: float = 0.0
    confidence: float = 0.0
    status: str = "ok"


@dataclass(frozen=True)
class ChunkBatch:
    """B chunk transitions for critic training: from the state before a chunk to its true successor.

    images, next_images: camera -> uint8 (B, height, width, 3); empty when features or states serve.
    state, next_state: float32 (B, S).
    environment_state, next_environment_state: float32 (B, N) or None.
    features, next_features: float32 (B, F), cached output of a frozen vision encoder, or None.
    instruction: int64 (B,), index into the loader's `instructions` list.
    actions: float32 (B, E, A), physical; steps where `valid` is False are zero and must be masked.
    valid: bool (B, E), a prefix of True of length n: the steps that belong to this transition
        (n < E when the episode or the executed part ended earlier). A plan that a terminal state cut short
        may be given whole, all of it valid.
    reward: float32 (B,), sum over k < n of gamma^k r_k.
    discount: float32 (B,), gamma^n, or 0 where the transition ends in a terminal state.
    mc_return: float32 (B,), discounted return to go, -inf where it is unknown.
    index: int64 (B,), global frame index of the first step.
    next_index: int64 (B,), the id of the state after the chunk, or None where the source does not say.
    """

    state: Float32
    next_state: Float32
    instruction: NDArray[np.int64]
    actions: Float32
    valid: NDArray[np.bool_]
    reward: Float32
    discount: Float32
    mc_return: Float32
    index: NDArray[np.int64]
    images: dict[str, UInt8] = field(default_factory=dict)
    next_images: dict[str, UInt8] = field(default_factory=dict)
    environment_state: Float32 | None = None
    next_environment_state: Float32 | None = None
    features: Float32 | None = None
    next_features: Float32 | None = None
    next_index: NDArray[np.int64] | None = None
