"""Mixing datasets: shares, common instructions and indices, determinism, prefetching, refusals."""

import dataclasses

import numpy as np
import pytest
from data_episodes import SPEC, TASKS, make_episode
from test_data_loader import assert_same_batch

from valueguide.data.loader import ChunkLoader
from valueguide.data.mixture import ChunkMixture
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """12 frames of both tasks, then 6 frames of the second task only."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, seeds in (("a", (0, 1)), ("b", (3,))):
        with EpisodeWriter(folder / name, SPEC) as writer:
            for seed in seeds:
                writer.save(make_episode(seed, 6, "limit"))
    return [EpisodeDataset.open(folder / name) for name in ("a", "b")]


def loaders(datasets, **settings):
    return [ChunkLoader(d, 2, **settings) for d in datasets]


def test_rows_are_those_of_the_single_datasets(datasets):
    singles = loaders(datasets)
    mixture = ChunkMixture(singles, batch_size=64, seed=1)
    assert mixture.instructions == list(TASKS)
    batch = mixture.batch(0)
    assert len(set(batch.index.tolist())) > 10
    for row, index in enumerate(batch.index):
        # The first dataset has 12 frames and 2 final observations.
        dataset, local = (0, index) if index < 14 else (1, index - 14)
        one = singles[dataset].at(np.array([local]))
        for field in dataclasses.fields(batch):
            if field.name in ("index", "next_index", "instruction"):
                continue
            mixed, alone = getattr(batch, field.name), getattr(one, field.name)
            if isinstance(mixed, dict):
                for camera in mixed:
                    np.testing.assert_array_equal(mixed[camera][row], alone[camera][0])
            elif mixed is not None:
                np.testing.assert_array_equal(mixed[row], alone[0])
        task = datasets[dataset].instructions[datasets[dataset].instruction[local]]
        assert mixture.instructions[batch.instruction[row]] == task
        assert batch.next_index[row] == one.next_index[0] + (0, 14)[dataset]


def test_shares_follow_the_weights_and_by_default_the_sizes(datasets):
    def share(weights):
        mixture = ChunkMixture(loaders(datasets, observation="state"), 4000, weights=weights)
        return np.mean(mixture.batch(0).index >= 14)

    assert share(None) == pytest.approx(6 / 18, abs=0.03)
    assert share([1, 3]) == pytest.approx(0.75, abs=0.03)
    assert share([2.0, 0.0]) == 0.0


def test_batches_depend_only_on_seed_and_step_and_prefetching_keeps_them(datasets):
    a, b = (ChunkMixture(loaders(datasets), 8, seed=5) for _ in range(2))
    late = a.batch(6)
    batches = b.iterate(4)
    for step in range(4, 7):
        assert_same_batch(next(batches), a.batch(step))
    batches.close()
    assert 0.0 <= b.wait_share <= 1.0
    assert_same_batch(late, b.batch(6))
    assert (ChunkMixture(loaders(datasets), 8, seed=6).batch(6).index != late.index).any()


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]])
def test_bad_weights(datasets, weights):
    with pytest.raises(ConfigError, match="weights: expected 2 numbers of 0 or more, not all 0"):
        ChunkMixture(loaders(datasets, observation="state"), weights=weights)


def test_datasets_that_do_not_fit_together_are_refused(datasets, tmp_path):
    with pytest.raises(ConfigError, match="loaders and batch size"):
        ChunkMixture([])
    chunks = [ChunkLoader(datasets[0], 2), ChunkLoader(datasets[1], 3)]
    with pytest.raises(DataError, match=r"b: actions: expected \(2, 2\), found \(3, 2\)"):
        ChunkMixture(chunks)
    cameras = [ChunkLoader(datasets[0], 2), ChunkLoader(datasets[1], 2, cameras=["wrist"])]
    with pytest.raises(DataError, match="images: expected"):
        ChunkMixture(cameras)
