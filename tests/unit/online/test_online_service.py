"""The learner process: what it does in which order, and that a restart goes on bit for bit."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from valueguide.critics.manifest import read_manifest
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.online import learner_state
from valueguide.online.intake import HELD_OUT, REPLAY
from valueguide.online.probe import PROBE
from valueguide.online.replay import ReplayReader
from valueguide.online.service import LearnerService
from valueguide.online.service_files import STATUS, read_status
from valueguide.testing.fakes import FakeClock, FakeProposer
from valueguide.testing.small_learner import (
    OTHER_TASK,
    SMALL_SPEC,
    TASK,
    save_small_critic,
    small_embed,
    small_episode,
    small_settings,
)


def record(root, numbers, task=TASK):
    with EpisodeWriter(root / "day1", SMALL_SPEC) as writer:
        for number in numbers:
            writer.save(small_episode(number, task))


class TickingClock(FakeClock):
    """A second for each reading, so that every piece of work is one gradient step and waits end."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def started(root, proposer=None, clock=None, **changes) -> LearnerService:
    settings = small_settings(root, **changes)
    return LearnerService(settings, proposer or FakeProposer(), small_embed, clock or TickingClock())


def kill(service) -> None:
    """As a SIGKILL would leave it: the lock falls, nothing is saved."""
    service._pause()
    os.close(service._lock)
    service._lock = None


def weights(service) -> dict[str, torch.Tensor]:
    trainer = service.learner.trainer
    return {
        **trainer.critic.state_dict(),
        **{f"target.{n}": v for n, v in trainer.target.state_dict().items()},
    }


def assert_same_weights(a, b) -> None:
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


def steps_of(*numbers) -> int:
    return sum(len(small_episode(n).steps) for n in numbers)


def test_it_takes_in_learns_what_is_due_and_publishes(tmp_path):
    record(tmp_path, range(9))
    with started(tmp_path) as service:
        service.finish()
        status = service.status()
    recorded = steps_of(0, 1, 3, 4, 6, 7)
    assert status["episodes"]["learned_from"] == 6 and status["episodes"]["held_out"] == 3
    assert status["steps"] == recorded and status["gradient_step"] == recorded // 2 == status["steps_due"]
    assert status["serving"] == 1 and status["newest"] == 3, "every 20 steps, and what was left at the end"
    versions = service.versions
    assert read_manifest(versions.folder(1))["version"] == read_manifest(tmp_path / "critic")["version"]
    assert [v.step for v in versions.list()][1:] == [20, recorded // 2]
    assert (versions.root / PROBE).exists() and versions.report(3) is not None
    assert {"td_loss", "data_wait_share"} <= set(status["metrics"]) and status["problem"] == ""
    assert 0 <= status["policy_share"] <= 1 and 0 <= status["data_wait"] <= 1
    written = json.loads((tmp_path / "learner" / STATUS).read_text())
    assert written.keys() == status.keys() and (written["doing"], written["newest"]) == ("stopped", 3)


def test_held_out_episodes_are_never_in_the_replay(tmp_path):
    record(tmp_path, range(9))
    with started(tmp_path) as service:
        service.finish()
    found = {}
    for name in (REPLAY, HELD_OUT):
        reader = ReplayReader(tmp_path / "learner" / name)
        reader.refresh()
        found[name] = {segment.episode for segment in reader.segments.values()}
    assert len(found[HELD_OUT]) == 3 and not found[HELD_OUT] & found[REPLAY]


def test_it_waits_for_data_for_enough_of_it_and_for_no_more_than_it_may(tmp_path):
    with started(tmp_path, min_steps=30, max_steps=7) as service:
        assert not service.work() and service.status()["steps_due"] == 0
        assert service.status()["serving"] == 1, "the critic that it starts from"
        record(tmp_path, [0, 1])  # 23 steps
        while service.work():
            pass
        assert service.status()["gradient_step"] == 0
        record(tmp_path, range(2, 8))
        while service.work():
            pass
        assert service.status()["gradient_step"] == service.status()["steps_due"] == 7


def test_one_piece_of_work_is_bounded(tmp_path):
    record(tmp_path, range(6))
    with started(tmp_path) as service:
        before = service.status()
        for _ in range(6):
            assert service.work()
            after = service.status()
            taken = sum(after["episodes"].values()) - after["episodes"]["waiting"]
            assert taken == sum(before["episodes"].values()) - before["episodes"]["waiting"] + 1
            before = after
        assert service.work() and service.status()["gradient_step"] == 1


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_learner_goes_on_bit_for_bit(tmp_path, seed):
    record(tmp_path, range(12))
    with started(tmp_path, out=str(tmp_path / "whole")) as whole:
        whole.finish()
    rng = np.random.default_rng(seed)
    saved = 0
    for _ in range(4):
        service = started(tmp_path)
        assert service.learner.trainer.step >= saved, "it starts over, or from an older state"
        for _ in range(int(rng.integers(1, 25))):
            service.work()
        saved = service._saved
        kill(service)
    with started(tmp_path) as service:
        service.finish()
    assert service.learner.trainer.step == whole.learner.trainer.step > 20
    assert_same_weights(service, whole)
    mine, theirs = ([(v.step, v.version) for v in s.versions.list()] for s in (service, whole))
    assert mine == theirs, "published once each"


def test_what_is_known_of_the_policy_is_kept_and_that_of_another_policy_is_not(tmp_path):
    record(tmp_path, range(6))
    with started(tmp_path) as service:
        service.finish()
        known = service.learner.targets.remembered()
    assert len(known[0]) > 5
    proposer = FakeProposer()
    with started(tmp_path, proposer) as service:
        for found, wanted in zip(service.learner.targets.remembered(), known, strict=True):
            np.testing.assert_array_equal(found, wanted)
        record(tmp_path, [90])
        service.finish()
        new = len(service.learner.targets.remembered()[0]) - len(known[0])
        # About new states only; a lone one is asked about twice, see `PolicyTargets`.
        assert sum(len(seeds) for seeds in proposer.asked) <= 2 * new
    with started(tmp_path, FakeProposer(version="another")) as service:
        assert len(service.learner.targets.remembered()[0]) == 0
        record(tmp_path, [91])
        service.finish()
        assert service.status()["policy"] == "another" and service.status()["problem"] == ""


def test_other_settings_a_second_learner_and_another_critic_are_refused(tmp_path):
    record(tmp_path, range(3))
    service = started(tmp_path)
    with pytest.raises(ConfigError, match="another learner works here"):
        started(tmp_path)
    assert read_status(tmp_path / "learner")["running"]
    service.close()
    assert not read_status(tmp_path / "learner")["running"]
    for name, value in {"batch_size": 8, "seed": 1, "hold_out": 4, "takeover": "bootstrap"}.items():
        with pytest.raises(ConfigError, match=name):
            started(tmp_path, **{name: value})
    save_small_critic(tmp_path / "other", seed=5)
    with pytest.raises(ConfigError, match="critic: expected"):
        started(tmp_path, critic=str(tmp_path / "other"))
    started(tmp_path, updates_per_step=0.4, publish_every=5).close()  # of these a restart may change


def test_nothing_to_ask_yet_is_said_and_the_check_follows(tmp_path):
    record(tmp_path, range(5))
    with started(tmp_path, publish_every=5) as service:
        service.finish()
        assert "1 of 2 held-out episodes" in service.status()["check"]
        assert service.status()["newest"] > 1 and service.versions.report(service.status()["newest"]) is None
        record(tmp_path, [5])
        service.finish()
        assert service.versions.report(service.status()["newest"]) is not None


@pytest.mark.faults
def test_a_full_disk_while_publishing_is_a_line_and_tried_again(tmp_path, monkeypatch):
    record(tmp_path, range(12))
    clock = TickingClock()
    with started(tmp_path, clock=clock) as service:
        original, full = service.versions.publish, [True]

        def publish(folder):
            if full[0]:
                raise CheckpointError("versions: not published: No space left on device")
            return original(folder)

        monkeypatch.setattr(service.versions, "publish", publish)
        while "No space" not in service.status()["problem"]:
            assert service.work()
        failed = service.learner.trainer.step
        service.work()
        assert service.learner.trainer.step > failed, "it goes on learning"
        assert service.versions.numbers() == [1]
        full[0] = False
        for _ in range(40):
            service.work()
        assert service.versions.numbers()[-1] > 1 and service.status()["problem"] == ""


def test_a_step_that_failed_is_done_again_from_what_was_saved(tmp_path, monkeypatch):
    record(tmp_path, range(12))
    with started(tmp_path, out=str(tmp_path / "whole")) as whole:
        whole.finish()
    with started(tmp_path) as service:
        original, at = service.learner.trainer.update, [13]

        def update(batch, proposals):
            if service.learner.trainer.step == at[0]:
                at[0] = -1
                with torch.no_grad():
                    next(service.learner.trainer.critic.parameters()).fill_(float("nan"))
                raise DataError("critic training, step 13: td_loss: expected a finite number, found nan")
            return original(batch, proposals)

        monkeypatch.setattr(service.learner.trainer, "update", update)
        while not service.status()["problem"]:
            service.work()
        assert "finite" in service.status()["problem"] and service.learner.trainer.step == 10
        for _ in range(200):
            service.work()
        assert service.status()["problem"] == ""
        service.finish()
    assert_same_weights(service, whole)


def test_a_new_sentence_after_the_last_save_does_not_stop_a_restart(tmp_path):
    record(tmp_path, range(6))
    service = started(tmp_path, save_every=1000, publish_every=1000)
    while service.work():
        pass
    record(tmp_path, range(20, 40), OTHER_TASK)
    while service.learner.trainer.step < 52:  # where the replay is looked at again
        assert service.work()
    assert OTHER_TASK in service.learner.loader.instructions
    kill(service)
    with started(tmp_path, save_every=1000, publish_every=1000) as again:
        assert again.learner.trainer.step == 0
        again.finish()
        embeddings = again.learner.trainer.embeddings
        assert len(embeddings) == len(again.learner.loader.instructions) == 2
        assert again.versions.report(again.status()["newest"]) is not None, "checked on the task it knows"
    with started(tmp_path) as last:
        assert last.learner.trainer.step == again.learner.trainer.step
        assert_same_weights(last, again)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["write_training", "write_tensors"])
def test_a_death_while_saving_leaves_the_state_before(tmp_path, monkeypatch, name):
    record(tmp_path, range(6))
    service = started(tmp_path)
    while service.learner.trainer.step < 12:
        service.work()
    original = getattr(learner_state, name)

    def die(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learner_state, name, die)
        with pytest.raises(KeyboardInterrupt):
            service.close()
    with started(tmp_path) as again:
        assert again.learner.trainer.step == 10


def test_an_error_that_nobody_expected_is_raised_and_nothing_half_done_is_saved(tmp_path, monkeypatch):
    record(tmp_path, range(6))
    with pytest.raises(RuntimeError, match="bug"), started(tmp_path) as service:
        while service.learner.trainer.step < 12:
            service.work()

        def update(batch, proposals):
            raise RuntimeError("bug")

        monkeypatch.setattr(service.learner.trainer, "update", update)
        service.work()
    with started(tmp_path) as again:
        assert again.learner.trainer.step == 10


def test_a_state_without_its_half_is_an_error_and_no_new_start(tmp_path):
    record(tmp_path, range(6))
    with started(tmp_path) as service:
        service.finish()
    (tmp_path / "learner" / "training" / "state" / "learner.json").unlink()
    with pytest.raises(CheckpointError, match=r"learner\.json"):
        started(tmp_path)


def test_a_policy_of_other_actions_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="2"):
        started(tmp_path, FakeProposer(action_dim=2))
    with pytest.raises(ConfigError, match="--policy: chunks"):
        started(tmp_path, FakeProposer(horizon=3))
