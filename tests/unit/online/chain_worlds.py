"""Chains with exactly known values of chunks, and episodes of policies and people that act on them.

The goal lies right of the last state. Steps cost 1, but nothing from the one that reaches the goal on; the
pit is worth -1 / (1 - gamma), as is never arriving. These are the rewards of `sparse_labels`, so the solved
values are what its labels mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from valueguide.types import Episode, Observation, Source, Step

GAMMA, STEPS = 0.95, 3
#: The default `success_steps` of the labels: an episode ends when the goal was held for as many steps.
HELD = 3
NEVER = -1.0 / (1.0 - GAMMA)
TASK = "reach the goal"
#: All chunks of E steps, (8, 3), and all of 1 to E, as tuples.
WHOLE = np.array(list(product((-1.0, 1.0), repeat=STEPS)), np.float32)
EVERY = [chunk for n in range(1, STEPS + 1) for chunk in product((-1.0, 1.0), repeat=n)]


def code(chunk) -> int:
    """As `chunk_codes`: 1, then a binary digit a step."""
    value = 1
    for action in chunk:
        value = 2 * value + (action > 0)
    return value


@dataclass(frozen=True)
class Chain:
    """States 0 to length - 1, then the goal, then the pit. With probability `slip` a step goes the other way.

    Left of state 0 is the pit, or else a wall.
    """

    length: int = 5
    slip: float = 0.0
    pit: bool = False

    @property
    def states(self) -> int:
        return self.length + 2

    @property
    def goal(self) -> int:
        return self.length

    @property
    def hole(self) -> int:
        return self.length + 1

    def after(self, position: int, direction: float) -> int:
        if position >= self.length:
            return position
        following = position + (1 if direction > 0 else -1)
        return following if following >= 0 else self.hole if self.pit else 0

    def outcome(self, start: int, chunk) -> tuple[float, np.ndarray]:
        """Expected discounted reward of the chunk, and gamma^n P(state after it), (states,), 0 at ends."""
        reward, at = 0.0, np.zeros(self.states)
        at[start] = 1.0
        for k, action in enumerate(chunk):
            following = np.zeros(self.states)
            for state in np.flatnonzero(at[: self.length]):
                for chance, direction in ((1 - self.slip, action), (self.slip, -action)):
                    mass, then = at[state] * chance, self.after(int(state), direction)
                    reward += GAMMA**k * mass * {self.goal: 0.0, self.hole: NEVER}.get(then, -1.0)
                    following[then] += mass
            following[self.length :] = 0.0
            at = following
        return reward, GAMMA ** len(chunk) * at

    def true_q(self, plans: np.ndarray, best: bool = False) -> np.ndarray:
        """Q of every state and `code`, (states, 2^(E+1)), NaN where there is no chunk.

        plans: (states, P, E), equally likely; best: the policy runs the one of highest value instead.
        """
        live = range(self.length)
        made = {(s, tuple(c)): self.outcome(s, c) for s in live for c in [*EVERY, *WHOLE.tolist()]}
        value = np.zeros(self.states)
        for _ in range(400 if best else 1):
            if best:
                q = [[r + t @ value for r, t in (made[s, tuple(c)] for c in plans[s].tolist())] for s in live]
                value[: self.length] = np.max(q, axis=1)
                continue
            mean = [[made[s, tuple(c)] for c in plans[s].tolist()] for s in live]
            reward = [np.mean([r for r, _ in row]) for row in mean]
            moves = np.array([np.mean([t for _, t in row], axis=0) for row in mean])[:, : self.length]
            value[: self.length] = np.linalg.solve(np.eye(self.length) - moves, reward)
        q = np.full((self.states, 2 ** (STEPS + 1)), np.nan)
        for (s, chunk), (reward, to) in made.items():
            q[s, code(chunk)] = reward + to @ value
        return q


def mixed_plans(chain: Chain, seed: int, right: float = 0.7, count: int = 4) -> np.ndarray:
    """A stochastic policy: `count` random chunks a state, equally likely, float32 (states, count, E)."""
    draws = np.random.default_rng(seed).random((chain.states, count, STEPS))
    return np.where(draws < right, 1.0, -1.0).astype(np.float32)


def explorer(chain: Chain, seed: int) -> np.ndarray:
    """A behaviour that may run every chunk in every state, but in each state some of them more often."""
    rng = np.random.default_rng(seed)
    favourites = np.array(
        [rng.choice(len(WHOLE), 8, p=rng.dirichlet(np.ones(8))) for _ in range(chain.states)]
    )
    return np.concatenate([np.tile(WHOLE, (chain.states, 1, 1)), WHOLE[favourites]], axis=1)


@cache
def observation(chain: Chain, position: int) -> Observation:
    place = np.eye(chain.states, dtype=np.float32)[position]
    return Observation({}, np.array([position], np.float32), TASK, environment_state=place)


class Recorder:
    """One episode in the making. It is cut off after `limit` steps, unless the goal is reached by then."""

    def __init__(self, chain: Chain, start: int, rng: np.random.Generator, limit: int = 40) -> None:
        self.chain, self.position, self.limit = chain, start, limit
        self._rng, self._steps, self._held, self._plans = rng, list[Step](), 0, 0

    @property
    def over(self) -> bool:
        late = len(self._steps) >= self.limit and self._held == 0
        return late or self._held == HELD or self.position == self.chain.hole

    def act(self, action: float, source: Source = "human", **plan) -> None:
        """One step of anybody."""
        sent = np.array([action], np.float32)
        self._steps.append(Step(observation(self.chain, self.position), sent, source=source, **plan))
        slipped = self.chain.slip > 0 and self._rng.random() < self.chain.slip
        self.position = self.chain.after(self.position, -action if slipped else action)
        self._held += self.position == self.chain.goal

    def plan(self, chunk: np.ndarray, stop: int = STEPS) -> None:
        """The policy runs the first `stop` steps of its plan, or fewer if the episode ends before."""
        for k in range(stop):
            if not self.over:
                planned = chunk[:, None].astype(np.float32)
                self.act(float(chunk[k]), "policy", chunk_id=self._plans, chunk_step=k, planned_chunk=planned)
        self._plans += 1

    def episode(self) -> Episode:
        last = self._steps[-1]
        last.success = self._held == HELD
        last.terminated = last.success or self.position == self.chain.hole
        last.truncated = not last.terminated
        return Episode(self._steps, observation(self.chain, self.position), TASK)


def episodes(
    chain: Chain,
    play: Callable[[Recorder, np.random.Generator], None],
    count: int,
    seed: int = 0,
    limit: int = 40,
    starts: Sequence[int] = (),
) -> list[Episode]:
    """`play` acts until the episode is over; `starts`, by default all live states, take turns."""
    places, made = starts or range(chain.length), []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        recorder = Recorder(chain, places[number % len(places)], rng, limit)
        while not recorder.over:
            play(recorder, rng)
        made.append(recorder.episode())
    return made


def follow(plans: np.ndarray) -> Callable[[Recorder, np.random.Generator], None]:
    """A policy: one of `plans`, (states, P, E), at each replan, run blindly."""

    def play(recorder: Recorder, rng: np.random.Generator) -> None:
        recorder.plan(plans[recorder.position, rng.integers(plans.shape[1])])

    return play


def react(recorder: Recorder, rng: np.random.Generator) -> None:
    """A person, who sees where each step led: forward after a setback, mostly easing back after a gain."""
    before = -1
    while not recorder.over:
        gained = recorder.position > before
        chance = 0.3 if gained else 0.8
        before = recorder.position
        recorder.act(1.0 if rng.random() < chance else -1.0)
