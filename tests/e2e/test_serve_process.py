"""`valueguide serve` for real: the shipped models in a process, episodes over the socket, swaps, its end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from valueguide.cli.common import shipped
from valueguide.errors import LinkError
from valueguide.steering.steer import SteeringConfig
from valueguide.testing.serve_process import Serve
from valueguide.testing.waiting import until
from valueguide.transport.link import ServerLink
from valueguide.transport.pending import LinkSettings
from valueguide.transport.steerer import RemoteSteerer
from valueguide.types import Episode

_until = partial(until, wait_s=60.0, look_s=0.1)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to the shipped critic, which tests point elsewhere."""
    link = tmp_path_factory.mktemp("critic") / "now"
    link.symlink_to(shipped("wxai-state", "critic"))
    return link


@pytest.fixture(scope="module")
def serve(critic: Path) -> Iterator[Serve]:
    found = Serve(str(critic), "--watch-s", "0.2")
    yield found
    if found.process.poll() is None:
        found.end()


def same(ours: Episode, theirs: Episode) -> None:
    assert len(ours.steps) == len(theirs.steps) and ours.success == theirs.success
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        assert np.array_equal(a.action, b.action)
        assert (a.policy_version, a.critic_version) == (b.policy_version, b.critic_version)
        assert (a.decision is None) == (b.decision is None)
        if a.decision is None or b.decision is None:
            continue
        assert a.candidates is not None and b.candidates is not None
        assert np.array_equal(a.candidates.actions, b.candidates.actions)
        assert (a.decision.index, a.decision.reason) == (b.decision.index, b.decision.reason)
        assert a.decision.scores is not None and b.decision.scores is not None
        assert np.array_equal(a.decision.scores.q, b.decision.scores.q)


def test_guided_episodes_are_the_same_to_the_last_bit_as_in_process(serve: Serve) -> None:
    from sim.suite import make_suite
    from valueguide.evaluation.arms import ArmFactory, ArmSettings
    from valueguide.evaluation.rollout import rollout

    suite = make_suite("wxai-state")
    paths = shipped("wxai-state", "policy"), shipped("wxai-state", "critic")
    local = ArmFactory(suite, ArmSettings(*paths), ("guided",)).build("guided")
    with ServerLink(LinkSettings(serve.endpoint, timeout_s=60.0)) as link:
        remote = RemoteSteerer(link, SteeringConfig(), connect_s=60.0)
        for number, task in enumerate(suite.tasks[:2]):
            ours, theirs = (
                rollout(suite.make(task), steerer, 500 + number, 60, sampling_seed=7)  # type: ignore[arg-type]
                for steerer in (local, remote)
            )
            same(ours, theirs)
        assert remote.timing.policy_s > 0 and remote.timing.total_s > remote.timing.policy_s
        assert link.counters.missed == 0


def test_several_robots_get_what_they_would_get_alone_to_rounding(serve: Serve) -> None:
    from sim.suite import make_suite
    from valueguide.evaluation.suite import to_observation

    suite = make_suite("wxai-state")
    observations = []
    for number, task in enumerate(suite.tasks[:4]):
        env = suite.make(task)
        raw, info = env.reset(seed=number)
        observations.append(to_observation(raw, info["task_description"], 0, suite.fps))
    links = [ServerLink(LinkSettings(serve.endpoint, timeout_s=60.0)) for _ in observations]
    robots = [RemoteSteerer(link, SteeringConfig(k=8), connect_s=60.0) for link in links]
    for robot, observation in zip(robots, observations, strict=True):
        robot.observe(observation)
    alone = [robot.plan(seed) for seed, robot in enumerate(robots)]
    sizes = set()
    for _ in range(3):
        pending = [robot.ask(seed) for seed, robot in enumerate(robots)]
        for robot, question, (_, candidates, decision) in zip(robots, pending, alone, strict=True):
            _, ours, choice = robot.take(question)
            assert np.allclose(ours.actions, candidates.actions, atol=1e-4)
            assert choice.scores is not None and decision.scores is not None
            assert np.allclose(choice.scores.q, decision.scores.q, atol=1e-3)
            assert robot.answer is not None
            sizes.add(robot.answer.reply.batch)
    assert max(sizes) > 1
    for link in links:
        link.close()


def test_a_critic_is_swapped_while_a_robot_works(serve: Serve, critic: Path, tmp_path: Path) -> None:
    from sim.suite import make_suite
    from valueguide.critics.checkpoint import LoadedCritic
    from valueguide.evaluation.suite import to_observation

    suite = make_suite("wxai-state")
    raw, info = suite.make(suite.tasks[0]).reset(seed=1)
    damaged = tmp_path / "damaged"
    shutil.copytree(shipped("wxai-state", "critic"), damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with ServerLink(LinkSettings(serve.endpoint, timeout_s=60.0)) as link:
        robot = RemoteSteerer(link, SteeringConfig(), connect_s=60.0)
        robot.observe(to_observation(raw, info["task_description"], 0, suite.fps))

        def point(target: str | Path) -> None:
            new = critic.with_name("new")
            new.symlink_to(target)
            os.replace(new, critic)

        point(damaged)
        _until(lambda: '"critic":' in serve.read("/health").partition("troubles")[2])
        version = LoadedCritic(Path(shipped("wxai-state", "critic"))).version
        robot.plan(0)
        assert robot.critic is not None and robot.critic.version == version
        assert 'valueguide_swaps_total{model="critic",outcome="refused"}' in serve.read("/metrics")
        point(shipped("wxai-state", "critic"))
        _until(lambda: serve.read("/health").endswith('"troubles": {}}'))
        robot.plan(1)


def test_killed_and_started_again_the_robot_goes_on(critic: Path) -> None:
    from sim.suite import make_suite
    from valueguide.evaluation.suite import to_observation

    suite = make_suite("wxai-state")
    raw, info = suite.make(suite.tasks[0]).reset(seed=1)
    observation = to_observation(raw, info["task_description"], 0, suite.fps)
    first = Serve(str(critic))
    with ServerLink(LinkSettings(first.endpoint, timeout_s=60.0)) as link:
        robot = RemoteSteerer(link, SteeringConfig(), connect_s=60.0)
        robot.observe(observation)
        before = robot.plan(3)
        first.process.kill()
        first.process.communicate()
        start = time.monotonic()
        with pytest.raises(LinkError):
            robot.take(robot.ask(3, timeout_s=0.5))
        assert time.monotonic() - start < 2.0
        second = Serve(str(critic), port=first.endpoint.rpartition(":")[2])
        after = robot.plan(3)
        assert np.array_equal(before[0].actions, after[0].actions)
    summary = second.end(signal.SIGINT)
    assert summary["outcomes"]["decision"] == 1


def test_its_end_is_graceful_and_says_what_was_served(serve: Serve) -> None:
    with ServerLink(LinkSettings(serve.endpoint, timeout_s=60.0)) as link:
        link.connect(60.0)
        text = serve.read("/metrics")
        assert "valueguide_sessions" in text and "valueguide_models_info" in text
    assert serve.end()["endpoint"] == serve.endpoint
