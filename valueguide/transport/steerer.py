"""`RemoteSteerer`: what `steering.Steerer` is, with policy and critic on a server. Needs no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from valueguide.errors import ConfigError
from valueguide.transport.link import Answer, Pending, ServerLink
from valueguide.transport.messages import CALIBRATED, CriticFacts, DecideRequest, PolicyFacts
from valueguide.types import ActionChunk, Candidates, Decision, Float32, Observation


class Choosing(Protocol):
    """How to choose: `steering.SteeringConfig` has this shape."""

    @property
    def k(self) -> int: ...
    @property
    def beta(self) -> float: ...
    @property
    def execute(self) -> int: ...
    @property
    def aggregate(self) -> str: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def spread_limit(self) -> float | None: ...
    @property
    def shadow(self) -> bool: ...


@dataclass
class RemoteTiming:
    """Seconds of the last plan. policy_s, critic_s: on the server. total_s: here, with the network."""

    policy_s: float = 0.0
    critic_s: float = 0.0
    total_s: float = 0.0
    network_s: float = 0.0
    queue_s: float = 0.0


class RemoteSteerer:
    """Plans over a link. `policy` and `critic` are facts of what is in service, renewed with each answer.

    config: how to choose. guided: False for the policy alone.
    spread_limit: "calibrated" for that of the critic in service, "config" for the one in `config`.
    """

    def __init__(
        self,
        link: ServerLink,
        config: Choosing,
        *,
        guided: bool = True,
        spread_limit: Literal["calibrated", "config"] = CALIBRATED,
        connect_s: float = 10.0,
    ) -> None:
        """Waits for the server, connect_s at the longest. Raises LinkError when it does not answer."""
        welcome = link.connect(connect_s)
        self.link, self.config, self.guided = link, config, guided
        self.spread_limit = spread_limit
        self.policy: PolicyFacts = welcome.policy
        self.critic: CriticFacts | None = welcome.critic if guided else None
        self.timing = RemoteTiming()
        self.answer: Answer | None = None
        self._window: deque[Observation] = deque(maxlen=self.policy.history)
        self._chunks = 0

    def reset(self) -> None:
        """Start of an episode."""
        self._window.clear()
        self._chunks = 0

    def observe(self, observation: Observation) -> None:
        """One control step. Pictures that neither model looks at are not kept, and not sent."""
        cameras = set(self.policy.cameras) | set(self.critic.cameras if self.critic else ())
        extra = observation.environment_state
        # Drivers reuse their buffers, and what is asked is sent by another thread.
        kept = {name: image.copy() for name, image in observation.images.items() if name in cameras}
        self._window.append(
            replace(
                observation,
                images=kept,
                state=np.array(observation.state, np.float32),
                environment_state=None if extra is None else np.array(extra, np.float32),
            )
        )

    def ask(
        self,
        seed: int,
        *,
        committed: Float32 | None = None,
        absolute: bool = False,
        increments: Float32 | None = None,
        candidates: Candidates | None = None,
        timeout_s: float | None = None,
    ) -> Pending:
        """Begin a plan for the latest observation and go on with something else; `take` what comes of it.

        committed: float32 (D, A), actions that will have run before the chunk starts, put first in every
        candidate (see `execution.splice`, also for absolute and increments). candidates: proposed
        elsewhere, to be scored only.
        """
        if not self._window:
            raise ConfigError("steering: expected an observation since the last reset, found none")
        config = self.config
        request = DecideRequest(
            window=tuple(self._window),
            seed=seed,
            k=config.k,
            beta=config.beta,
            execute=config.execute,
            aggregate=config.aggregate,
            deadline_s=config.deadline_s,
            spread_limit=CALIBRATED if self.spread_limit == CALIBRATED else config.spread_limit,
            shadow=config.shadow,
            guided=self.guided,
            committed=committed if committed is not None and len(committed) else None,
            absolute=absolute,
            increments=increments if committed is not None and len(committed) else None,
            candidates=None if candidates is None else candidates.actions,
            want_candidates=candidates is None,
        )
        return self.link.ask(request, timeout_s)

    def take(self, pending: Pending) -> tuple[ActionChunk, Candidates, Decision]:
        """(chunk, candidates, decision) of a plan that was begun. Raises LinkError when the deadline passed
        without an answer, or the server refused."""
        answer = pending.result()
        reply, request = answer.reply, pending.request
        self._renew(answer)
        actions = reply.candidates.actions if reply.candidates else request.candidates
        chunk = ActionChunk(reply.actions, self._chunks, reply.executed_length, request.window[-1].stamp_ns)
        self._chunks += 1
        return chunk, Candidates(np.asarray(actions)), reply.decision

    def plan(
        self,
        seed: int,
        adapt: Callable[[Candidates], Candidates] | None = None,
        *,
        committed: Float32 | None = None,
        absolute: bool = False,
        increments: Float32 | None = None,
    ) -> tuple[ActionChunk, Candidates, Decision]:
        """As `Steerer.plan`, over the link. Raises LinkError: hold the arm and ask again.

        A function cannot be sent: pass `committed` and what `ask` has beside it instead of `adapt`.
        """
        if adapt is not None:
            raise ConfigError("remote steering: expected committed actions, found a function to adapt with")
        return self.take(self.ask(seed, committed=committed, absolute=absolute, increments=increments))

    def _renew(self, answer: Answer) -> None:
        reply = answer.reply
        self.answer = answer
        self.timing = RemoteTiming(
            reply.policy_s, reply.critic_s, answer.round_trip_s, answer.network_s, reply.queue_s
        )
        if reply.policy_version:
            self.policy = replace(self.policy, version=reply.policy_version)
        if self.critic is not None and reply.critic_version:
            self.critic = replace(self.critic, version=reply.critic_version)
