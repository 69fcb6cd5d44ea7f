"""What the runner's new processes import: fakes in place of suites and checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from valueguide.errors import DataError
from valueguide.evaluation.arms import ArmSettings
from valueguide.evaluation.suite import Suite
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeCritic, FakePolicy, FakeReachEnv, FakeSuite


class FakeArms:
    """base and guided over the fakes. The critic's folder name is its version."""

    def __init__(self, suite: Suite, settings: ArmSettings, arms: tuple[str, ...]) -> None:
        self._settings = settings

    def build(self, arm: str) -> Steerer:
        guided = arm.startswith("guided")
        config = SteeringConfig(k=self._settings.k if guided else 1, execute=self._settings.execute)
        return Steerer(FakePolicy(noise=0.2), FakeCritic() if guided else None, config)


class RetrainedArms(FakeArms):
    """The same arms after somebody trained the policy on."""

    def build(self, arm: str) -> Steerer:
        steerer = super().build(arm)
        steerer.policy.version = "retrained"
        return steerer


def fake_suite(name: str) -> FakeSuite:
    return FakeSuite(name)


class RestorableEnv(FakeReachEnv):
    """The point on a line, whose moments can be gone back to."""

    def snapshot(self) -> tuple[float, float, int]:
        return self._position, self._goal, self._steps

    def restore(self, snapshot: tuple[float, float, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._position, self._goal, self._steps = snapshot
        return self.observe(), self._info("")


class RestorableSuite(FakeSuite):
    """Its environments leave the time limit to whoever runs them."""

    def make(self, task: str, wording: str = "train", visuals: str = "train") -> FakeReachEnv:
        return RestorableEnv(10 * self.max_steps, task)


def restorable_suite(name: str) -> FakeSuite:
    return RestorableSuite(name)


def fake_policy(path: str, suite: Suite, device: str) -> FakePolicy:
    """path: a version, for tests in which the policy changes; "history" is one that remembers."""
    policy = FakePolicy(noise=0.15, history=2 if path == "history" else 1)
    policy.version = path
    return policy


def retrained_policy(path: str, suite: Suite, device: str) -> FakePolicy:
    policy = fake_policy(path, suite, device)
    policy.version = "retrained"
    return policy


def double() -> Callable[[int], int]:
    return lambda job: 2 * job


def process_number() -> Callable[[int], int]:
    return lambda job: os.getpid()


def threads() -> Callable[[int], Any]:
    return lambda job: os.environ["OMP_NUM_THREADS"]


def _trouble(kind: str, job: int) -> int:
    if job == 2:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("state: expected finite numbers, found NaN") if kind == "input" else ZeroDivisionError
    return job


def trouble(kind: str) -> Callable[[int], int]:
    """Job 2 is killed ("killed"), refuses its input ("input") or has a bug ("bug")."""
    return partial(_trouble, kind)


def no_start() -> Callable[[int], int]:
    raise DataError("critic: expected a folder, found none")
