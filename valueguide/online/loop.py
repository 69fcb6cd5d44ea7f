"""`train online`: collect, evaluate, improve, again. Each piece of work is kept, so a run can go on.

A run's folder holds `settings.json`, `replay/`, `rows/` (what was collected), `iteration-N/` (the policy and
the critic after N rounds) and `eval-N/` (episodes on seeds that are never learned from). Iteration 0 is what
the run started from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.config import TrainConfig
from valueguide.critics.trainer import CriticTrainer
from valueguide.critics.warm_start import trainer_from
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import ConfigError, mismatch
from valueguide.evaluation.arms import ArmSettings
from valueguide.evaluation.resume import finished_rows
from valueguide.evaluation.runner import Plan, SuiteMaker, run_plan
from valueguide.evaluation.workers import run_jobs
from valueguide.online.advantage import (
    FeaturesOf,
    Judge,
    PolicyJudge,
    WeightSettings,
    advantage_weights,
    effective_sample_size,
)
from valueguide.online.examples import PolicyExamples, policy_examples
from valueguide.online.improve import ImproveSettings, PolicyImprover
from valueguide.online.learner import CriticLearner, LearnerSettings, online_training
from valueguide.online.loop_settings import OnlineSettings
from valueguide.online.mc_value import MonteCarloValue, ValueSettings
from valueguide.online.replay import ReplayReader, ReplayWriter
from valueguide.online.segments import Segment, dataset_segments, segments_of
from valueguide.online.vision import FrozenTower, frozen_tower
from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.frozen_towers import PictureMemory
from valueguide.policies.load import load_policy, save_policy
from valueguide.types import Episode, Float32

#: (task, seed) -> what happened there.
Job = tuple[str, int]
Collected = tuple[Job, Episode]
#: (suite, arms' settings, arm) -> a function of one job; importable in a new process.
CollectorMaker = Callable[[str, ArmSettings, str], Callable[[Job], Collected]]
Report = Callable[[str], None]


class OnlineRun:
    """One run of one method. make_suite and make_collector must be importable in a new process."""

    def __init__(
        self,
        settings: OnlineSettings,
        folder: Path,
        make_suite: SuiteMaker,
        make_collector: CollectorMaker,
        workers: int = 1,
        say: Report = lambda line: None,
    ) -> None:
        self.settings, self.folder, self.workers, self.say = settings, folder, workers, say
        self._make_suite, self._make_collector = make_suite, make_collector
        self._seen = PictureMemory()
        folder.mkdir(parents=True, exist_ok=True)
        _check_same(folder / "settings.json", settings)

    def run(self) -> dict[str, Any]:
        """Everything that is still to be done; returns the run's rows and its learning log."""
        settings = self.settings
        self._import_offline()
        if settings.method == "none":  # where the curves of all methods begin
            self._evaluate(0, settings.evaluations, settings.eval_seed, settings.arms)
        for number in range(settings.iterations):
            self._collect(number, keep=True)
            if settings.method == "none":
                continue
            self._learn(number + 1)
            if number + 1 < settings.iterations:
                self._evaluate(number + 1, settings.evaluations, settings.eval_seed, (settings.deployed,))
        self._collect(settings.iterations, keep=False)
        self._evaluate(settings.iterations, settings.final, settings.final_seed, settings.arms)
        return self.results()

    def results(self) -> dict[str, Any]:
        """What is there so far, JSON-ready: settings, collected rows, evaluated rows, learning log."""
        evaluations = {}
        for path in sorted(self.folder.glob("eval-*/episodes.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = ("arm", "task", "episode", "success", "steps", "seed", "failure")
            evaluations[path.parent.name] = [{k: row[k] for k in kept} for row in rows]
        collected = {p.parent.name: _lines(p) for p in sorted(self.folder.glob("rows/*/episodes.jsonl"))}
        return {
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "collected": collected,
            "evaluated": evaluations,
            "learning": _lines(self.folder / "learning.jsonl"),
        }

    # -- pieces ----------------------------------------------------------------------------------

    def policy_folder(self, number: int) -> Path:
        """The policy after `number` iterations."""
        unchanged = number == 0 or self.settings.method == "none"
        return Path(self.settings.policy) if unchanged else self.folder / f"iteration-{number}" / "policy"

    def critic_folder(self, number: int) -> Path:
        """The critic after `number` iterations."""
        learned = number > 0 and self.settings.method == "aloe"
        return self.folder / f"iteration-{number}" / "critic" if learned else Path(self.settings.critic)

    def _import_offline(self) -> None:
        marker = self.folder / "offline.json"
        if marker.exists() or self.settings.method == "none":
            return
        shutil.rmtree(self.folder / "replay", ignore_errors=True)
        segments = 0
        with ReplayWriter(self.folder / "replay") as writer:
            for path in self.settings.offline:
                for segment in _offline_segments(Path(path), self.settings):
                    writer.append(segment)
                    segments += 1
        marker.write_text(json.dumps({"segments": segments}))
        self.say(f"{segments} offline segments")

    def _collect(self, number: int, keep: bool) -> None:
        """Episodes with the policy (and critic) after `number` iterations and the operator beside them."""
        settings, name = self.settings, f"collect-{number}"
        log = self.folder / "rows" / name / "episodes.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        plan = {"policy": self.policy_folder(number).name, "number": number}
        rows = finished_rows(log, plan, ())
        done = {(row["task"], row["seed"]) for row in rows}
        first = settings.collect_seed + number * settings.episodes
        jobs = [(t, first + j) for j in range(settings.episodes) for t in settings.tasks]
        todo = [job for job in jobs if job not in done]
        if not todo:
            return
        start = partial(self._make_collector, settings.suite, self._arm_settings(number), settings.deployed)
        stored = self._stored_episodes() if keep else set()
        with ReplayWriter(self.folder / "replay") as writer, log.open("a") as file:
            for (task, seed), episode in run_jobs(
                start, todo, self.workers, lambda j: f"{j[0]}, seed {j[1]}"
            ):
                identity = f"{name}:{task}:{seed}"
                if keep and settings.method != "none" and identity not in stored:
                    for segment in segments_of(episode, identity):
                        writer.append(segment)
                row = _row(task, seed, episode)
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
        self.say(f"{name}: {_summary(rows)}")

    def _stored_episodes(self) -> set[str]:
        """Episodes of which a cut-off run kept segments, perhaps not all: they are left as they are."""
        reader = ReplayReader(self.folder / "replay")
        reader.refresh()
        return {segment.episode for segment in reader.segments.values()}

    def _arm_settings(self, number: int) -> ArmSettings:
        settings = self.settings
        return ArmSettings(
            str(self.policy_folder(number)),
            str(self.critic_folder(number)),
            k=settings.k,
            execute=settings.execute,
        )

    def _evaluate(self, number: int, episodes: int, seed: int, arms: tuple[str, ...]) -> None:
        settings = self.settings
        plan = Plan(settings.suite, settings.tasks, arms, episodes, seed, self._arm_settings(number))
        rows = run_plan(plan, self._make_suite, self.folder / f"eval-{number}", self.workers)
        for arm in arms:
            self.say(f"eval-{number}, {arm}: {_summary([row for row in rows if row['arm'] == arm])}")

    def _learn(self, number: int) -> None:
        """The critic and the policy after `number` iterations; done when its line is in learning.jsonl."""
        done = {line["iteration"] for line in _lines(self.folder / "learning.jsonl")}
        if number in done:
            return
        line: dict[str, Any] = {"iteration": number}
        policy = load_policy(self.policy_folder(number - 1))
        reader = ReplayReader(self.folder / "replay")
        reader.refresh()
        if self.settings.method == "aloe":
            learner = self._learn_critic(number, policy, line)
            judge: Judge | None = PolicyJudge(
                learner.trainer,
                learner.loader.instructions,
                policy,
                4,
                self.settings.seed,
                self._features_of,
            )
        else:
            judge = self._value(line, reader) if self.settings.method == "awr" else None
        self._improve(number, policy, list(reader.segments.values()), judge, line)
        with (self.folder / "learning.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.say(f"learned {json.dumps(line)}")

    def _learn_critic(self, number: int, policy: LeRobotPolicy, line: dict[str, Any]) -> CriticLearner:
        settings, training = self.settings, self.folder / "critic.training"
        loaded = LoadedCritic(Path(settings.critic))
        config = online_training(settings.gamma, settings.critic_rate, settings.backup, settings.seed)
        learner = CriticLearner(
            self.folder / "replay",
            trainer_from(loaded, config),
            loaded.instructions,
            policy,
            LearnerSettings(
                proposals=settings.proposals,
                ratios=settings.critic_shares,
                takeover=settings.takeover,
                seed=settings.seed,
            ),
            features=None if self._tower is None else self._tower.of_segment,
            journal=self.folder / "journal.jsonl",
        )
        learner.resume(training)
        latest: dict[str, float] = {}
        for latest in learner.learn(number * settings.critic_steps):
            if learner.trainer.step % 250 == 0:
                self.say(f"critic step {learner.trainer.step}: td {latest['td_loss']:.2f}")
        learner.save(training)
        line["critic"] = learner.publish(self.critic_folder(number), tower=self._tower)
        line |= {name: latest[name] for name in ("td_loss", "q_mean", "member_spread") if name in latest}
        line |= {
            "policy_share": learner.targets.policy_share,
            "hit_rate": learner.targets.hit_rate,
            "critic_s": learner.seconds,
            "shares": {str(store): share for store, share in learner.loader.shares.items()},
        }
        return learner

    @cached_property
    def _tower(self) -> FrozenTower | None:
        return frozen_tower(LoadedCritic(Path(self.settings.critic)), self.folder / "features")

    @property
    def _features_of(self) -> FeaturesOf | None:
        return None if self._tower is None else self._tower.of_observations

    def _value(self, line: dict[str, Any], reader: ReplayReader) -> MonteCarloValue:
        loaded, settings = LoadedCritic(Path(self.settings.critic)), self.settings
        like: CriticTrainer = trainer_from(loaded, TrainConfig("iql", settings.gamma, seed=settings.seed))
        value = MonteCarloValue(
            like,
            loaded.instructions,
            ValueSettings(settings.critic_steps, seed=settings.seed),
            self._features_of,
        )
        examples = policy_examples(reader.segments.values(), settings.execute, settings.gamma)
        for _, error in value.fit(examples):
            line["value_error"] = error
        return value

    def _improve(
        self,
        number: int,
        previous: LeRobotPolicy,
        segments: Sequence[Segment],
        judge: Judge | None,
        line: dict[str, Any],
    ) -> None:
        settings = self.settings
        offline = [s for s in segments if s.store == "offline"]
        online = [s for s in segments if s.store != "offline"]
        examples = _joined(
            policy_examples(offline, previous.horizon, settings.gamma, every_step=False) if offline else None,
            policy_examples(online, previous.horizon, settings.gamma),
        )
        weights = _weights(examples, judge, settings.weights, line)
        policy = load_policy(settings.policy) if settings.start == "base" else previous
        tuning = ImproveSettings(
            settings.policy_steps,
            learning_rate=settings.learning_rate,
            ratios=settings.policy_shares,
            seed=settings.seed * 1000 + number,
        )
        losses = [loss for _, loss in PolicyImprover(policy, examples, weights, tuning, self._seen).train()]
        folder = self.folder / f"iteration-{number}" / "policy"
        facts = {"method": settings.method, "iteration": number, "seed": settings.seed}
        line["policy"] = save_policy(
            policy.policy, *policy.processors, folder, metadata={**policy.metadata, **facts}
        )
        line["policy_loss"] = float(np.mean(losses[-100:]))


def _weights(
    examples: PolicyExamples, judge: Judge | None, settings: WeightSettings, line: dict[str, Any]
) -> Float32:
    """Without a judge this is imitation: the policy's own rollouts are not imitated, all else is."""
    correction, rollout = examples.in_store("correction"), examples.in_store("rollout")
    if judge is None:
        return np.where(rollout, 0.0, 1.0).astype(np.float32)
    advantage = judge.advantages(examples)
    weights = advantage_weights(advantage, correction, settings)
    line |= {
        "effective_share": effective_sample_size(weights) / len(weights),
        "advantage_std": float(advantage.std()),
        "advantage": {
            store: float(advantage[mine].mean())
            for store in ("offline", "rollout", "correction")
            if (mine := examples.in_store(store)).any()  # type: ignore[arg-type]
        },
    }
    return weights


def _joined(a: PolicyExamples | None, b: PolicyExamples) -> PolicyExamples:
    if a is None:
        return b
    shifted = b.segment + len(a.segments)
    return PolicyExamples(
        [*a.segments, *b.segments],
        np.concatenate([a.segment, shifted]),
        *(
            np.concatenate([getattr(a, n), getattr(b, n)])
            for n in ("frame", "chunks", "known", "store", "mc_return")
        ),  # fmt: skip
    )


def _offline_segments(path: Path, settings: OnlineSettings) -> Iterator[Segment]:
    dataset, taken = EpisodeDataset.open(path), dict.fromkeys(settings.tasks, 0)
    for i, facts in enumerate(dataset.metadata):
        task = str(facts.get("task_name"))
        if taken.get(task, settings.offline_episodes) < settings.offline_episodes:
            taken[task] += 1
            yield from dataset_segments(dataset, i, store="offline")


def _row(task: str, seed: int, episode: Episode) -> dict[str, Any]:
    facts = episode.metadata
    return {
        "task": task,
        "seed": seed,
        "success": episode.success,
        "steps": len(episode.steps),
        "takeovers": facts.get("takeovers", 0),
        "human_steps": facts.get("human_steps", 0),
        "failure": facts.get("failure", ""),
    }


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    text = f"{sum(row['success'] for row in rows)}/{len(rows)} succeed"
    if rows and "takeovers" in rows[0]:
        text += f", {np.mean([row['takeovers'] for row in rows]):.2f} takeovers an episode"
    return text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _check_same(path: Path, settings: OnlineSettings) -> None:
    """Raises ConfigError when the folder holds a run with other settings."""
    wanted = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        found = json.loads(path.read_text())
        different = sorted(k for k in wanted if found.get(k) != wanted[k])
        if different:
            hint = "Use another --out"
            raise ConfigError(mismatch(str(path.parent), "settings", "the same run's", different, hint))
        return
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(wanted, indent=1))
    draft.replace(path)
