"""What robots ask and servers answer, as values, and their way into messages and out of them.

A request is complete in itself: it carries the last observations that the policy looks at. So a server may
die and another one answer the next request, and nothing that was lost on the way changes a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from valueguide.errors import DataError, mismatch
from valueguide.transport.fields import array, flag, group, items, real, text, whole
from valueguide.transport.wire import Message
from valueguide.types import Candidates, Decision, Float32, Observation, Scores

#: Kinds of messages. A robot sends the first four, a server the others.
HELLO, DECIDE, PING, BYE = "hello", "decide", "ping", "bye"
WELCOME, DECISION, PONG, REFUSED = "welcome", "decision", "pong", "refused"
#: Most observations in a request, candidates, and steps of a chunk.
MAX_WINDOW, MAX_K, MAX_STEPS, MAX_CAMERAS = 8, 1024, 4096, 8
CALIBRATED: Literal["calibrated"] = "calibrated"
_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class DecideRequest:
    """One decision wanted.

    window: the last observations, oldest first. seed: of the policy's noise and of draws.
    k, beta, execute, aggregate, deadline_s, shadow: as in `steering.SteeringConfig`; deadline_s counts from
    when the request came to the server. guided: False for the policy alone, without a critic.
    spread_limit: as there, or "calibrated" for the one that the critic in service was published with.
    committed: float32 (D, A), actions that will have run before the chunk starts; they replace the first D
    steps of each candidate. absolute: actions are positions, so that candidates are moved to where those end.
    increments: float32 (2, A), limits of what adds up, so that candidates catch up; see `execution.splice`.
    candidates: float32 (K, H, A), proposed elsewhere: only score and choose.
    want_candidates: send all K back.
    """

    window: tuple[Observation, ...]
    seed: int
    k: int = 16
    beta: float = 0.0
    execute: int = 4
    aggregate: str = "min"
    deadline_s: float = math.inf
    spread_limit: float | Literal["calibrated"] | None = CALIBRATED
    shadow: bool = False
    guided: bool = True
    committed: Float32 | None = None
    absolute: bool = False
    increments: Float32 | None = None
    candidates: Float32 | None = None
    want_candidates: bool = False


@dataclass(frozen=True)
class DecideReply:
    """What was decided. actions: float32 (H, A), the chunk to run: its first `executed_length` steps.

    candidates: all K, if asked for. policy_s, critic_s: seconds in the models, for the whole batch.
    queue_s: from the request's arrival to when the models began. batch: requests answered in one pass.
    """

    actions: Float32
    decision: Decision
    executed_length: int
    policy_version: str = ""
    critic_version: str = ""
    candidates: Candidates | None = None
    policy_s: float = 0.0
    critic_s: float = 0.0
    queue_s: float = 0.0
    batch: int = 1


@dataclass(frozen=True)
class PolicyFacts:
    """Of the policy in service. cameras: name -> (height, width)."""

    version: str
    action_dim: int
    horizon: int
    history: int = 1
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    state_dim: int = 0
    needs_environment_state: bool = False


@dataclass(frozen=True)
class CriticFacts:
    """Of the critic in service. environment_state_dim: 0 when it needs none."""

    version: str
    executed_length: int
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    environment_state_dim: int = 0


@dataclass(frozen=True)
class Welcome:
    """A server's answer to `hello`. server: a new word each time it starts."""

    server: str
    policy: PolicyFacts
    critic: CriticFacts | None


def decide_message(request: DecideRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """(body, arrays) of a request."""
    arrays: dict[str, Any] = {}
    window = []
    for number, observation in enumerate(request.window):
        arrays[f"{number}/state"] = observation.state
        if observation.environment_state is not None:
            arrays[f"{number}/environment_state"] = observation.environment_state
        for camera, image in observation.images.items():
            arrays[f"{number}/images/{camera}"] = image
        window.append({"task": observation.task, "stamp_ns": observation.stamp_ns})
    if request.committed is not None:
        arrays["committed"] = request.committed
    if request.increments is not None:
        arrays["increments"] = request.increments
    if request.candidates is not None:
        arrays["candidates"] = request.candidates
    body = {
        "seed": request.seed,
        "k": request.k,
        "beta": request.beta,
        "execute": request.execute,
        "aggregate": request.aggregate,
        "spread_limit": request.spread_limit,
        "shadow": request.shadow,
        "guided": request.guided,
        "absolute": request.absolute,
        "window": window,
        "want_candidates": request.want_candidates,
    }
    if math.isfinite(request.deadline_s):
        body["deadline_s"] = request.deadline_s
    return body, arrays


def read_decide(message: Message) -> DecideRequest:
    """The request in a message. Raises DataError."""
    body = message.body
    entries = items(body, "window", MAX_WINDOW)
    if not entries:
        raise DataError(mismatch("message", "window", "1 or more observations", "none"))
    limit = body.get("spread_limit", CALIBRATED)
    if limit not in (None, CALIBRATED):
        limit = real(body, "spread_limit", low=0.0)
    deadline_s = real(body, "deadline_s", math.inf)
    if not deadline_s > 0:
        raise DataError(mismatch("message", "deadline_s", "more than 0 seconds", deadline_s))
    return DecideRequest(
        window=tuple(_read_observation(message, number, entry) for number, entry in enumerate(entries)),
        seed=whole(body, "seed", 0, _SEED),
        k=whole(body, "k", 1, MAX_K, 16),
        beta=real(body, "beta", 0.0, 0.0),
        execute=whole(body, "execute", 1, MAX_STEPS, 4),
        aggregate=text(body, "aggregate", "min", longest=32),
        deadline_s=deadline_s,
        spread_limit=limit,
        shadow=flag(body, "shadow"),
        guided=flag(body, "guided", True),
        committed=array(message, "committed", "float32", 2, needed=False),
        absolute=flag(body, "absolute"),
        increments=array(message, "increments", "float32", 2, needed=False),
        candidates=_read_candidates(message),
        want_candidates=flag(body, "want_candidates"),
    )


def _read_candidates(message: Message) -> Float32 | None:
    found = array(message, "candidates", "float32", 3, needed=False)
    if found is not None and not 1 <= len(found) <= MAX_K:
        raise DataError(mismatch("message", "candidates", f"1 to {MAX_K}", len(found)))
    return found


def _read_observation(message: Message, number: int, entry: Any) -> Observation:
    if not isinstance(entry, dict):
        raise DataError(mismatch("message", "window", "maps", type(entry).__name__))
    prefix = f"{number}/images/"
    cameras = [name for name in message.arrays if name.startswith(prefix)]
    if len(cameras) > MAX_CAMERAS:
        raise DataError(mismatch("message", "cameras", f"at most {MAX_CAMERAS}", len(cameras)))
    images = {name.removeprefix(prefix): array(message, name, "uint8", 3) for name in cameras}
    return Observation(
        images={name: image for name, image in images.items() if image is not None},
        state=np.asarray(array(message, f"{number}/state", "float32", 1)),
        task=text(entry, "task"),
        stamp_ns=whole(entry, "stamp_ns", -(1 << 63), (1 << 63) - 1, 0),
        environment_state=array(message, f"{number}/environment_state", "float32", 1, needed=False),
    )


def decision_message(reply: DecideReply) -> tuple[dict[str, Any], dict[str, Any]]:
    """(body, arrays) of an answer."""
    decision = reply.decision
    arrays: dict[str, Any] = {"actions": reply.actions}
    if decision.values is not None:
        arrays["values"] = decision.values
    if decision.scores is not None:
        arrays["q"] = decision.scores.q
    if reply.candidates is not None:
        arrays["candidates"] = reply.candidates.actions
    body = {
        "index": decision.index,
        "reason": decision.reason,
        "preferred": decision.preferred,
        "seed": decision.seed,
        "latency_s": decision.latency_s,
        "executed_length": reply.executed_length,
        "policy_version": reply.policy_version,
        "critic_version": reply.critic_version,
        "policy_s": reply.policy_s,
        "critic_s": reply.critic_s,
        "queue_s": reply.queue_s,
        "batch": reply.batch,
    }
    return body, arrays


def read_decision(message: Message) -> DecideReply:
    """The answer in a message. Raises DataError, also for actions that are not finite numbers."""
    body = message.body
    actions = np.asarray(array(message, "actions", "float32", 2))
    length = whole(body, "executed_length", 1, len(actions))
    if not np.isfinite(actions[:length]).all():
        raise DataError(mismatch("message", "actions", "finite numbers", "NaN or infinity"))
    q = array(message, "q", "float32", 2, needed=False)
    candidates = _read_candidates(message)
    return DecideReply(
        actions=actions,
        decision=Decision(
            index=whole(body, "index", 0, MAX_K - 1),
            reason=text(body, "reason", longest=64),
            preferred=whole(body, "preferred", -1, MAX_K - 1, -1),
            values=array(message, "values", "float32", 1, needed=False),
            scores=None if q is None else Scores(q),
            seed=whole(body, "seed", -1, _SEED, -1),
            latency_s=real(body, "latency_s", 0.0, 0.0),
        ),
        executed_length=length,
        policy_version=text(body, "policy_version", ""),
        critic_version=text(body, "critic_version", ""),
        candidates=None if candidates is None else Candidates(candidates),
        policy_s=real(body, "policy_s", 0.0, 0.0),
        critic_s=real(body, "critic_s", 0.0, 0.0),
        queue_s=real(body, "queue_s", 0.0, 0.0),
        batch=whole(body, "batch", 1, 1 << 16, 1),
    )


def welcome_body(welcome: Welcome) -> dict[str, Any]:
    """The body of a `welcome`."""
    critic = welcome.critic
    return {
        "server": welcome.server,
        "policy": _with_cameras(welcome.policy),
        "critic": None if critic is None else _with_cameras(critic),
    }


def _with_cameras(facts: PolicyFacts | CriticFacts) -> dict[str, Any]:
    return vars(facts) | {"cameras": {name: list(size) for name, size in facts.cameras.items()}}


def read_welcome(message: Message) -> Welcome:
    """Raises DataError."""
    policy = group(message.body, "policy")
    return Welcome(
        server=text(message.body, "server", longest=64),
        policy=PolicyFacts(
            version=text(policy, "version"),
            action_dim=whole(policy, "action_dim", 1, MAX_STEPS),
            horizon=whole(policy, "horizon", 1, MAX_STEPS),
            history=whole(policy, "history", 1, MAX_WINDOW, 1),
            cameras=_read_cameras(policy),
            state_dim=whole(policy, "state_dim", 0, 1 << 20, 0),
            needs_environment_state=flag(policy, "needs_environment_state"),
        ),
        critic=None if message.body.get("critic") is None else _read_critic(group(message.body, "critic")),
    )


def _read_critic(critic: dict[str, Any]) -> CriticFacts:
    return CriticFacts(
        version=text(critic, "version"),
        executed_length=whole(critic, "executed_length", 1, MAX_STEPS),
        cameras=_read_cameras(critic),
        environment_state_dim=whole(critic, "environment_state_dim", 0, 1 << 20, 0),
    )


def _read_cameras(body: dict[str, Any]) -> dict[str, tuple[int, int]]:
    found = group(body, "cameras")
    cameras = {}
    for name, size in found.items():
        if not isinstance(size, list) or len(size) != 2:
            raise DataError(mismatch("message", f"camera {name!r}", "height and width", repr(size)[:40]))
        height, width = (whole({"size": side}, "size", 1, 1 << 16) for side in size)
        cameras[name] = height, width
    return cameras
