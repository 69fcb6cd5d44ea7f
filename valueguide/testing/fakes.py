"""Small stand-ins that keep the contracts: a clock, policies, critics (also failing ones), a 1-D world.

Everything is exact and seeded, so that tests can compute by hand what must happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valueguide.errors import DataError
from valueguide.types import Candidates, Float32, Observation, Scores


class FakeClock:
    """A clock that moves only when told to. Call it to read seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakePolicy:
    """Moves towards the goal of `FakeReachEnv` with an error: state [position, goal], action [dx].

    Candidate i is one constant step, off by a draw that depends on the seed and i only.
    `observed` lists the observations since the last reset; `sampled` lists (k, seed).
    """

    version = "fake-policy"

    def __init__(
        self,
        horizon: int = 4,
        action_dim: int = 1,
        history: int = 1,
        noise: float = 0.08,
        clock: FakeClock | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.horizon, self.action_dim, self.history = horizon, action_dim, history
        self._noise, self._clock, self._takes_s = noise, clock, takes_s
        self.observed: list[Observation] = []
        self.sampled: list[tuple[int, int]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1
        self.observed = []

    def observe(self, observation: Observation) -> None:
        self.observed.append(observation)

    def sample(self, k: int, seed: int) -> Candidates:
        self.sampled.append((k, seed))
        if self._clock is not None:
            self._clock.advance(self._takes_s)
        position, goal = self.observed[-1].state[:2]
        wanted = np.clip(goal - position, -0.1, 0.1)
        error = self._noise * np.random.default_rng(seed).standard_normal((k, 1, self.action_dim))
        return Candidates(np.repeat(wanted + error, self.horizon, axis=1).astype(np.float32))


class FakeProposer:
    """`FakePolicy` for many states at once: a row depends on its observation and its seed only.

    `asked` lists the seeds of each call. `version` may be set: the chunks then shift by its length, so that
    those of another version can be told apart.
    """

    def __init__(self, horizon: int = 4, action_dim: int = 1, version: str = "fake-1") -> None:
        self.horizon, self.action_dim, self.version = horizon, action_dim, version
        self.asked: list[list[int]] = []

    def propose(self, observations: Sequence[Observation], k: int, seeds: NDArray[np.int64]) -> Float32:
        self.asked.append(seeds.tolist())
        shape = (k, self.horizon, self.action_dim)
        rows = [
            observation.state[0] + len(self.version) + np.random.default_rng(int(seed)).normal(size=shape)
            for observation, seed in zip(observations, seeds, strict=True)
        ]
        return np.stack(rows).astype(np.float32)


class FakeCritic:
    """Minus the distance to the goal after the chunk, one row per member, each a little lower.

    `encoded` counts calls of `encode`; `scored` lists the action arrays.
    """

    version = "fake-critic"
    spread_limit: float | None = None

    def __init__(
        self,
        executed_length: int = 4,
        action_dim: int = 1,
        members: int = 2,
        disagreement: float = 0.01,
        clock: FakeClock | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.executed_length, self.action_dim = executed_length, action_dim
        self._members, self._disagreement = members, disagreement
        self._clock, self._takes_s = clock, takes_s
        self.encoded = 0
        self.scored: list[Float32] = []

    def encode(self, observation: Observation) -> Observation:
        self.encoded += 1
        return observation

    def score(self, features: Observation, actions: Float32) -> Scores:
        self.scored.append(actions)
        if self._clock is not None:
            self._clock.advance(self._takes_s)
        position, goal = features.state[:2]
        end = position + actions[:, : self.executed_length, 0].sum(axis=1)
        lower = self._disagreement * np.arange(self._members)[:, None]
        return Scores((-np.abs(end - goal)[None] - lower).astype(np.float32))


class FakeBatchCritic(FakeCritic):
    """The same for many observations at once; `batches` lists (B, K) of each call."""

    version = "fake-batch-critic"

    def __init__(self, executed_length: int = 4) -> None:
        super().__init__(executed_length)
        self.batches: list[tuple[int, int]] = []

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        self.batches.append((actions.shape[0], actions.shape[1]))
        return np.stack([self.score(o, a).q for o, a in zip(observations, actions, strict=True)], axis=1)


class FakeLinearCritic:
    """q = shift + by_state * state[0] + by_action * (first number of the chunk), less `disagreement` for each
    further of two members. spread_limit: above which it says it should not be trusted."""

    def __init__(
        self,
        version: str = "linear",
        shift: float = 0.0,
        by_state: float = 1.0,
        by_action: float = 1.0,
        disagreement: float = 0.0,
        spread_limit: float | None = None,
    ) -> None:
        self.version, self.spread_limit = version, spread_limit
        self._shift, self._by_state, self._by_action = shift, by_state, by_action
        self._disagreement = disagreement

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        states = np.array([o.state[0] for o in observations])[:, None]
        q = self._shift + self._by_state * states + self._by_action * actions[:, :, 0, 0]
        return np.stack([q, q - self._disagreement]).astype(np.float32)


class FakeNanCritic(FakeCritic):
    """One member's score of the last candidate is NaN."""

    def score(self, features: Observation, actions: Float32) -> Scores:
        q = super().score(features, actions).q
        q[-1, -1] = np.nan
        return Scores(q)


class FakeRaisingCritic(FakeCritic):
    """Refuses every observation, as a critic does with an instruction that it does not know."""

    def encode(self, observation: Observation) -> Observation:
        raise DataError(f"fake critic: expected a known instruction, found {observation.task!r}")


@dataclass
class FakeReachEnv:
    """A point on a line that has to come within 0.05 of a goal. gymnasium's API, no dependency.

    Success terminates, so does leaving [-2, 2] (failure "out_of_reach"); `max_steps` truncates. One
    camera "front" of 8 x 8 pixels; `rendered` counts its pictures. `fail` is called with each action
    first, for tests that want trouble.
    """

    max_steps: int = 20
    task: str = "reach"
    fail: Callable[[Float32], None] = lambda action: None
    rendered: int = 0
    held: int = 0
    seeds: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metadata = {"render_fps": 10}
        self.action_space = SimpleNamespace(
            low=np.full(1, -0.1, np.float32), high=np.full(1, 0.1, np.float32)
        )
        self._position = self._goal = 0.0
        self._steps, self._render = 0, True

    @property
    def unwrapped(self) -> FakeReachEnv:
        return self

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        rng = np.random.default_rng(seed)
        self._position = float(rng.uniform(-0.5, 0.5))
        self._goal = self._position + float(rng.choice([-0.5, 0.5]))
        self._steps = 0
        return self.observe(), self._info("")

    def step(self, action: Float32) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.fail(action)
        self._position += float(action[0])
        self._steps += 1
        failure = "out_of_reach" if abs(self._position) > 2 else ""
        terminated = self._succeeded() or bool(failure)
        truncated = not terminated and self._steps >= self.max_steps
        return self.observe(), float(self._succeeded()), terminated, truncated, self._info(failure)

    def hold(self) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Stays where it is while one step passes, which no limit counts."""
        self.held += 1
        return self.observe(), float(self._succeeded()), self._succeeded(), False, self._info("")

    def _succeeded(self) -> bool:
        return abs(self._position - self._goal) < 0.05

    def _info(self, failure: str) -> dict[str, Any]:
        return {
            "is_success": self._succeeded(),
            "failure": failure,
            "task_description": f"{self.task} the goal",
            "progress": max(0.0, 1.0 - 2.0 * abs(self._position - self._goal)),
        }

    def set_render(self, on: bool) -> None:
        self._render = on

    def observe(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"agent_pos": np.array([self._position, self._goal], np.float32)}
        if self._render:
            raw["pixels"] = self.pictures()
        return raw

    def pictures(self) -> dict[str, Any]:
        """The point's position as brightness."""
        self.rendered += 1
        level = int(np.clip(128 + 60 * self._position, 0, 255))
        return {"front": np.full((8, 8, 3), level, np.uint8)}

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class FakeSuite:
    """Two tasks of `FakeReachEnv`; see `valueguide.evaluation.suite.Suite`."""

    name: str = "fake"
    tasks: tuple[str, ...] = ("reach", "touch")
    fps: int = 10
    max_steps: int = 20
    action_names: tuple[str, ...] = ("dx",)
    state_names: tuple[str, ...] = ("position", "goal")
    environment_state_names: tuple[str, ...] = ()

    @property
    def action_low(self) -> Float32:
        return np.full(1, -0.1, np.float32)

    @property
    def action_high(self) -> Float32:
        return np.full(1, 0.1, np.float32)

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        return {"front": (8, 8)}

    def make(self, task: str, wording: str = "train", visuals: str = "train") -> FakeReachEnv:
        return FakeReachEnv(self.max_steps, task)
