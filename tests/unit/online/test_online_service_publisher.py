"""What becomes of published critics: checked on held-out episodes, in shadow, promoted by rule or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from valueguide.critics.manifest import MANIFEST, read_json
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import CheckpointError, DataError
from valueguide.online.checks import CheckLimits
from valueguide.online.probe import PROBE, Probe
from valueguide.online.service import LearnerService
from valueguide.testing.fakes import FakeClock, FakeProposer
from valueguide.testing.small_learner import SMALL_SPEC, small_embed, small_episode, small_settings
from valueguide.types import Float32, Observation

LIMITS = CheckLimits(min_episodes=2)


class ByPlace:
    """A critic as good as it is told to be: minus the distance, a little better for steps to the right."""

    def __init__(self, folder: Path, quality: dict[int, float]) -> None:
        manifest = read_json(folder / MANIFEST)
        self.version, self.quality = manifest["version"], quality.get(int(folder.name), 1.0)

    def score_batch(self, observations: Sequence[Observation], actions: Float32) -> Float32:
        place = np.array([o.state[0] for o in observations], np.float32)[:, None]
        noise = np.random.default_rng(0).normal(size=place.shape)
        value = 5.0 * (self.quality * place + (1 - self.quality) * noise) - 3.0
        q = value + actions[..., 0].mean(-1) * 0.02
        return np.stack([q, q - 0.01]).astype(np.float32)


class Learner:
    """A service that is driven until nothing is left to do, with critics of stated quality."""

    def __init__(self, root: Path, **changes: object) -> None:
        self.root, self.quality, self.changes = root, {}, {"limits": LIMITS, "publish_every": 1000} | changes
        self.clock = FakeClock()
        self.start()

    def start(self) -> None:
        settings = small_settings(self.root, **self.changes)
        self.service = LearnerService(settings, FakeProposer(), small_embed, self.clock)
        self.service.publisher._load = lambda folder: ByPlace(folder, self.quality)

    def restart(self) -> None:
        self.service.close()
        self.start()

    def record(self, *numbers: int) -> None:
        with EpisodeWriter(self.root / "day1", SMALL_SPEC) as writer:
            for number in numbers:
                writer.save(small_episode(number))

    def run(self) -> dict[str, object]:
        """Two seconds pass, and all that is due is done."""
        self.clock.advance(20.0)
        while self.service.work():
            pass
        return self.service.status()

    def publish(self, quality: float = 1.0) -> int:
        number = self.service.versions.numbers()[-1] + 1
        self.quality[number] = quality
        self.service._publish()
        return number


@pytest.fixture
def made(tmp_path):
    learners = []

    def make(**changes) -> Learner:
        learners.append(Learner(tmp_path, **changes))
        learners[-1].record(*range(10))  # three are held out: 2, 5 and 8
        learners[-1].run()
        return learners[-1]

    yield make
    for learner in learners:
        learner.service.close()


def test_a_version_that_passes_is_in_shadow_until_the_operator_promotes_it(made):
    learner = made()
    number = learner.publish()
    status = learner.run()
    assert (status["serving"], status["shadow"], status["newest"]) == (1, number, number)
    report = learner.service.versions.report(number)
    assert report["passed"] and report["against"] == learner.service.versions.verify(1)["version"]
    learner.record(*range(20, 60))
    assert learner.run()["serving"] == 1
    learner.service.versions.promote(number, "the operator")
    assert (learner.run()["serving"], learner.run()["shadow"]) == (number, None)


def test_one_that_fails_is_said_and_neither_serves_nor_is_in_shadow(made):
    learner = made(promote_after=1)
    number = learner.publish(0.0)
    status = learner.run()
    assert (status["serving"], status["shadow"]) == (1, None)
    assert f"version {number} failed its check: " in status["check"] and "rank" in status["check"]
    learner.record(*range(20, 30))
    assert learner.run()["serving"] == 1 and not learner.service.versions.report(number)["passed"]


def test_the_probe_stays_and_fresher_episodes_are_asked_too(made):
    learner = made()
    learner.publish()
    learner.run()
    path = learner.service.versions.root / PROBE
    probe = Probe.load(path)
    assert set(probe.episode.tolist()) == {0, 1, 2} and probe.facts["candidates"] == "policy fake-1"
    assert learner.service.versions.report(2)["held_out"] == ""
    learner.record(*range(20, 29))
    learner.run()
    learner.publish()
    learner.run()
    report = learner.service.versions.report(3)
    assert Probe.load(path).digest == probe.digest == report["probe"]
    assert report["held_out"] not in ("", probe.digest)


def test_after_n_episodes_a_version_that_passes_again_serves_across_a_restart(made):
    learner = made(promote_after=4)
    number = learner.publish()
    assert learner.run()["shadow"] == number
    learner.record(*range(20, 23))
    assert learner.run()["serving"] == 1
    learner.restart()
    assert learner.run()["serving"] == 1
    learner.record(23)
    status = learner.run()
    assert (status["serving"], status["shadow"]) == (number, None)
    assert learner.service.versions.state().history[-1].reason == "passed after 4 episodes"


def test_one_that_does_not_pass_again_leaves_the_shadow_and_the_newest_follows(made):
    learner = made(promote_after=3)
    first = learner.publish()
    learner.run()
    second = learner.publish()
    assert learner.run()["shadow"] == first, "its time is not cut short by newer versions"
    assert learner.service.versions.report(second) is None
    learner.quality[first] = 0.0
    learner.record(*range(20, 23))
    status = learner.run()
    assert (status["serving"], status["shadow"]) == (1, second)
    learner.record(*range(30, 33))
    assert learner.run()["serving"] == second


def test_a_shadow_of_which_nobody_knows_since_when_waits_from_now_on(made):
    learner = made(promote_after=2)
    number = learner.publish()
    learner.run()
    (learner.root / "learner" / "training" / "shadow.json").write_text("{")
    learner.restart()
    assert learner.run()["shadow"] == number
    learner.record(20, 21)
    assert learner.run()["serving"] == number


def test_without_anything_to_ask_a_shadow_that_the_operator_chose_stays_one(made):
    learner = made(promote_after=2, probe_episodes=100)
    number = learner.publish()
    assert learner.run()["shadow"] is None and "3 of 100" in learner.service.status()["check"]
    learner.service.versions.set_shadow(number)
    for numbers in ((), (20, 21), (22, 23)):
        learner.record(*numbers)
        status = learner.run()
        assert (status["serving"], status["shadow"], status["problem"]) == (1, number, "")


def test_what_died_before_its_check_is_checked_at_the_next_start(made):
    learner = made()
    number = learner.publish()
    learner.restart()
    assert learner.run()["shadow"] == number


def test_a_version_that_was_rolled_back_does_not_come_back(made):
    learner = made(promote_after=1)
    number = learner.publish()
    learner.run()
    learner.record(20)
    assert learner.run()["serving"] == number
    versions = learner.service.versions
    versions.rollback("it shakes")
    versions.set_shadow(number)
    learner.record(21, 22)
    status = learner.run()
    assert (status["serving"], status["shadow"]) == (1, None) and "rolled back" in status["check"]


def test_a_check_that_cannot_be_made_is_a_problem_and_disturbs_nothing(made, monkeypatch):
    learner = made()
    with monkeypatch.context() as patch:
        patch.setattr(
            learner.service.publisher, "_load", lambda _: (_ for _ in ()).throw(CheckpointError("torn"))
        )
        number = learner.publish()
        status = learner.run()
        assert status["problem"] == "promote: torn" and (status["serving"], status["shadow"]) == (1, None)
        learner.record(20, 21)
        assert learner.run()["steps_due"] == learner.service.status()["gradient_step"]
    learner.run()
    assert learner.run()["shadow"] == number and learner.service.status()["problem"] == ""


def test_a_probe_may_come_from_elsewhere(made, tmp_path):
    with EpisodeWriter(tmp_path / "elsewhere", SMALL_SPEC) as writer:
        for number in range(50, 54):
            writer.save(small_episode(number))
    learner = made(probe_from=str(tmp_path / "elsewhere"))
    learner.publish()
    learner.run()
    report = learner.service.versions.report(2)
    probe = Probe.load(learner.service.versions.root / PROBE)
    assert probe.facts["source"] == "elsewhere" and len(np.unique(probe.episode)) == 4
    assert report["held_out"] not in ("", probe.digest), "all held-out episodes are fresher"


def test_publishing_leaves_the_learners_random_numbers_alone(made):
    import torch

    learner = made()
    before = torch.get_rng_state()
    learner.publish()
    learner.run()
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_half_written_is_published(made, monkeypatch):
    learner = made()
    from valueguide.online import learner as learner_module

    def torn(folder, *_):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "save_critic", torn)
        with pytest.raises((OSError, CheckpointError, DataError)):
            learner.publish()
    versions = learner.service.versions
    assert versions.numbers() == [1] and not list((versions.root / "drafts").iterdir())
    assert learner.publish() == 2
