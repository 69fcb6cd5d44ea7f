"""Scores candidates once more, by the version in shadow, for `shadow_decision`, which never runs.

In a thread of its own at low priority, after the decision was published. A version that fails is dropped.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from valueguide_msgs.msg import Decision

from valueguide.steering.steer import SteeringConfig, rerank
from valueguide.types import Candidates, Observation
from valueguide_nodes import convert
from valueguide_nodes.base import RELIABLE, VgNode
from valueguide_nodes.critic_slot import CriticSlot, lower_priority

#: Decisions that may wait; beyond, the newest goes unscored.
_WAITING = 8


@dataclass(frozen=True)
class Decided:
    """What a decision was made from. chunk_id: what came of it. started: when, `time.monotonic` seconds."""

    proposal: Any
    observation: Observation
    candidates: Candidates
    config: SteeringConfig
    seed: int
    chunk_id: int
    started: float


class ShadowScorer:
    """Scores what `submit` gives it by the version that is in shadow in `slot`."""

    def __init__(self, node: VgNode, slot: CriticSlot) -> None:
        self._node, self._slot = node, slot
        self.scored, self.missed = 0, 0
        self._out = node.create_publisher(Decision, "shadow_decision", RELIABLE)
        self._waiting: queue.Queue[Decided | None] = queue.Queue(_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="shadow")
        self._thread.start()

    def submit(self, decided: Decided) -> None:
        """Never waits; nothing without a version in shadow."""
        if self._slot.beside is None or self._closed.is_set():
            return
        try:
            self._waiting.put_nowait(decided)
        except queue.Full:
            self.missed += 1

    def status(self) -> dict[str, Any]:
        """For diagnostics; nothing where nothing has been in shadow."""
        if not self.scored and not self.missed:
            return {}
        return {"shadow_decisions": self.scored, "shadow_missed": self.missed}

    def close(self) -> None:
        """Returns after 2 s at most, also in the middle of scoring."""
        self._closed.set()
        with contextlib.suppress(queue.Full):  # when it is, the thread looks at `_closed` next
            self._waiting.put_nowait(None)
        self._thread.join(timeout=2.0)

    def _loop(self) -> None:
        lower_priority()
        while not self._closed.is_set():
            decided, held = self._waiting.get(), self._slot.beside
            if decided is None or held is None:
                continue
            try:
                message = self._score(decided, held.content)
                if not self._closed.is_set():
                    self._out.publish(message)
                    self.scored += 1
            except Exception as error:  # nothing that a version in shadow does may disturb decisions
                self._slot.refuse_shadow(held, f"{type(error).__name__}: {error}")

    def _score(self, decided: Decided, critic: Any) -> Decision:
        """What the critic would have chosen, without a deadline."""
        started = time.monotonic()
        candidates, limit = decided.candidates, critic.spread_limit
        config = replace(decided.config, k=candidates.k, spread_limit=limit, deadline_s=float("inf"))
        clock = time.monotonic
        decision = rerank(critic, decided.observation, candidates, config, decided.seed, started, clock)
        now = time.monotonic()
        return convert.decision_message(
            decided.proposal, decision, decided.chunk_id, now - started, now - decided.started, critic.version
        )
