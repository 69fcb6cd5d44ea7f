"""The learner against a plain loop: updates per second, what it waits for, memory, exact resumption."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from valueguide.bench.measure import peak_memory_mb, reset_peak_memory
from valueguide.bench.noise_replay import ReplaySize, noise_replay
from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.proposals import Proposals
from valueguide.critics.warm_start import trainer_from
from valueguide.online.learner import CriticLearner, LearnerSettings, online_training
from valueguide.policies.adapter import LeRobotPolicy

#: Parts of a run: the very first updates, for which nothing of the policy is known; the first fifth, in which
#: that changes; the last fifth.
_START, _FIFTH = 50, 5
_PARTS = ("start", "cold", "warm", "whole")


@dataclass(frozen=True)
class BenchSettings:
    """updates, loop_updates: in one run of the learner and of the plain loop, whose speed does not change.

    pairs: runs of each; they take turns. threads: torch's, for both. batch_size, proposals: as in
    `LearnerSettings`. size: of the replay.
    """

    updates: int = 1000
    loop_updates: int = 60
    pairs: int = 3
    threads: int = 1
    batch_size: int = 256
    proposals: int = 4
    seed: int = 0
    size: ReplaySize = field(default_factory=ReplaySize)


class LearnerBench:
    """One policy, one critic, and a replay of noise in `folder` with what the two look at."""

    def __init__(
        self,
        folder: Path,
        policy: LeRobotPolicy,
        critic: LoadedCritic,
        settings: BenchSettings,
        device: str = "cpu",
    ) -> None:
        self.folder, self.policy, self.critic = folder, policy, critic
        self.settings, self.device = settings, device
        self.observations = noise_replay(
            folder / "replay",
            critic.spec,
            critic.network_config,
            critic.instructions,
            policy.cameras,
            settings.size,
            settings.seed,
            policy.horizon,
        )

    def compare(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Learner, loop, and the loop with a thread for each core take turns; medians and their ratios."""
        settings = self.settings
        threads = {"learner": settings.threads, "loop": settings.threads}
        if (os.cpu_count() or 1) > settings.threads:
            threads["loop_all_cores"] = os.cpu_count() or 1
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in threads}
        for turn in range(settings.pairs):
            for name, count in threads.items():
                torch.set_num_threads(count)
                run = self.learner_run() if name == "learner" else self.loop_run()
                runs[name].append(run)
                say(f"turn {turn + 1} of {settings.pairs}, {name}: {_short(run)}")
        torch.set_num_threads(settings.threads)
        loops = [name for name in threads if name != "learner"]
        return {
            "observations": self.observations,
            **{name: _summary(found) for name, found in runs.items()},
            "speedup": {
                name: {
                    part: _spread(
                        [
                            a[part]["updates_per_s"] / b["whole"]["updates_per_s"]
                            for a, b in zip(runs["learner"], runs[name], strict=True)
                        ]
                    )
                    for part in _PARTS
                }
                for name in loops
            },
        }

    def learner_run(self) -> dict[str, Any]:
        """A new `CriticLearner`, which knows nothing of the policy yet, from its first update on."""
        gc.collect()
        reset_peak_memory()
        learner, updates = self._learner(), self.settings.updates
        clock = _UpdateClock(learner)
        marks = [clock.mark()]
        for _ in learner.learn(updates):
            marks.append(clock.mark())
        edge = max(updates // _FIFTH, 1)
        return {
            "start": _between(marks[0], marks[max(updates // _START, 1)]),
            "cold": _between(marks[0], marks[edge]),
            "warm": _between(marks[-1 - edge], marks[-1]),
            "whole": _between(marks[0], marks[-1]),
            "peak_memory_mb": peak_memory_mb(),
        }

    def loop_run(self) -> dict[str, Any]:
        """What one would write first: read a batch, ask the policy at all its successor states, update.

        The same reader, networks, sizes and rows as the learner's. The policy is asked in one call a batch.
        """
        gc.collect()
        reset_peak_memory()
        learner, settings = self._learner(), self.settings
        trainer, length = learner.trainer, self.critic.spec.executed_length
        seconds = {"read_s": 0.0, "policy_s": 0.0, "update_s": 0.0}
        began = time.perf_counter()
        for step in range(settings.loop_updates):
            at = time.perf_counter()
            batch = learner.loader.batch(step)
            assert batch.next_index is not None
            rows = np.flatnonzero(batch.discount > 0)
            observations = [learner.reader.observation(int(number)) for number in batch.next_index[rows]]
            read = time.perf_counter()
            following = np.zeros(
                (len(batch.discount), settings.proposals, *batch.actions.shape[1:]), np.float32
            )
            chunks = self.policy.propose(observations, settings.proposals, rows + step * len(following))
            following[rows] = chunks[:, :, :length]
            asked = time.perf_counter()
            trainer.update(batch, Proposals(following=following))
            done = time.perf_counter()
            for name, spent in zip(seconds, (read - at, asked - read, done - asked), strict=True):
                seconds[name] += spent
        elapsed = time.perf_counter() - began
        shares = {name.replace("_s", "_share"): spent / elapsed for name, spent in seconds.items()}
        whole = {"updates_per_s": settings.loop_updates / elapsed, **shares}
        return {"whole": whole, "peak_memory_mb": peak_memory_mb()}

    def resumed_is_identical(self, updates: int = 20) -> bool:
        """Whether a run that was saved halfway and goes on in a new learner ends with the same weights."""
        whole = self._learner()
        _exhaust(whole, updates)
        with tempfile.TemporaryDirectory(dir=self.folder) as parent:
            folder = Path(parent) / "state"
            first = self._learner()
            _exhaust(first, updates // 2)
            first.save(folder)
            second = self._learner()
            if not second.resume(folder):
                return False
        _exhaust(second, updates)
        return all(
            torch.equal(value, getattr(second.trainer, name).state_dict()[key])
            for name in ("critic", "target")
            for key, value in getattr(whole.trainer, name).state_dict().items()
        )

    def _learner(self) -> CriticLearner:
        settings = self.settings
        gamma = float(self.critic.manifest.get("gamma", 0.98))
        config = online_training(gamma, 3e-4, "policy", settings.seed)
        return CriticLearner(
            self.folder / "replay",
            trainer_from(self.critic, config, self.device),
            self.critic.instructions,
            self.policy,
            LearnerSettings(settings.batch_size, settings.proposals, seed=settings.seed),
        )


class _UpdateClock:
    """Sums up what a learner does, for differences between two moments."""

    def __init__(self, learner: CriticLearner) -> None:
        self._targets, self._updates, self._update_s = learner.targets, 0, 0.0
        update = learner.trainer.update

        def timed(*arguments: Any) -> dict[str, float]:
            began = time.perf_counter()
            metrics = update(*arguments)
            self._update_s += time.perf_counter() - began
            self._updates += 1
            return metrics

        learner.trainer.update = timed  # type: ignore[method-assign,assignment]

    def mark(self) -> dict[str, float]:
        targets = self._targets
        return {
            "at": time.perf_counter(),
            "updates": self._updates,
            "update_s": self._update_s,
            "policy_s": targets.policy_s,
            "hits": targets.hits,
            "misses": targets.misses,
        }


def _between(first: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    """data_wait_share: of the learner, for a batch or its proposals. policy_share: of the same time, spent
    in the policy by the thread that prepares them.
    """
    gone = {name: last[name] - first[name] for name in last}
    return {
        "updates_per_s": gone["updates"] / gone["at"],
        "data_wait_share": 1.0 - gone["update_s"] / gone["at"],
        "policy_share": gone["policy_s"] / gone["at"],
        "hit_rate": gone["hits"] / max(gone["hits"] + gone["misses"], 1.0),
    }


def _exhaust(learner: CriticLearner, updates: int) -> None:
    for _ in learner.learn(updates):
        pass


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest of every figure of equal runs."""
    return {
        name: _summary([run[name] for run in runs])
        if isinstance(value, dict)
        else _spread([run[name] for run in runs])
        for name, value in runs[0].items()
    }


def _short(run: dict[str, Any]) -> str:
    return ", ".join(f"{n} {p['updates_per_s']:.1f}/s" for n, p in run.items() if isinstance(p, dict))
