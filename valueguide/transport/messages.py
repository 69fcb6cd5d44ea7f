"""What robots ask and servers answer, as values, and their way into messages and out of them.

A request is complete in itself: it carries the last observations that the policy looks at. So a server may
die and another one answer the next request, and nothing that was lost on the way changes a decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.msgpack import Decoder
from numpy.typing import NDArray

from valueguide.errors import DataError, mismatch
from valueguide.transport.packing import Amount, Signed, Text, Whole, pack, unpack
from valueguide.transport.wire import DTYPES, Message
from valueguide.types import Candidates, Decision, Float32, Observation, Scores

#: Kinds of messages. A robot sends the first four, a server the others.
HELLO, DECIDE, PING, BYE = "hello", "decide", "ping", "bye"
WELCOME, DECISION, PONG, REFUSED = "welcome", "decision", "pong", "refused"
#: Most observations in a request, candidates, and steps of a chunk.
MAX_WINDOW, MAX_K, MAX_STEPS, MAX_CAMERAS = 8, 1024, 4096, 8
CALIBRATED: Literal["calibrated"] = "calibrated"
_KINDS = {dtype.name: dtype for dtype in DTYPES.values()}
_K = Annotated[int, Meta(ge=1, le=MAX_K)]
_Steps = Annotated[int, Meta(ge=1, le=MAX_STEPS)]
_Word = Annotated[str, Meta(max_length=64)]
_Dim = Annotated[int, Meta(ge=0, le=1 << 20)]
_Side = Annotated[int, Meta(ge=1, le=1 << 16)]


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

    version: Text
    action_dim: _Steps
    horizon: _Steps
    history: Annotated[int, Meta(ge=1, le=MAX_WINDOW)] = 1
    cameras: dict[str, tuple[_Side, _Side]] = field(default_factory=dict)
    state_dim: _Dim = 0
    needs_environment_state: bool = False


@dataclass(frozen=True)
class CriticFacts:
    """Of the critic in service. environment_state_dim: 0 when it needs none."""

    version: Text
    executed_length: _Steps
    cameras: dict[str, tuple[_Side, _Side]] = field(default_factory=dict)
    environment_state_dim: _Dim = 0


@dataclass(frozen=True)
class Welcome:
    """A server's answer to `hello`. server: a new word each time it starts."""

    server: _Word
    policy: PolicyFacts
    critic: CriticFacts | None = None


@dataclass(frozen=True)
class Hello:
    """The body of `hello`. name: for the server's log."""

    name: Text = ""


@dataclass(frozen=True)
class Refusal:
    """The body of `refused`. code: one of docs/wire.md's. text: why."""

    code: Text = ""
    text: Text = ""


# -- what goes over the wire -----------------------------------------------------------------------


class _Seen(Struct):
    """Of one observation, what is no array."""

    task: Text
    stamp_ns: Signed = 0


class _Decide(Struct, kw_only=True):
    """`DecideRequest` without its arrays, in the order of the wire."""

    seed: Whole
    k: _K = 16
    beta: Amount = 0.0
    execute: _Steps = 4
    aggregate: Annotated[str, Meta(max_length=32)] = "min"
    spread_limit: Amount | _Word | None = CALIBRATED
    shadow: bool = False
    guided: bool = True
    absolute: bool = False
    window: Annotated[list[_Seen], Meta(min_length=1, max_length=MAX_WINDOW)]
    want_candidates: bool = False
    deadline_s: Annotated[float, Meta(gt=0.0)] | UnsetType = UNSET


class _Decision(Struct, kw_only=True):
    """`DecideReply` without its arrays, in the order of the wire."""

    index: Annotated[int, Meta(ge=0, le=MAX_K - 1)]
    reason: _Word
    preferred: Annotated[int, Meta(ge=-1, le=MAX_K - 1)] = -1
    seed: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1
    latency_s: Amount = 0.0
    executed_length: _Steps
    policy_version: Text = ""
    critic_version: Text = ""
    policy_s: Amount = 0.0
    critic_s: Amount = 0.0
    queue_s: Amount = 0.0
    batch: Annotated[int, Meta(ge=1, le=1 << 16)] = 1


_decide, _decision = Decoder(_Decide), Decoder(_Decision)
_hello, _welcome, _refusal = Decoder(Hello), Decoder(Welcome), Decoder(Refusal)


def body_of(value: Hello | Welcome | Refusal) -> Raw:
    """Of a message that has no arrays."""
    return Raw(pack(value))


def read_hello(message: Message) -> Hello:
    """Raises DataError."""
    return unpack(_hello, message.body, "body")


def read_welcome(message: Message) -> Welcome:
    """Raises DataError."""
    return unpack(_welcome, message.body, "body")


def read_refusal(message: Message) -> Refusal:
    """Raises DataError."""
    return unpack(_refusal, message.body, "body")


def decide_message(request: DecideRequest) -> tuple[Raw, dict[str, Any]]:
    """(body, arrays) of a request. Raises DataError for a body that `read_decide` would refuse."""
    arrays: dict[str, Any] = {}
    for number, observation in enumerate(request.window):
        arrays[f"{number}/state"] = observation.state
        if observation.environment_state is not None:
            arrays[f"{number}/environment_state"] = observation.environment_state
        for camera, image in observation.images.items():
            arrays[f"{number}/images/{camera}"] = image
    if request.committed is not None:
        arrays["committed"] = request.committed
    if request.increments is not None:
        arrays["increments"] = request.increments
    if request.candidates is not None:
        arrays["candidates"] = request.candidates
    packed = pack(
        _Decide(
            seed=request.seed,
            k=request.k,
            beta=request.beta,
            execute=request.execute,
            aggregate=request.aggregate,
            spread_limit=request.spread_limit,
            shadow=request.shadow,
            guided=request.guided,
            absolute=request.absolute,
            window=[_Seen(observation.task, observation.stamp_ns) for observation in request.window],
            want_candidates=request.want_candidates,
            deadline_s=request.deadline_s if math.isfinite(request.deadline_s) else UNSET,
        )
    )
    _spread_limit(unpack(_decide, packed, "body"))
    return Raw(packed), arrays


def read_decide(message: Message) -> DecideRequest:
    """The request in a message. Raises DataError."""
    asked = unpack(_decide, message.body, "body")
    return DecideRequest(
        window=tuple(_read_observation(message, number, seen) for number, seen in enumerate(asked.window)),
        seed=asked.seed,
        k=asked.k,
        beta=asked.beta,
        execute=asked.execute,
        aggregate=asked.aggregate,
        deadline_s=math.inf if isinstance(asked.deadline_s, UnsetType) else asked.deadline_s,
        spread_limit=_spread_limit(asked),
        shadow=asked.shadow,
        guided=asked.guided,
        committed=_array(message, "committed", "float32", 2),
        absolute=asked.absolute,
        increments=_array(message, "increments", "float32", 2),
        candidates=_read_candidates(message),
        want_candidates=asked.want_candidates,
    )


def _spread_limit(asked: _Decide) -> float | Literal["calibrated"] | None:
    limit = asked.spread_limit
    if not isinstance(limit, str):
        return limit
    if limit != CALIBRATED:
        expected = f"a number of at least 0, {CALIBRATED!r} or nil"
        raise DataError(mismatch("message", "spread_limit", expected, repr(limit)))
    return CALIBRATED


def _array(message: Message, name: str, kind: str, dimensions: int) -> NDArray[Any] | None:
    """An array by name, None when there is none. kind: of its numbers, a numpy dtype's name."""
    found = message.arrays.get(name)
    # Compared as dtypes: to name one takes numpy longer than all else here.
    if found is not None and (found.dtype != _KINDS[kind] or found.ndim != dimensions):
        have = f"{found.dtype.name} {found.shape}"
        raise DataError(mismatch("message", f"array {name!r}", f"{kind}, {dimensions} dimensions", have))
    return found


def _needed(message: Message, name: str, kind: str, dimensions: int) -> NDArray[Any]:
    found = _array(message, name, kind, dimensions)
    if found is None:
        raise DataError(mismatch("message", f"array {name!r}", f"{kind} numbers", "none"))
    return found


def _read_candidates(message: Message) -> Float32 | None:
    found = _array(message, "candidates", "float32", 3)
    if found is not None and not 1 <= len(found) <= MAX_K:
        raise DataError(mismatch("message", "candidates", f"1 to {MAX_K}", len(found)))
    return found


def _read_observation(message: Message, number: int, seen: _Seen) -> Observation:
    prefix = f"{number}/images/"
    cameras = [name for name in message.arrays if name.startswith(prefix)]
    if len(cameras) > MAX_CAMERAS:
        raise DataError(mismatch("message", "cameras", f"at most {MAX_CAMERAS}", len(cameras)))
    return Observation(
        images={name.removeprefix(prefix): _needed(message, name, "uint8", 3) for name in cameras},
        state=_needed(message, f"{number}/state", "float32", 1),
        task=seen.task,
        stamp_ns=seen.stamp_ns,
        environment_state=_array(message, f"{number}/environment_state", "float32", 1),
    )


def decision_message(reply: DecideReply) -> tuple[Raw, dict[str, Any]]:
    """(body, arrays) of an answer."""
    decision = reply.decision
    arrays: dict[str, Any] = {"actions": reply.actions}
    if decision.values is not None:
        arrays["values"] = decision.values
    if decision.scores is not None:
        arrays["q"] = decision.scores.q
    if reply.candidates is not None:
        arrays["candidates"] = reply.candidates.actions
    told = _Decision(
        index=decision.index,
        reason=decision.reason,
        preferred=decision.preferred,
        seed=decision.seed,
        latency_s=decision.latency_s,
        executed_length=reply.executed_length,
        policy_version=reply.policy_version,
        critic_version=reply.critic_version,
        policy_s=reply.policy_s,
        critic_s=reply.critic_s,
        queue_s=reply.queue_s,
        batch=reply.batch,
    )
    return Raw(pack(told)), arrays


def read_decision(message: Message) -> DecideReply:
    """The answer in a message. Raises DataError, also for actions that are not finite numbers."""
    told = unpack(_decision, message.body, "body")
    actions = _needed(message, "actions", "float32", 2)
    length = told.executed_length
    if length > len(actions):
        raise DataError(mismatch("message", "executed_length", f"at most {len(actions)}", length))
    if not np.isfinite(actions[:length]).all():
        raise DataError(mismatch("message", "actions", "finite numbers", "NaN or infinity"))
    q = _array(message, "q", "float32", 2)
    candidates = _read_candidates(message)
    return DecideReply(
        actions=actions,
        decision=Decision(
            index=told.index,
            reason=told.reason,
            preferred=told.preferred,
            values=_array(message, "values", "float32", 1),
            scores=None if q is None else Scores(q),
            seed=told.seed,
            latency_s=told.latency_s,
        ),
        executed_length=length,
        policy_version=told.policy_version,
        critic_version=told.critic_version,
        candidates=None if candidates is None else Candidates(candidates),
        policy_s=told.policy_s,
        critic_s=told.critic_s,
        queue_s=told.queue_s,
        batch=told.batch,
    )
