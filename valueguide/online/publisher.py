"""What becomes of a learner's critic: published, checked on held-out episodes, in shadow, promoted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from valueguide.critics.manifest import MANIFEST, read_json, read_manifest
from valueguide.data.layout import write_json
from valueguide.errors import CheckpointError, ConfigError
from valueguide.interfaces import BatchProposer, BatchScorer
from valueguide.online.checks import CheckLimits, CheckReport, promote_checked, review
from valueguide.online.learner import CriticLearner
from valueguide.online.probe import PROBE, Probe, make_probe, segments_in
from valueguide.online.replay import ReplayReader
from valueguide.online.segments import Segment
from valueguide.online.versions import CriticVersions
from valueguide.online.vision import FrozenTower

log = logging.getLogger("valueguide.online")
#: Fact of a manifest: which learner published it.
LEARNER = "learner"
#: Fact of a probe: the last held-out segment that it may hold chunks of.
_UP_TO = "up_to_segment"
_STATES, _CANDIDATES = 256, 8


@dataclass(frozen=True)
class Shadow:
    """A version, and how many episodes had been recorded when it went into shadow."""

    number: int
    episodes: int


class Publisher:
    """Publishes `learner`'s critic to `versions`.

    held_out: replay of episodes that are not learned from. probe_from, probe_episodes, limits,
    promote_after: as in `ServiceSettings`. name: of this learner, kept in manifests. load: a critic folder ->
    something to ask. memory: a file for what a restart must know. tower: see `CriticLearner.publish`.
    problem: why the newest version is not in shadow, one line, "" where it is.
    """

    def __init__(
        self,
        versions: CriticVersions,
        learner: CriticLearner,
        proposer: BatchProposer,
        held_out: Path,
        name: str,
        load: Callable[[Path], BatchScorer],
        memory: Path,
        *,
        probe_from: str = "",
        probe_episodes: int = 10,
        limits: CheckLimits | None = None,
        promote_after: int | None = None,
        tower: FrozenTower | None = None,
    ) -> None:
        self.versions, self.learner, self.name, self.promote_after = versions, learner, name, promote_after
        self.limits = limits or CheckLimits()
        self.problem = ""
        self._proposer, self._held_out, self._load, self._memory = proposer, held_out, load, memory
        self._probe_from, self._probe_episodes = probe_from, probe_episodes
        self._probe: Probe | None = None
        self._tower = tower
        self._reader = ReplayReader(held_out)
        self._shadow = self._recall()

    def begin(self, critic: Path) -> None:
        """Where nothing serves yet: publish and promote the critic that learning starts from."""
        if self.versions.state().serving is not None:
            return
        content = read_manifest(critic)["version"]
        same = [v.number for v in self.versions.list() if v.version == content and not v.problem]
        number = same[0] if same else self.versions.publish(critic)
        self.versions.promote(number, "the critic that learning started from", over=None)
        log.info("version %d, the critic that learning started from, serves", number)

    def published_step(self) -> int:
        """The last training step at which this learner published, 0 before."""
        steps = (v.step for v in self.versions.list() if v.step is not None and self._is_mine(v.number))
        return max(steps, default=0)

    def publish(self) -> int:
        """Publish the critic as it is now; returns its number. Raises ValueguideError, OSError."""
        with _own_random_stream(), self.versions.draft() as draft:
            self.learner.publish(draft, {LEARNER: self.name}, self._tower)
            number = self.versions.publish(draft)
        log.info("published version %d at step %d", number, self.learner.trainer.step)
        return number

    def check_due(self) -> bool:
        """Whether the newest version is this learner's, unchecked, and not kept waiting by another."""
        numbers = self.versions.numbers()
        if not numbers or (self.promote_after is not None and self._waiting() is not None):
            return False
        newest = numbers[-1]
        return self._is_mine(newest) and self.versions.report(newest) is None

    def check(self, recorded_episodes: int) -> CheckReport | None:
        """The newest against the serving version; into shadow if it passes. None while nothing can be asked.

        Raises ValueguideError when the check could not be made.
        """
        number = self.versions.numbers()[-1]
        report = self._review(number)
        if report is None:
            return None
        if not report.passed:
            self.problem = f"version {number} failed its check: {'; '.join(report.failures)}"
            log.warning("%s", self.problem)
            return report
        if self.versions.state().serving != number:
            self.versions.set_shadow(number)
            self._remember(Shadow(number, recorded_episodes))
        self.problem = ""
        return report

    def promotion_due(self, recorded_episodes: int) -> bool:
        """Whether a version has been in shadow for `promote_after` episodes."""
        waiting = self._waiting()
        if self.promote_after is None or waiting is None:
            return False
        if self._shadow is None or self._shadow.number != waiting:
            self._remember(Shadow(waiting, recorded_episodes))  # Since when is not known: count from now.
        assert self._shadow is not None
        return recorded_episodes >= self._shadow.episodes + self.promote_after

    def promote(self, recorded_episodes: int) -> None:
        """Check the version in shadow again, on what is held out by now: it serves, or leaves the shadow.

        The newest version, if it is another one, is checked next. While nothing can be asked it waits for as
        many episodes again. Raises ValueguideError.
        """
        number = self._waiting()
        assert number is not None
        report = self._review(number)
        if report is None:
            self._remember(Shadow(number, recorded_episodes))
            return
        try:
            promote_checked(self.versions, number, report, f"passed after {self.promote_after} episodes")
            self.problem = ""
            log.info("version %d serves", number)
        except (CheckpointError, ConfigError) as error:
            self.problem = str(error)
            log.warning("%s", error)
            self.versions.set_shadow(None)
        newest = self.versions.numbers()[-1]
        if newest > number:
            self.check(recorded_episodes)

    def _is_mine(self, number: int) -> bool:
        try:
            manifest = read_json(self.versions.folder(number) / MANIFEST)
        except CheckpointError:
            return False
        return bool(manifest.get(LEARNER) == self.name)

    def _waiting(self) -> int | None:
        return self.versions.state().shadow

    def _review(self, number: int) -> CheckReport | None:
        with _own_random_stream():
            probe = self._probe or self._find_probe()
            if probe is None:
                return None
            self._probe = probe
            held_out = self._fresh(probe)
            return review(self.versions, number, self._load, probe, held_out, self.limits)

    def _find_probe(self) -> Probe | None:
        """The stored one; made once, from `probe_from` or the first held-out episodes."""
        path = self.versions.root / PROBE
        if path.exists():
            return Probe.load(path)
        if self._probe_from:
            probe = self._make(list(segments_in(self._probe_from)), {"source": Path(self._probe_from).name})
        else:
            segments = self._known(after=-1)
            found = len(_episodes(segments.values()))
            if found < self._probe_episodes:
                self.problem = f"no check yet: {found} of {self._probe_episodes} held-out episodes"
                return None
            probe = self._make(list(segments.values()), {_UP_TO: max(segments), "source": "held out"})
        probe.save(path)
        return probe

    def _fresh(self, probe: Probe) -> Probe | None:
        """Of held-out episodes that the probe does not hold, once there are enough to say something."""
        segments = list(self._known(after=int(probe.facts.get(_UP_TO, -1))).values())
        if len(_episodes(segments)) < self.limits.min_episodes:
            return None
        return self._make(segments, {"source": "held out"})

    def _known(self, after: int) -> dict[int, Segment]:
        """Held-out segments beyond number `after`, of instructions that the serving critic has learned.

        Of others it has nothing to say that a new critic could be compared with.
        """
        self._reader.refresh()
        serving = self.versions.state().serving
        found = {n: segment for n, segment in self._reader.segments.items() if n > after}
        if serving is None:
            return found
        texts = read_json(self.versions.folder(serving) / MANIFEST)["instructions"]
        return {n: segment for n, segment in found.items() if segment.task in texts}

    def _make(self, segments: list[Segment], facts: dict[str, Any]) -> Probe:
        return make_probe(
            segments,
            self.learner.loader.labelling,
            states=_STATES,
            k=_CANDIDATES,
            seed=self.learner.settings.seed,
            proposer=self._proposer,
            facts=facts,
        )

    def _remember(self, shadow: Shadow) -> None:
        self._shadow = shadow
        try:
            write_json(self._memory, asdict(shadow))
        except OSError as error:
            raise CheckpointError(f"{self._memory}: not stored: {error}") from error

    def _recall(self) -> Shadow | None:
        if not self._memory.exists():
            return None
        try:
            content = read_json(self._memory)
            return Shadow(int(content["number"]), int(content["episodes"]))
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None  # Then the count begins anew.


def _episodes(segments: Iterable[Segment]) -> set[str]:
    """Those with rollouts, of which alone probes are made."""
    return {segment.episode for segment in segments if segment.store == "rollout"}


def _own_random_stream() -> Any:
    """Building a network draws from torch's global stream, which belongs to the learner's dropout."""
    return torch.random.fork_rng(devices=[])
