"""Arms: what each one proposes and chooses, and checkpoints that do not fit the suite."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from valueguide.errors import CheckpointError, ConfigError
from valueguide.evaluation import arms as arms_module
from valueguide.evaluation.arms import ARMS, ArmFactory, ArmSettings, split_arm
from valueguide.evaluation.rollout import rollout
from valueguide.steering.steer import Steerer
from valueguide.testing.fakes import FakeCritic, FakePolicy, FakeReachEnv, FakeSuite
from valueguide.types import Decision

SETTINGS = ArmSettings("policy-folder", "critic-folder", k=8)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fakes instead of checkpoints; lists the folders that were read."""
    read: list[str] = []
    policy, critic = FakePolicy(noise=0.1), FakeCritic()
    monkeypatch.setattr(arms_module, "load_policy", lambda path, suite, device: read.append(path) or policy)
    monkeypatch.setattr(arms_module, "load_critic", lambda path, suite, device: read.append(path) or critic)
    return read


def _decisions(steerer: Steerer) -> list[tuple[int, Decision]]:
    episode = rollout(FakeReachEnv(), steerer, 3, 20)
    return [(s.candidates.k, s.decision) for s in episode.steps if s.candidates and s.decision]


@pytest.mark.parametrize(
    ("arm", "k", "reason"),
    [
        ("base", 1, "no_critic"),
        ("guided", 8, "argmax"),
        ("guided@3", 3, "argmax"),
        ("random", 8, "random"),
        ("medoid", 8, "medoid"),
        ("qonly", 8, "argmax"),
    ],
)
def test_what_each_arm_does(loaded: list[str], arm: str, k: int, reason: str) -> None:
    facts = _decisions(ArmFactory(FakeSuite(), SETTINGS, (arm,)).build(arm))
    assert {size for size, _ in facts} == {k}
    assert {decision.reason for _, decision in facts} == {reason}
    if reason == "argmax":
        assert all(d.values is not None and d.values[d.index] == d.values.max() for _, d in facts)


def test_random_takes_all_of_them_sooner_or_later(loaded: list[str]) -> None:
    steerer = ArmFactory(FakeSuite(), SETTINGS, ("random",)).build("random")
    seen = set()
    for seed in range(40):
        episode = rollout(FakeReachEnv(max_steps=4), steerer, 3, 4, sampling_seed=seed)
        first = episode.steps[0].decision
        assert first is not None
        seen.add(first.index)
    assert seen == set(range(8))


def test_qonly_draws_uniformly_within_the_limits_and_ignores_the_policy(loaded: list[str]) -> None:
    factory = ArmFactory(FakeSuite(), SETTINGS, ("qonly",))
    assert loaded == ["critic-folder"]
    episode = rollout(FakeReachEnv(), factory.build("qonly"), 3, 20)
    actions = np.concatenate([s.candidates.actions.ravel() for s in episode.steps if s.candidates])
    assert np.abs(actions).max() <= 0.1 and actions.min() < -0.05 and actions.max() > 0.05
    assert episode.steps[0].policy_version == "uniform"


def test_arms_without_a_critic_read_none(loaded: list[str]) -> None:
    ArmFactory(FakeSuite(), SETTINGS, ("base", "random", "medoid"))
    assert loaded == ["policy-folder"]


def test_only_the_guided_arm_heeds_the_spread_limit(loaded: list[str]) -> None:
    """Far from the data the critic is always unsure; qonly asks what it is worth there."""
    factory = ArmFactory(FakeSuite(), SETTINGS)
    factory._critic.spread_limit = 0.001  # the fake's members differ by 0.01
    reasons = {arm: {d.reason for _, d in _decisions(factory.build(arm))} for arm in ("guided", "qonly")}
    assert reasons == {"guided": {"spread"}, "qonly": {"argmax"}}


def test_medoid_compares_dimensions_in_units_of_their_range(loaded: list[str]) -> None:
    factory = ArmFactory(FakeSuite(), SETTINGS, ("medoid",))
    selector = factory.build("medoid").selector
    assert selector is not None
    np.testing.assert_allclose(selector._scale, [0.1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["best", "guided@0", "guided@x", "guided@-1", ""])
def test_unknown_arms_list_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{', '.join(ARMS)}.*{name!r}"):
        split_arm(name)


def _policy(**facts: Any) -> Any:
    usual = {"action_dim": 1, "cameras": {"front": (8, 8)}, "needs_environment_state": False}
    return SimpleNamespace(**{**usual, **facts})


def _serve(monkeypatch: pytest.MonkeyPatch, policy: Any) -> None:
    """Answer every folder with `policy`, without importing LeRobot."""
    module = SimpleNamespace(load_policy=lambda path, device: policy)
    monkeypatch.setitem(sys.modules, "valueguide.policies.load", module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"action_dim": 7}, "policy p: action size: expected 1 for fake, found 7"),
        ({"cameras": {"top": (8, 8)}}, "camera 'top'"),
        ({"cameras": {"front": (9, 8)}}, "camera 'front'"),
        ({"needs_environment_state": True}, "environment_state"),
    ],
)
def test_a_policy_for_another_robot_is_refused(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], words: str
) -> None:
    _serve(monkeypatch, _policy(**facts))
    with pytest.raises(CheckpointError) as caught:
        arms_module.load_policy("p", FakeSuite())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_both_models_are_loaded_onto_the_device_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from valueguide.critics.scorer import LearnedCritic

    asked: list[tuple[str, str]] = []
    critic = SimpleNamespace(
        check_compatible=lambda **facts: None, spec=SimpleNamespace(environment_state_dim=0)
    )

    def load_policy(path: str, device: str) -> Any:
        asked.append((path, device))
        return _policy()

    monkeypatch.setitem(sys.modules, "valueguide.policies.load", SimpleNamespace(load_policy=load_policy))  # type: ignore[arg-type]
    monkeypatch.setattr(LearnedCritic, "load", lambda path, device: asked.append((path, device)) or critic)
    ArmFactory(FakeSuite(), replace(SETTINGS, device="cuda:1"))
    assert asked == [("policy-folder", "cuda:1"), ("critic-folder", "cuda:1")]


def test_a_policy_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _policy()
    _serve(monkeypatch, policy)
    assert arms_module.load_policy("p", FakeSuite()) is policy
