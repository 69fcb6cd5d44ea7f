"""kill -9 of the learner, of a writer of its replay and of the recording policy, at random moments.

Processes are forked with torch loaded, so that a life lasts a second and 50 deaths fit into minutes.
KILLS=200 makes it longer.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.scorer import LearnedCritic
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.online.intake import HELD_OUT, LEDGER, REPLAY, Ledger
from valueguide.online.learner_state import LEARNER_STATE
from valueguide.online.replay import ReplayReader, ReplayWriter
from valueguide.online.segments import segments_of
from valueguide.online.service import TRAINING, VERSIONS, LearnerService
from valueguide.online.versions import CriticVersions
from valueguide.testing.fakes import FakeProposer
from valueguide.testing.small_learner import SMALL_SPEC, small_embed, small_episode, small_settings

_PDEATHSIG = 1
KILLS = int(os.environ.get("KILLS", "50"))


def learner(root: Path, say: Callable[[str], None]) -> None:
    """Says the step of each state that it has saved, first of the one that it goes on from."""
    settings = small_settings(root, updates_per_step=50.0, save_every=5, publish_every=10, keep=3)
    with LearnerService(settings, FakeProposer(), small_embed) as service:
        say(str(service.learner.trainer.step))
        told = service.status()["saved_step"]
        while True:
            if not service.work():
                time.sleep(0.01)
            if (saved := service.status()["saved_step"]) != told:
                told = saved
                say(str(saved))


def writer(root: Path, say: Callable[[str], None]) -> None:
    """Appends segments of its own to the learner's replay; says which and as what."""
    number = 1000 + 100_000 * os.getpid()
    with ReplayWriter(root / "learner" / REPLAY) as replay:
        while True:
            for segment in segments_of(small_episode(number), f"writer:{number}", store="offline"):
                say(f"{replay.append(segment)} {segment.episode}")
            number += 1
            time.sleep(0.2)


def policy(root: Path, say: Callable[[str], None]) -> None:
    """What a robot does: loads the serving critic, records an episode; says which."""
    versions = CriticVersions(root / "learner" / VERSIONS)
    with EpisodeWriter(root / "day1", SMALL_SPEC) as recorder:
        while True:
            versions.load(LearnedCritic.load)
            number = recorder.save(small_episode(int(time.monotonic() * 1000) % 1_000_000))
            say(str(number))
            time.sleep(0.2)


def reader(root: Path, say: Callable[[str], None]) -> None:
    """Loads what serves and what is in shadow, again and again; says every tenth time how often."""
    versions, count = CriticVersions(root / "learner" / VERSIONS), 0
    while True:
        for which in ("serving", "shadow"):
            if versions.load(LearnedCritic.load, which) is not None:
                count += 1
                if count % 10 == 0:
                    say(str(count))


class Process:
    """A forked process that runs `work`; `lines` are what it said, whole lines only."""

    def __init__(self, work: Callable[[Path, Callable[[str], None]], None], root: Path) -> None:
        self.work, self.root, self.errors = work, root, root / f"{work.__name__}.errors"
        self.start()

    def start(self) -> None:
        back, out = os.pipe()
        self.dead = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # a test that is cut off leaves nothing
                os.close(back)
                torch.set_num_threads(1)
                self.work(self.root, lambda text: os.write(out, f"{text}\n".encode()) and None)
            except BaseException as error:
                self.errors.write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(1)
        os.close(out)
        self.pipe = back

    def kill(self) -> list[str]:
        """SIGKILL; returns what it had said, nothing when it was killed before."""
        if self.dead:
            return []
        self.dead = True
        os.kill(self.pid, signal.SIGKILL)
        content = b""
        while block := os.read(self.pipe, 1 << 16):
            content += block
        os.close(self.pipe)
        os.waitpid(self.pid, 0)
        return content[: content.rfind(b"\n") + 1].decode().splitlines()


def replay_content(root: Path) -> dict[int, str]:
    found = ReplayReader(root / "learner" / REPLAY)
    found.refresh()
    assert not found.damaged
    return {number: segment.episode for number, segment in found.segments.items()}


def check_versions(root: Path) -> None:
    """All that is published is whole, and what serves loads."""
    versions = CriticVersions(root / "learner" / VERSIONS)
    for number in versions.numbers():
        try:
            versions.verify(number)
            LoadedCritic(versions.folder(number))
        except Exception:
            assert number not in versions.numbers(), "it was not removed meanwhile: it is half-written"
    assert versions.state().serving is not None and versions.load(LearnedCritic.load) is not None


def saved_step(root: Path) -> int:
    """0 before the first state."""
    path = root / "learner" / TRAINING / "state" / LEARNER_STATE
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(7)
    small_settings(tmp_path)  # makes the critic
    with EpisodeWriter(tmp_path / "day1", SMALL_SPEC) as recorder:
        for number in range(6):
            recorder.save(small_episode(number))
    running = {work.__name__: Process(work, tmp_path) for work in (learner, writer, policy, reader)}
    segments: dict[int, str] = {}
    episodes = steps = 0
    deaths = dict.fromkeys(("learner", "writer", "policy"), 0)
    try:
        for kill in range(KILLS):
            time.sleep(rng.uniform(0.0, 1.2))
            name = ("learner", "writer", "learner", "policy")[kill % 4]
            said = running[name].kill()
            deaths[name] += 1
            assert not running[name].errors.exists(), running[name].errors.read_text()
            if name == "writer":
                segments |= {int(line.split()[0]): line.split()[1] for line in said}
            elif name == "policy":
                episodes = max([episodes, *(int(line) + 1 for line in said)])
            else:
                if said:
                    assert int(said[0]) >= steps, "it went back behind what it had saved"
                steps = max([steps, saved_step(tmp_path), *map(int, said)])
                assert saved_step(tmp_path) == steps
                if (tmp_path / "learner" / VERSIONS / "critics").exists():
                    check_versions(tmp_path)
            content = replay_content(tmp_path)
            assert segments.items() <= content.items(), "an acknowledged segment is lost"
            if episodes:
                assert EpisodeDataset.open(tmp_path / "day1").episodes >= episodes
            assert not running["reader"].errors.exists(), running["reader"].errors.read_text()
            running[name].start()
    finally:
        said = {name: process.kill() for name, process in running.items()}
    loads = int(said["reader"][-1])
    assert not running["reader"].errors.exists() and loads >= 10
    assert deaths["learner"] and deaths["writer"] and deaths["policy"] and steps > 0
    # A last learner takes in whatever is left, each episode once.
    settings = small_settings(
        tmp_path, updates_per_step=50.0, max_steps=steps, save_every=5, publish_every=10, keep=3
    )
    with LearnerService(settings, FakeProposer(), small_embed) as service:
        service.finish()
    recorded = EpisodeDataset.open(tmp_path / "day1")
    assert recorded.episodes >= episodes
    kept: list[tuple[str, int]] = []
    for name in (REPLAY, HELD_OUT):
        found = ReplayReader(tmp_path / "learner" / name)
        found.refresh()
        kept += [(s.episode, s.first_step) for s in found.segments.values() if s.episode.startswith("day1:")]
    assert (
        len(kept)
        == len(set(kept))
        == sum(e.segments for e in Ledger(tmp_path / "learner" / LEDGER).taken.values())
    )
    assert {int(episode.split(":")[1]) for episode, _ in kept} == set(range(recorded.episodes))
    check_versions(tmp_path)
    print(f"{deaths} deaths, {loads} loads, {recorded.episodes} episodes, step {steps}, "
          f"{len(segments)} segments acknowledged by writers that died")  # fmt: skip
