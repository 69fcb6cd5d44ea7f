"""The loader: true successors, determinism, prefetch equality, frame cache."""

import dataclasses
import shutil
import time

import numpy as np
import pytest
from data_episodes import SPEC, make_episode

from valueguide.data.compact import compact
from valueguide.data.frames import FrameCache
from valueguide.data.loader import ChunkLoader
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "set"
    with EpisodeWriter(folder, SPEC) as writer:
        for seed, ending in enumerate(("success", "failure", "limit")):
            writer.save(make_episode(seed, 6, ending))
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return EpisodeDataset.open(root)


def assert_same_batch(a, b):
    for field in dataclasses.fields(a):
        first, second = getattr(a, field.name), getattr(b, field.name)
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            for camera in first:
                np.testing.assert_array_equal(first[camera], second[camera])
        else:
            np.testing.assert_array_equal(first, second)


def test_last_transition_bootstraps_from_the_final_observation_with_its_picture(dataset):
    batch = ChunkLoader(dataset, 3, gamma=0.98).at(np.array([17, 5, 11, 1]))
    final = make_episode(2, 6, "limit").final_observation
    np.testing.assert_array_equal(batch.next_state[0], final.state)
    np.testing.assert_array_equal(batch.next_images["front"][0], final.images["front"])
    np.testing.assert_allclose(batch.discount, [0.98, 0, 0, 0.98], rtol=1e-6)
    np.testing.assert_allclose(batch.reward, [-1, 0, -50, -1], rtol=1e-5)
    np.testing.assert_array_equal(batch.valid.sum(1), [1, 1, 1, 1])  # Frame 2 is human: the chunk stops.
    np.testing.assert_array_equal(batch.actions[3, 0], dataset.action[1])
    assert not batch.actions[3, 1:].any()
    np.testing.assert_array_equal(batch.instruction, [0, 0, 1, 0])
    assert batch.environment_state is None


def test_kinds_of_observation(dataset):
    state = ChunkLoader(dataset, 2, observation="state", batch_size=4).batch(0)
    assert state.images == {} and state.environment_state.shape == (4, 1)
    np.testing.assert_array_equal(state.environment_state, dataset.environment_state[state.index])
    table = np.random.default_rng(0).normal(size=(dataset.rows, 5)).astype(np.float32)
    loader = ChunkLoader(dataset, 2, observation="features", features=table, batch_size=4)
    batch = loader.batch(0)
    np.testing.assert_array_equal(batch.features, table[batch.index])
    np.testing.assert_array_equal(batch.next_features, table[loader.transitions.successor[batch.index]])
    assert batch.images == {}


def test_batches_depend_only_on_seed_and_step(dataset):
    a, b = (ChunkLoader(dataset, 2, batch_size=8, seed=3) for _ in range(2))
    late = a.batch(7)
    for step in range(5):
        b.batch(step)
    assert_same_batch(late, b.batch(7))
    assert (a.batch(8).index != late.index).any()
    assert (ChunkLoader(dataset, 2, batch_size=8, seed=4).batch(7).index != late.index).any()


def test_prefetching_gives_the_same_batches_and_resumes(dataset):
    loader = ChunkLoader(dataset, 2, batch_size=4)
    batches = loader.iterate(3)
    for step in range(3, 8):
        assert_same_batch(next(batches), loader.batch(step))
    batches.close()


def test_wait_share_is_low_for_a_slow_learner_and_high_for_a_fast_one(dataset, monkeypatch):
    loader = ChunkLoader(dataset, 2, batch_size=4, observation="state")
    make = loader.batch
    monkeypatch.setattr(loader, "batch", lambda step: (time.sleep(0.01), make(step))[1])
    fast = loader.iterate()
    for _ in range(10):
        next(fast)
    assert loader.wait_share > 0.7
    fast.close()
    slow = loader.iterate()
    for _ in range(10):
        next(slow)
        time.sleep(0.03)
    assert loader.wait_share < 0.3
    slow.close()


def test_an_error_in_the_background_reaches_the_learner(dataset, monkeypatch):
    loader = ChunkLoader(dataset, 2, batch_size=4)

    def damaged(rows, camera):
        raise DataError("frame 3 is damaged")

    monkeypatch.setattr(loader, "_frames", type("FakeFrames", (), {"images": staticmethod(damaged)})())
    with pytest.raises(DataError, match="frame 3 is damaged"):
        next(loader.iterate())


def test_episode_subset(dataset):
    index = ChunkLoader(dataset, 2, batch_size=200, episodes=[1], observation="state").batch(0).index
    assert set(index) == set(range(6, 12))


def test_frame_cache_serves_the_same_pictures_and_is_reused(dataset, tmp_path, monkeypatch):
    cache = FrameCache.build(dataset, tmp_path, progress=False)
    for row in (0, 7, dataset.frames, dataset.rows - 1):
        np.testing.assert_array_equal(cache.image(row, "wrist"), dataset.image(row, "wrist"))
    assert cache.maps["front"].shape == (dataset.rows, 12, 16, 3)
    assert not cache.maps["front"].flags.writeable
    decoded = ChunkLoader(dataset, 2, batch_size=4)
    mapped = ChunkLoader(dataset, 2, batch_size=4, frames=cache)
    assert_same_batch(decoded.batch(1), mapped.batch(1))
    monkeypatch.setattr(EpisodeDataset, "image", lambda *a: pytest.fail("decoded again"))
    FrameCache.build(dataset, tmp_path, progress=False)


def test_compaction_keeps_the_frame_cache(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "set")
    FrameCache.build(EpisodeDataset.open(tmp_path / "set"), progress=False)
    compact(tmp_path / "set")
    dataset = EpisodeDataset.open(tmp_path / "set")
    monkeypatch.setattr(EpisodeDataset, "image", lambda *a: pytest.fail("decoded again"))
    assert FrameCache.build(dataset, progress=False).folder.is_relative_to(tmp_path / "set")


def test_a_full_disk_is_an_error_before_the_map_is_written(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("valueguide.data.frames.os.posix_fallocate", full)
    with pytest.raises(DataError, match="frame cache not built.*No space left"):
        FrameCache.build(dataset, tmp_path, progress=False)
    assert not list(tmp_path.rglob("frames.npy"))


def test_only_replans_starts_at_plans_and_stays_within_them(tmp_path):
    """Plans of two steps, as `make_episode` makes them; frame 2 is human; frame 5 belongs to no plan."""
    episode = make_episode(0, 6, "limit")
    episode.steps[5].chunk_id, episode.steps[5].chunk_step = -1, 0
    episode.steps[4].chunk_id = 7
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(episode)
    loader = ChunkLoader(EpisodeDataset.open(tmp_path), 4, gamma=0.5, only_replans=True)
    np.testing.assert_array_equal(loader.starts, [0, 2, 4, 5])
    batch = loader.at(loader.starts)
    np.testing.assert_array_equal(batch.valid.sum(1), [2, 1, 1, 1])
    np.testing.assert_array_equal(loader.transitions.successor[loader.starts], [2, 3, 5, 6])
    assert set(loader.batch(0).index) <= {0, 2, 4, 5}


def test_a_prefetched_plan_starts_after_its_committed_steps(tmp_path):
    """With prefetch a plan's first executed step is its step 1: it starts there all the same."""
    episode = make_episode(0, 6, "limit")
    for number, step in enumerate(episode.steps):
        step.source, step.intervention = "policy", False
        step.chunk_id, step.chunk_step = number // 3, 1 + number % 3
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(episode)
    loader = ChunkLoader(EpisodeDataset.open(tmp_path), 4, gamma=0.5, only_replans=True)
    np.testing.assert_array_equal(loader.starts, [0, 3])


def test_interrupted_cache_build_is_not_taken_for_finished(dataset, tmp_path, monkeypatch):
    image = EpisodeDataset.image

    def interrupted(self, row, camera):
        if row == 5:
            raise KeyboardInterrupt
        return image(self, row, camera)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpisodeDataset, "image", interrupted)
        FrameCache.build(dataset, tmp_path, progress=False)
    cache = FrameCache.build(dataset, tmp_path, progress=False)
    np.testing.assert_array_equal(cache.image(9, "front"), dataset.image(9, "front"))
    (tmp_path / dataset.dataset_id / "front" / "frames.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="damaged frame cache"):
        FrameCache.build(dataset, tmp_path, progress=False)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"batch_size": 0}, ConfigError, "batch size"),
        ({"observation": "video"}, ConfigError, "observation"),
        ({"executed_length": 0}, ConfigError, "executed length"),
        ({"observation": "features"}, DataError, r"features: expected shape \(21, F\), found none"),
        ({"cameras": ["top"]}, DataError, r"cameras.*found \['top'\]"),
        ({"episodes": [3]}, DataError, "episodes: expected indices 0 … 2"),
        ({"episodes": []}, DataError, "episodes"),
    ],
)
def test_bad_arguments(dataset, settings, error, message):
    with pytest.raises(error, match=message):
        ChunkLoader(dataset, **{"executed_length": 2, **settings})


def test_a_plan_that_ended_the_episode_is_given_whole_where_it_is_known(tmp_path):
    """A failure at frame 5, step 0 of a plan of 4 steps; a success, from its frame 3 on, of no plan."""
    failed, won = make_episode(0, 6, "failure"), make_episode(1, 6, "success")
    failed.steps[2].source, failed.steps[2].intervention = "policy", False
    failed.steps[5].chunk_id, failed.steps[5].chunk_step = 3, 0
    plan = failed.steps[5].planned_chunk = np.arange(8, dtype=np.float32).reshape(4, 2)
    for step in won.steps:
        step.source, step.chunk_id, step.planned_chunk = "human", -1, None
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(failed)
        writer.save(won)
    dataset = EpisodeDataset.open(tmp_path)
    loader = ChunkLoader(dataset, 3, only_replans=True, whole_plans=True)
    batch = loader.at(np.array([4, 5, 8, 9, 10]))
    np.testing.assert_array_equal(
        batch.valid, np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]])
    )
    np.testing.assert_array_equal(batch.discount == 0, [False, True, True, True, True])
    np.testing.assert_array_equal(batch.actions[1], [failed.steps[5].action, plan[1], plan[2]])
    np.testing.assert_array_equal(batch.actions[2], [s.action for s in won.steps[2:5]])
    assert ChunkLoader(dataset, 3, only_replans=True).at(np.array([5])).valid.sum() == 1
