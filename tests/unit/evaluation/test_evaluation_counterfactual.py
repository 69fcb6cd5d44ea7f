"""Logged decisions made again: from the right observation, with the same candidates and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.evaluation.counterfactual import Rule, choose_again, observation_at, read_log, rescore
from valueguide.evaluation.counterfactual_results import LOGGED, build_results
from valueguide.evaluation.rollout import rollout
from valueguide.steering.steer import Steerer, SteeringConfig
from valueguide.testing.fakes import FakeBatchCritic, FakeCritic, FakeNanCritic, FakePolicy, FakeReachEnv
from valueguide.types import Candidates, Decision, Episode, Float32, Observation, Scores, Step

SPEC = DatasetSpec(
    fps=10,
    cameras={},
    state=("position", "goal"),
    action=("dx",),
    horizon=4,
    k=4,
    members=2,
    image_format="none",
)


class OppositeCritic(FakeCritic):
    """Prefers what its elder thinks worst."""

    version = "opposite"

    def score(self, features: Observation, actions: Float32) -> Scores:
        return Scores(-super().score(features, actions).q)


def _episode(seed: int, **settings: Any) -> Episode:
    critic = settings.pop("critic", FakeCritic(2))
    steerer = Steerer(FakePolicy(), critic, SteeringConfig(execute=2, **{"k": 4, **settings}))
    return rollout(FakeReachEnv(max_steps=12), steerer, seed, 12, sampling_seed=seed)


def _dataset(root: Path, episodes: Sequence[Episode], spec: DatasetSpec = SPEC) -> EpisodeDataset:
    with EpisodeWriter(root, spec) as writer:
        for episode in episodes:
            writer.save(episode)
    return EpisodeDataset.open(root)


def _replans(episodes: Sequence[Episode]) -> list[Step]:
    return [step for episode in episodes for step in episode.steps if step.candidates is not None]


def test_the_same_critic_and_rule_change_nothing(tmp_path: Path) -> None:
    episodes = [_episode(seed) for seed in range(3)]
    dataset = _dataset(tmp_path / "data", episodes)
    log, critic = read_log(dataset), FakeCritic(2)
    steps = _replans(episodes)
    assert log.executed_length == 2 and log.skipped == {} and len(log.decisions) == len(steps) > 8
    made = rescore(dataset, log, {"same": critic}, Rule())["same"]
    assert critic.encoded == len(steps)  # once a replan
    for step, logged, again in zip(steps, log.decisions, made, strict=True):
        assert step.decision is not None and step.candidates is not None
        np.testing.assert_array_equal(logged.candidates, step.candidates.actions[:, :2])
        seen = observation_at(dataset, logged.frame, ())
        np.testing.assert_array_equal(seen.state, step.observation.state)
        assert seen.task == step.observation.task
        assert (
            (again.index, again.reason)
            == (step.decision.index, "argmax")
            == (logged.decision.index, "argmax")
        )
        np.testing.assert_allclose(again.values, step.decision.values, atol=1e-6)
    assert [d.index for d in choose_again(log, Rule())] == [d.index for d in made]


def test_another_critic_chooses_as_it_would_on_the_robot(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", [_episode(seed) for seed in range(2)])
    log = read_log(dataset)
    made = rescore(dataset, log, {"opposite": OppositeCritic(2), "nan": FakeNanCritic(2)}, Rule())
    for logged, opposite, nan in zip(log.decisions, made["opposite"], made["nan"], strict=True):
        assert logged.decision.values is not None
        assert opposite.index == logged.decision.values.argmin() != logged.decision.index
        assert (nan.index, nan.reason) == (0, "non_finite")


def test_scores_come_in_batches_of_equally_many_candidates(tmp_path: Path) -> None:
    episodes = [_episode(0), _episode(1, k=3), _episode(2, k=3)]
    dataset = _dataset(tmp_path / "data", episodes)
    log, critic = read_log(dataset), FakeBatchCritic(2)
    done: list[int] = []
    made = rescore(dataset, log, {"batch": critic, "plain": FakeCritic(2)}, Rule(), (), done.append)
    counts = [len(_replans([episode])) for episode in episodes]
    assert critic.batches == [(counts[0], 4), (counts[1] + counts[2], 3)] and sum(done) == sum(counts)
    assert [d.index for d in made["batch"]] == [d.index for d in made["plain"]]
    assert [len(d.values) for d in made["plain"] if d.values is not None] == [4] * counts[0] + [3] * sum(
        counts[1:]
    )


def test_a_long_log_is_not_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valueguide.evaluation.counterfactual._BATCH", 4)
    dataset = _dataset(tmp_path / "data", [_episode(0), _episode(1)])
    log, critic = read_log(dataset), FakeBatchCritic(2)
    made = rescore(dataset, log, {"batch": critic}, Rule())["batch"]
    assert max(b for b, _ in critic.batches) == 4
    assert sum(b for b, _ in critic.batches) == len(made) == len(log.decisions)


def test_a_draw_is_repeated_with_the_seed_of_the_log(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", [_episode(seed, beta=0.05) for seed in range(3)])
    log = read_log(dataset)
    logged = [entry.decision for entry in log.decisions]
    assert {d.reason for d in logged} == {"softmax"} and any(d.index != d.values.argmax() for d in logged)
    again = rescore(dataset, log, {"same": FakeCritic(2)}, Rule(beta=0.05, seed=9))["same"]
    assert [(d.index, d.seed) for d in again] == [(d.index, d.seed) for d in logged]
    assert [d.index for d in choose_again(log, Rule(beta=0.05))] == [d.index for d in logged]


def test_without_a_logged_seed_the_draw_depends_on_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("valueguide.evaluation.counterfactual._BATCH", 2)
    dataset = _dataset(tmp_path / "data", [_episode(seed) for seed in range(3)])
    log = read_log(dataset)

    def drawn(seed: int) -> list[int]:
        return [d.index for d in choose_again(log, Rule(beta=1.0, seed=seed))]

    assert drawn(1) == drawn(1) != drawn(2)
    made = rescore(dataset, log, {"c": FakeCritic(2)}, Rule(beta=1.0, seed=1))["c"]
    assert [d.index for d in made] == drawn(1)  # every critic meets the same draws
    assert all(d.seed == -1 for d in choose_again(log, Rule()))


def test_the_critics_spread_limit_holds_as_on_the_robot(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", [_episode(0)])
    log, critic = read_log(dataset), FakeCritic(2, disagreement=0.5)
    critic.spread_limit = 0.4
    made = rescore(dataset, log, {"c": critic}, Rule())["c"]
    assert {(d.index, d.reason) for d in made} == {(0, "spread")}
    free = rescore(dataset, log, {"c": critic}, Rule(spread_limit=False))["c"]
    assert {d.reason for d in free} == {"argmax"}


def test_aggregation_changes_the_choice() -> None:
    scores = Scores(np.array([[-1.0, -3.0], [-4.0, -3.5]], np.float32))
    log = _log([Decision(1, "argmax", 1, np.array([-4.0, -3.5], np.float32), scores)])
    assert choose_again(log, Rule())[0].index == 1
    assert choose_again(log, Rule(aggregate="mean"))[0].index == 0


# What was observed when.


def _stretched(
    plans: Sequence[tuple[int, int]], change: Callable[[list[Step]], None] = lambda steps: None
) -> Episode:
    """plans: (first step that ran, steps that ran) of each; one stamp every 100 ms."""
    rng, steps = np.random.default_rng(0), []
    for chunk, (first, ran) in enumerate(plans):
        candidates = Candidates(rng.normal(size=(3, 4, 1)).astype(np.float32))
        q = rng.normal(size=(2, 3)).astype(np.float32)
        for number in range(ran):
            t = len(steps)
            state = np.array([t, 0.5], np.float32)
            steps.append(
                Step(
                    Observation({}, state, "reach", t * 100_000_000),
                    np.zeros(1, np.float32),
                    chunk_id=chunk,
                    chunk_step=first + number,
                    executed_length=ran,
                    planned_chunk=candidates.actions[0],
                    candidates=candidates if number == 0 else None,
                    decision=Decision(0, "argmax", 0, q.min(0), Scores(q)) if number == 0 else None,
                )
            )
    change(steps)
    steps[-1].truncated = True
    return Episode(steps, Observation({}, np.zeros(2, np.float32), "reach"), "reach")


def test_with_prefetch_the_observation_before_the_plan_is_scored(tmp_path: Path) -> None:
    # E = 4: the first plan runs 4 steps, the others 3, of which one was committed while they were made.
    log = read_log(_dataset(tmp_path / "data", [_stretched([(0, 4), (1, 3), (1, 3), (1, 1)])]))
    assert log.executed_length == 4
    assert [entry.frame for entry in log.decisions] == [0, 3, 6, 9]


def test_the_stamp_of_a_plan_names_its_observation(tmp_path: Path) -> None:
    def hold(steps: list[Step]) -> None:
        """A step of no plan between the observation and the plan that was made for it."""
        steps.insert(
            4,
            Step(
                Observation({}, np.zeros(2, np.float32), "reach", 0), np.zeros(1, np.float32), source="hold"
            ),
        )
        for t, step in enumerate(steps):
            step.observation = replace(step.observation, stamp_ns=t * 100_000_000)

    episode = _stretched([(0, 4), (1, 3)], hold)
    episode.metadata["plans"] = [{"chunk_id": 0, "stamp_ns": 0}, {"chunk_id": 1, "stamp_ns": 300_000_000}]
    log = read_log(_dataset(tmp_path / "data", [episode]))
    assert [entry.frame for entry in log.decisions] == [0, 3]  # by its step alone it would be 4


# What cannot be replayed.


def test_a_log_without_a_choice_is_refused(tmp_path: Path) -> None:
    plain = _dataset(tmp_path / "plain", [_episode(0, k=1, critic=None)], replace(SPEC, k=0))
    with pytest.raises(DataError, match="two or more candidates .*, found none logged"):
        read_log(plain)
    alone = _dataset(tmp_path / "alone", [_episode(0, k=1, critic=None)])
    with pytest.raises(DataError, match="found 4 with fewer than two candidates"):
        read_log(alone)
    human = _episode(0)
    for step in human.steps:
        step.candidates = step.decision = None
    with pytest.raises(DataError, match="found no replans"):
        read_log(_dataset(tmp_path / "human", [human]))


def test_what_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    undecided = _episode(1)
    undecided.steps[0].decision = None
    alone = _episode(0, k=1)
    log = read_log(_dataset(tmp_path / "data", [alone, undecided]))
    assert log.skipped == {"fewer than two candidates": len(_replans([alone])), "no decision": 1}
    assert set(log.episode) == {1}


def test_candidates_shorter_than_what_runs_are_refused(tmp_path: Path) -> None:
    episode = _stretched([(0, 4), (0, 4)])
    short = episode.steps[4]
    assert short.candidates is not None
    short.candidates = Candidates(short.candidates.actions[:, :3])
    with pytest.raises(
        DataError, match="episode 0, step 4: candidates: expected 4 finite steps, found fewer"
    ):
        read_log(_dataset(tmp_path / "data", [episode]))


def test_unscored_decisions_stay_comparable_with_a_critic(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", [_episode(0, critic=None)])
    log = read_log(dataset)
    assert {d.reason for d in choose_again(log, Rule())} == {"no_critic"}
    made = rescore(dataset, log, {"c": FakeCritic(2)}, Rule())
    results = build_results({}, log, {**made, LOGGED: choose_again(log, Rule())}, {})
    assert (
        results["critics"][LOGGED]["rated"] == 0
        and results["critics"][LOGGED]["changed"]["all"]["rate"] is None
    )
    assert results["critics"]["c"]["rated"] == len(log.decisions)
    assert results["critics"]["c"]["against_logged_critic"]["n"] == 0


def test_outcomes_tasks_and_returns_are_those_of_the_episodes(tmp_path: Path) -> None:
    helped, lost = _episode(1), _stretched([(0, 4), (0, 4)])
    helped.steps[-1].source, helped.steps[-1].intervention = "human", True
    won = _episode(0)
    won.metadata["task_name"] = "my_task"
    assert won.success
    log = read_log(_dataset(tmp_path / "data", [won, helped, lost]), gamma=0.5)
    assert log.outcomes == ["success", "helped", "failure"]
    assert log.tasks == ["my_task", "reach the goal", "reach"]
    first = log.returns[log.episode == 0]
    # The last three steps of a success give nothing, each step before -1, discounted by a half.
    starts = np.arange(0, len(won.steps), 2)
    wanted = [-2.0 * (1 - 0.5 ** max(len(won.steps) - 3 - start, 0)) for start in starts]
    np.testing.assert_allclose(first, wanted, rtol=1e-6)
    np.testing.assert_allclose(log.returns[log.episode == 2], -2.0)


def _log(decisions: Sequence[Decision]) -> Any:
    from valueguide.evaluation.counterfactual import Log, LoggedDecision

    chunks = np.zeros((2, 1, 1), np.float32)
    entries = [LoggedDecision(0, 0, chunks, decision, "old") for decision in decisions]
    return Log(entries, 1, ["t"], ["success"], np.zeros(len(entries)), {})
