"""`train critic --algo aloe` and `--init`: labels, pictures, exact resumption, what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from valueguide.cli import train, train_critic, train_critic_aloe
from valueguide.cli.common import shipped
from valueguide.cli.train_critic_aloe import Source, aloe_run, check_policy, fill_replay
from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import CheckpointError, ConfigError
from valueguide.online.replay import ReplayReader
from valueguide.policies.load import load_policy
from valueguide.progress.columns import FILE, progress_columns, write_progress
from valueguide.testing.fakes import FakeProposer
from valueguide.types import Episode, Observation, Step, UInt8

POLICY, CRITIC = shipped("wxai-state", "policy"), shipped("wxai-state", "critic")
SENTENCE = "open the drawer"


def _record(root: Path, episodes: int, commanders: str = "pppphhhhhhhhhhhh", pictures: bool = False) -> Path:
    """Noise of the shapes of wxai-state; the numbers in it come from the folder's name.

    commanders: p policy (plans of 4), h human, - hold. pictures: of one grey level, which is also state[0].
    """
    spec, rng = LoadedCritic(Path(CRITIC)).spec, np.random.default_rng(list(root.name.encode()))
    level = iter(range(1000))

    def observation() -> Observation:
        number, state = next(level), rng.normal(size=spec.state_dim).astype(np.float32)
        state[0] = number if pictures else state[0]
        images: dict[str, UInt8] = {"front": np.full((4, 6, 3), number % 256, np.uint8)} if pictures else {}
        privileged = rng.normal(size=spec.environment_state_dim).astype(np.float32)
        return Observation(images, state, SENTENCE, 0, None if pictures else privileged)

    shape = DatasetSpec(
        10,
        {"front": (4, 6)} if pictures else {},
        spec.state_names,
        spec.action_names,
        () if pictures else tuple(f"e{i}" for i in range(spec.environment_state_dim)),
        horizon=4,
    )
    with EpisodeWriter(root, shape) as writer:
        for number in range(episodes):
            steps = []
            for t, letter in enumerate(commanders[number % 3 :]):
                step = Step(observation(), rng.uniform(-1, 1, spec.action_dim).astype(np.float32))
                step.source = {"p": "policy", "h": "human", "-": "hold"}[letter]  # type: ignore[assignment]
                if letter == "p":
                    step.chunk_id, step.chunk_step = t // 4, t % 4
                    step.planned_chunk = np.zeros((4, spec.action_dim), np.float32)
                steps.append(step)
            steps[-1].success = steps[-1].terminated = True
            writer.save(Episode(steps, observation(), SENTENCE, {"task_name": "open_drawer"}))
    return root


def _train(out: Path, *words: str, algo: str = "aloe", init: str = CRITIC) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    own = ["--policy", POLICY, "--proposals", "2"] if algo == "aloe" else []
    start = ["--init", init] if init else []
    fixed = ["critic", "--algo", algo, *own, *start, "--device", "cpu", "--batch-size", "8"]
    return train.run(parser.parse_args([*fixed, *words, "--out", str(out)]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two datasets, as options of the command; one has a held-back episode."""
    root = tmp_path_factory.mktemp("aloe")
    folders = [_record(root / "one", 10), _record(root / "two", 2)]
    return [word for folder in folders for word in ("--dataset", str(folder))]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, saved = [*data, "--steps", "7", "--checkpoint-every", "2"], []
    save, update = train_critic.save_training, CriticTrainer.update

    def recorded(folder: Path, trainer: CriticTrainer) -> None:
        save(folder, trainer)
        saved.append(trainer.step)

    monkeypatch.setattr(train_critic, "save_training", recorded)
    whole = _train(tmp_path / "whole", *words)
    assert saved == [2, 4, 6, 7]

    def dies(self: CriticTrainer, *batch: Any) -> dict[str, float]:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CriticTrainer, "update", dies)
        _train(tmp_path / "cut", *words)
    resumed = _train(tmp_path / "cut", *words)
    assert saved[4:] == [2, 4, 6, 7]
    assert resumed["version"] == whole["version"] and resumed["steps"] == 7
    for name in ("td_loss", "q_mean", "rank_correlation"):
        assert resumed["metrics"][name] == whole["metrics"][name]
    states = [(tmp_path / f"{n}.training" / "training.safetensors").read_bytes() for n in ("whole", "cut")]
    assert states[0] == states[1]

    assert 0 < whole["policy_share"] <= 1 and 0 < whole["policy_s"] <= whole["seconds"]
    assert 0 < whole["hit_rate"] < 1 and whole["calls"] >= 1
    assert np.isfinite(whole["metrics"]["rank_correlation"])
    manifest = LoadedCritic(tmp_path / "whole").manifest
    assert manifest["init"] == LoadedCritic(Path(CRITIC)).version
    made_from = json.loads((tmp_path / "whole.replay" / "made_from.json").read_text())
    assert manifest["policy_version"] == made_from["policy"] == load_policy(POLICY).version

    with pytest.raises(ConfigError, match=r"takeover: expected bootstrap, found failure\. Use a new --out"):
        _train(tmp_path / "whole", *words, "--takeover", "bootstrap")


@pytest.mark.parametrize("algo", ["aloe", "iql"])
def test_a_start_from_a_critic_has_its_values_and_keeps_its_sentences(
    data: list[str], tmp_path: Path, algo: str
) -> None:
    _train(tmp_path / "out", *data, "--steps", "0", algo=algo)
    old, new = LoadedCritic(Path(CRITIC)), LoadedCritic(tmp_path / "out")
    for name, value in old.network.state_dict().items():
        assert torch.equal(new.network.state_dict()[name], value), name
    assert new.instructions[0] == SENTENCE and set(new.instructions) == {SENTENCE, *old.instructions}
    for text, row in zip(old.instructions, old.embeddings, strict=True):
        np.testing.assert_array_equal(new.embeddings[new.instructions.index(text)], row)
    np.testing.assert_array_equal(new.normalizers.action.offset, old.normalizers.action.offset)
    fresh = _train(tmp_path / "fresh", *data, "--steps", "2", algo=algo, init="")
    assert LoadedCritic(tmp_path / "fresh").instructions == [SENTENCE] and fresh["steps"] == 2


def test_the_rule_at_a_takeover_reaches_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = _record(tmp_path / "data", 1, "pppp-hhhhh"), []

    def update(self: CriticTrainer, batch: Any, proposals: Any) -> dict[str, float]:
        seen.append(batch)
        self.step += 1
        return {"td_loss": 0.0, "q_mean": 0.0}

    monkeypatch.setattr(CriticTrainer, "update", update)
    for rule in ("failure", "bootstrap"):
        words = ("--dataset", str(folder), "--steps", "1", "--takeover", rule)
        _train(tmp_path / rule, *words)
    gamma = 0.98
    for batch, reward, discount in zip(
        seen, (-1 - gamma - gamma**2 - 50 * gamma**3, -1 - gamma - gamma**2 - gamma**3), (0, gamma**4),
        strict=True,
    ):  # fmt: skip
        plan = batch.source == 0
        assert plan.any() and not plan.all()
        np.testing.assert_allclose(batch.reward[plan], reward, rtol=1e-5)
        np.testing.assert_allclose(batch.discount[plan], discount, rtol=1e-6)
        # The hold between the two commanders is no transition.
        assert len(np.unique(batch.index)) <= 6


def _picture_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, cameras: dict[str, tuple[int, int]]
) -> tuple[list[Observation], list[Any], ReplayReader]:
    """Two updates on two datasets with pictures: what the policy saw, the batches, the replay."""
    datasets = [EpisodeDataset.open(_record(tmp_path / n, 3, pictures=True)) for n in ("one", "two")]
    sources = []
    for number, dataset in enumerate(datasets):
        rows = dataset.rows_of("state")[:, :1]
        sources.append(Source(dataset, [0, 2], np.hstack([rows, -rows, np.full_like(rows, number)])))
    proposer, observed, batches = FakeProposer(4, 5), [], []
    proposer.cameras = cameras  # type: ignore[attr-defined]
    propose, real_update = proposer.propose, CriticTrainer.update

    def watched(observations: Any, k: int, seeds: Any) -> Any:
        observed.extend(observations)
        return propose(observations, k, seeds)

    monkeypatch.setattr(proposer, "propose", watched)
    monkeypatch.setattr(train_critic_aloe, "load_policy", lambda *_: proposer)

    def update(self: CriticTrainer, batch: Any, proposals: Any) -> dict[str, float]:
        batches.append(batch)
        return real_update(self, batch, proposals)

    monkeypatch.setattr(CriticTrainer, "update", update)
    spec = CriticSpec(4, ("a", "b", "c", "d", "e"), 6, cameras={"front": (4, 6)})
    network = NetworkConfig(encoder, feature_dim=3, language_dim=4, hidden=8)
    plain = {n: Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (3, 5, 6)}
    normalizers = Normalizers(plain[5], plain[6], features=plain[3])
    trainer = CriticTrainer(spec, network, TrainConfig("aloe"), normalizers, np.ones((1, 4), np.float32))
    args = argparse.Namespace(
        policy="", batch_size=32, proposals=2, takeover="failure", seed=0, steps=2, out=tmp_path / "out"
    )
    run = aloe_run(args, trainer, [SENTENCE], sources, "")
    assert len(list(run.updates)) == 2
    reader = ReplayReader(tmp_path / "out.replay")
    reader.refresh()
    return observed, batches, reader


def test_the_policy_sees_the_recorded_frames_and_the_critic_their_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed, batches, reader = _picture_run(tmp_path, monkeypatch, "frozen_clip", {"front": (4, 6)})
    assert len(observed) > 10
    for observation in observed:
        assert observation.task == SENTENCE
        assert (observation.images["front"] == int(observation.state[0])).all()
    where: dict[int, set[tuple[int, int]]] = {}
    for batch in batches:
        for state, features, ids in (
            (batch.state, batch.features, batch.index),
            (batch.next_state, batch.next_features, batch.next_index),
        ):
            np.testing.assert_array_equal(features[:, 0], state[:, 0])
            np.testing.assert_array_equal(features[:, 1], -state[:, 0])
            for number, dataset, state_id in zip(state[:, 0], features[:, 2], ids, strict=True):
                where.setdefault(int(state_id), set()).add((int(dataset), int(number)))
    # One id never stands for the states of two datasets.
    assert all(len(found) == 1 for found in where.values())
    assert {dataset for found in where.values() for dataset, _ in found} == {0, 1}
    assert len({segment.episode for segment in reader.segments.values()}) == 4


def test_pictures_that_nobody_looks_at_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, reader = _picture_run(tmp_path, monkeypatch, "frozen_clip", {})
    assert all(segment.images == {} for segment in reader.segments.values())


def test_progress_makes_the_rewards_of_segments_dense(tmp_path: Path) -> None:
    """Each step's potential is SCALE times the progress of its own frame, in the replay learned from."""
    folder = _record(tmp_path / "data", 3)
    dataset = EpisodeDataset.open(folder)
    rng = np.random.default_rng(0)
    row = {"camera": "front", "variant": "real", "status": "ok"}
    rows: list[dict[str, Any]] = []
    for number, (start, end) in enumerate(zip(dataset.episode_start, dataset.episode_end, strict=True)):
        values = [None, *rng.uniform(size=int(end - start) - 1)]
        rows.append(row | {"episode": number, "frames": list(range(len(values))), "progress": values})
    write_progress(folder / FILE, dataset, progress_columns(dataset, rows, "front"), {})
    words = ["--dataset", str(folder), "--steps", "1"]
    _train(tmp_path / "out", *words, "--progress-reward", "20", init="")
    reader = ReplayReader(tmp_path / "out.replay")
    reader.refresh()
    for segment in reader.segments.values():
        known = [v or 0.0 for v in rows[int(segment.episode[-1])]["progress"]]
        expected = np.array([*known, np.nan])[segment.first_step :][: segment.steps + 1] * 20
        assert segment.potential is not None
        np.testing.assert_allclose(segment.potential, expected, rtol=1e-5)
    manifest = LoadedCritic(tmp_path / "out").manifest
    assert manifest["progress_reward"] == {"scale": 20.0, "steps": dataset.frames, "unshaped": 0}
    with pytest.raises(ConfigError, match=r"potentials: expected .* Use a new --out"):
        _train(tmp_path / "out", *words, init="")


def test_a_replay_that_was_cut_off_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(EpisodeDataset.open(_record(tmp_path / "data", 3)), [0, 1, 2], None)
    whole = train_critic_aloe.dataset_segments

    def dies(dataset: EpisodeDataset, i: int, **store: Any) -> Any:
        if i == 2:
            raise KeyboardInterrupt
        return whole(dataset, i, **store)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train_critic_aloe, "dataset_segments", dies)
        fill_replay(tmp_path / "replay", [source], [], {})
    fill_replay(tmp_path / "replay", [source], [], {})
    reader = ReplayReader(tmp_path / "replay")
    reader.refresh()
    found = [(s.episode[-1], s.source) for s in reader.segments.values()]
    assert found == [(str(i), source) for i in range(3) for source in ("policy", "human")]
    assert {s.store for s in reader.segments.values()} == {"offline"}


def test_a_policy_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = Source(EpisodeDataset.open(_record(tmp_path / "data", 1)), [0], None)
    spec = CriticSpec(4, ("a", "b", "c", "d", "e"), 6)
    check_policy(FakeProposer(4, 5), spec, [source])  # type: ignore[arg-type]
    for horizon, size in ((3, 5), (4, 6)):
        with pytest.raises(ConfigError, match=rf"^--policy: chunks: .*, found {horizon} steps of {size}"):
            check_policy(FakeProposer(horizon, size), spec, [source])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo", "iql"], "--policy: expected a policy folder with --algo aloe, and only then"),
        (["--policy", ""], "--policy: expected a policy folder with --algo aloe, and only then"),
        (["--teacher", CRITIC], "--teacher: expected a critic folder with --algo distill, and only then"),
        (["--execute", "3"], "executed_length: expected 3, as in the data, found 4"),
        (["--gamma", "0.9"], r"gamma: expected 0.9, found 0.98. Use --gamma 0.98"),
        (["--encoder", "frozen_clip"], "encoder: expected frozen_clip, found state"),
        (["--proposals", "0"], "proposals: expected 1 or more, found 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_do_not_belong_together_are_refused(
    data: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _train(tmp_path / "out", *data, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_critic_of_another_vision_tower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    monkeypatch.setattr(train_critic, "_tower", lambda clip: (tower, None))
    spec, args = CriticSpec(4, ("a",), 6), argparse.Namespace(init="critic", gamma=0.98)

    def check(weights: dict[str, torch.Tensor]) -> None:
        init = SimpleNamespace(spec=spec, manifest={}, tower_weights=weights)
        train_critic._check_init(args, init, spec, Path("clip"))  # type: ignore[arg-type]

    check({})
    check(tower.state_dict())
    check({name: value.half() for name, value in tower.state_dict().items()})
    for weights in (other.state_dict(), {"weight": tower.weight}):
        with pytest.raises(
            ConfigError, match=r"^--init critic: vision tower: expected that of --backbone clip"
        ):
            check(weights)


def test_a_damaged_start_is_an_error_of_its_folder(data: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a critic folder"):
        _train(tmp_path / "out", *data, init=str(tmp_path / "nowhere"))
