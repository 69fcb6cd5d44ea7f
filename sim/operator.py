"""A scripted operator: watches a policy drive, takes over when the episode is about to fail, hands back.

Stands in for the person beside the robot in experiments with interventions. It sees the true state, reacts
late as people do, and has a budget. See docs/online.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.dangers import Dangers
from sim.env import TabletopEnv
from sim.recovery import Recovery
from valueguide.errors import ConfigError, mismatch

HAND_BACK = ("subgoal", "never")
#: With fewer steps to spare than this the policy gets no second chance: it would be interrupted at once.
_SPARE = 10


@dataclass(frozen=True)
class OperatorSettings:
    """How the operator acts; a limit of None is none.

    hand_back: "subgoal" hands back once the hand has got what it needs (an object lifted off the table, the
        handle in the fingers, the hand over the button or before the drawer) for `settle` steps. Driven to
        the end is what goes wrong when the hand had it already, a second time, or too late to hand back.
        "never" always drives to the end.
    reaction: steps from the first sign of danger to the takeover; a danger that passes meanwhile is let pass.
    patience: steps without true progress before the arm counts as stuck.
    max_takeovers, max_steps: takeovers, and steps driven, in one episode. run_takeovers, run_steps: in all.
    tremor: standard deviation of the hand's noise, metres per step.
    """

    hand_back: str = "subgoal"
    reaction: int = 3
    patience: int = 14
    settle: int = 2
    max_takeovers: int | None = None
    max_steps: int | None = None
    run_takeovers: int | None = None
    run_steps: int | None = None
    tremor: float = 0.001

    def __post_init__(self) -> None:
        if self.hand_back not in HAND_BACK:
            raise ConfigError(mismatch("operator", "hand_back", " or ".join(HAND_BACK), repr(self.hand_back)))
        least = {"reaction": 0, "patience": 1, "settle": 1}
        least |= dict.fromkeys(("max_takeovers", "max_steps", "run_takeovers", "run_steps"), 0)
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(mismatch("operator", name, f"{low} or more", value))
        if not (np.isfinite(self.tremor) and self.tremor >= 0):
            raise ConfigError(mismatch("operator", "tremor", "0 or more metres", self.tremor))


class ScriptedOperator:
    """One person for any number of episodes, one after the other. Deterministic for an episode's seed.

    Implements `valueguide.evaluation.rollout.Operator`. Raises ConfigError from `begin` for an environment
    that is not the tabletop, whose true state nobody can see.
    """

    def __init__(self, settings: OperatorSettings | None = None) -> None:
        self.settings = settings or OperatorSettings()
        #: Since construction.
        self.run_takeovers = self.run_steps = 0

    def begin(self, env: Any, seed: int) -> None:
        """An episode of `env`, which has just been reset, starts."""
        tabletop = env.unwrapped
        if not isinstance(tabletop, TabletopEnv):
            raise ConfigError(mismatch("operator", "environment", "the tabletop", type(tabletop).__name__))
        self._env, self._seed = tabletop, seed
        self._dangers = Dangers(tabletop.world, tabletop.task, tabletop.max_steps, self.settings.patience)
        self._recovery: Recovery | None = None
        self._since: int | None = None
        self._settled = self._takeovers = self._steps = 0
        self._to_the_end = False
        self._reasons: list[dict[str, Any]] = []

    def wants_control(self, info: dict[str, Any], step: int) -> bool:
        """Whether the person commands step number `step`; to be asked once before every step."""
        if self._recovery is not None:
            if not self._hands_back(step):
                return True
            self.release()
            self._dangers.begin(step)
            self._reasons[-1]["handed_back"] = step
        reason = self._dangers.look(step)
        if not reason or not self._may_take_over():
            self._since = None
            return False
        self._since = step if self._since is None else self._since
        if step - self._since < self.settings.reaction:
            return False
        self._take_over(reason, step)
        return True

    def action(self) -> NDArray[np.float32]:
        """The person's command for this step, float32 (5,); only after `wants_control` said so."""
        assert self._recovery is not None
        self._steps += 1
        self.run_steps += 1
        return self._recovery.action()

    def release(self) -> None:
        """Hands off the controls: the danger is over, or the episode."""
        self._recovery, self._since = None, None

    def facts(self) -> dict[str, Any]:
        """What happened in this episode, JSON-ready: `interventions`, each with reason, step, and handed_back
        (the step at which the policy went on) where it was."""
        return {"interventions": [dict(entry) for entry in self._reasons]}

    def _take_over(self, reason: str, step: int) -> None:
        env, drawn = self._env, int(np.random.default_rng([12, self._seed, step]).integers(2**31))
        self._recovery = Recovery(env.world, env.task, self.settings.tremor, drawn)
        self._to_the_end = self.settings.hand_back == "never" or bool(self._reasons) or self._recovery.ready()
        self._settled, self._takeovers = 0, self._takeovers + 1
        self.run_takeovers += 1
        self._reasons.append({"reason": reason, "step": step})

    def _hands_back(self, step: int) -> bool:
        limits = self.settings
        assert self._recovery is not None
        if self._spent(self._steps, limits.max_steps) or self._spent(self.run_steps, limits.run_steps):
            return True
        self._settled = self._settled + 1 if self._recovery.secure() else 0
        return not self._to_the_end and self._settled >= limits.settle and self._dangers.spare(step) >= _SPARE

    def _may_take_over(self) -> bool:
        limits = self.settings
        return not (
            self._spent(self._takeovers, limits.max_takeovers)
            or self._spent(self._steps, limits.max_steps)
            or self._spent(self.run_takeovers, limits.run_takeovers)
            or self._spent(self.run_steps, limits.run_steps)
        )

    @staticmethod
    def _spent(used: int, limit: int | None) -> bool:
        return limit is not None and used >= limit
