"""Both ways with the real LeRobot: it opens our recordings, and its own datasets are readable here."""

import logging
import os
import shutil
import signal
import time

import numpy as np
import pytest
from data_episodes import SPEC, assert_same_episode, make_episode
from test_data_crash import RECORDER, Killed, start, stop_before

from valueguide.data import layout
from valueguide.data.compact import compact
from valueguide.data.loader import ChunkLoader
from valueguide.data.reader import EpisodeDataset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.types import SOURCES

lerobot_datasets = pytest.importorskip("lerobot.datasets")


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def open_lerobot(root, **settings):
    return lerobot_datasets.LeRobotDataset("local/test", root=root, **settings)


def assert_lerobot_reads(root, episodes):
    """Every value of every frame as LeRobot sees it equals the recorded episodes."""
    found = open_lerobot(root)
    assert found.num_episodes == len(episodes)
    assert len(found) == sum(len(e.steps) for e in episodes)
    steps = [(e, i, t, s) for e, episode in enumerate(episodes) for t, s in enumerate(episode.steps)
             for i in [sum(len(x.steps) for x in episodes[:e]) + t]]  # fmt: skip
    for e, i, t, step in steps:
        item = found[i]
        for camera, image in step.observation.images.items():
            seen = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(np.round(seen * 255).astype(np.uint8), image)
        np.testing.assert_array_equal(item["observation.state"].numpy(), step.observation.state)
        np.testing.assert_array_equal(item["action"].numpy(), step.action)
        assert item["task"] == step.observation.task
        assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (e, t, i)
        assert float(item["timestamp"]) == pytest.approx(t / 10)
        assert bool(item["next.success"]) == step.success
        assert bool(item["next.done"]) == (step.terminated or step.truncated)
        assert item["vg.policy_version"] == step.policy_version
        assert int(item["vg.source"]) == SOURCES.index(step.source)
        if step.candidates is not None:
            np.testing.assert_array_equal(item["vg.candidates"].numpy(), step.candidates.actions)
            np.testing.assert_array_equal(item["vg.scores"].numpy(), step.decision.scores.q)
    return found


def test_lerobot_opens_recordings_before_and_after_compaction(tmp_path):
    root = tmp_path / "set"
    episodes = [make_episode(0, 4), make_episode(1, 5, "limit"), make_episode(2, 3)]
    with EpisodeWriter(root, SPEC) as writer:
        for episode in episodes:
            writer.save(episode)
    found = assert_lerobot_reads(root, episodes)
    np.testing.assert_allclose(found.meta.stats["action"]["mean"].shape, (2,))
    assert found.meta.stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    window = open_lerobot(root, delta_timestamps={"action": [0.0, 0.1]})[0]["action"]
    np.testing.assert_array_equal(window.numpy(), [s.action for s in episodes[0].steps[:2]])
    compact(root)
    assert_lerobot_reads(root, episodes)
    with EpisodeWriter(root, SPEC) as writer:
        writer.save(make_episode(3))
    assert_lerobot_reads(root, [*episodes, make_episode(3)])


def test_statistics_equal_lerobots(tmp_path):
    from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats

    episodes = [make_episode(i, 30 + i) for i in range(2)]
    with EpisodeWriter(tmp_path / "set", SPEC) as writer:
        for episode in episodes:
            writer.save(episode)
    features = {"action": {"dtype": "float32", "shape": (2,)}}
    theirs = aggregate_stats(
        [compute_episode_stats({"action": np.stack([s.action for s in e.steps])}, features) for e in episodes]
    )
    ours = open_lerobot(tmp_path / "set").meta.stats["action"]
    for name in ("mean", "std", "min", "max", "count"):
        np.testing.assert_allclose(ours[name], theirs["action"][name], atol=1e-5)
    for name in ("q01", "q10", "q50", "q90", "q99"):  # LeRobot's quantiles come from a histogram.
        np.testing.assert_allclose(ours[name], theirs["action"][name], atol=0.35)


@pytest.mark.faults
def test_lerobot_opens_what_kill_9_left(tmp_path):
    root = tmp_path / "set"
    saved = 0
    for delay in (0.05, 0.11):
        process = start(RECORDER, root, saved)
        printed = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        printed = (printed + process.stdout.read()).split()
        process.wait()
        with EpisodeWriter(root, SPEC):
            pass
        saved = EpisodeDataset.open(root).episodes
        assert saved > int(printed[-1])
        assert_lerobot_reads(root, [make_episode(i) for i in range(saved)][:saved])


def test_lerobot_opens_a_folder_whose_last_save_was_cut_off_before_the_commit(tmp_path, monkeypatch):
    root = tmp_path / "set"
    writer = EpisodeWriter(root, SPEC)
    writer.save(make_episode(0))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_before(patch, layout.INFO, Killed())
        writer.save(make_episode(1))
    assert len(layout.existing(root, layout.DATA_TEMPLATE)) == 2  # The uncommitted files are in place.
    assert_lerobot_reads(root, [make_episode(0)])


def test_files_carry_the_types_for_those_who_open_them_without_lerobot(tmp_path):
    from datasets import Features, load_dataset
    from lerobot.datasets.feature_utils import get_hf_features_from_features

    root = tmp_path / "set"
    with EpisodeWriter(root, SPEC) as writer:
        for i in range(2):
            writer.save(make_episode(i))
    expected = get_hf_features_from_features(SPEC.features())
    for _ in range(2):
        first = layout.numbered(root, layout.DATA_TEMPLATE, 0)
        found = Features.from_arrow_schema(layout.read_parquet(first).schema)
        assert found.keys() == expected.keys()
        for name, kind in expected.items():  # Arrays of 2 or more dimensions are nested lists to them.
            assert found[name] == kind or type(kind).__name__ in ("Array2D", "Array3D")
        frames = load_dataset("parquet", data_files=[str(first)], split="train", streaming=True)
        picture = next(iter(frames))["observation.images.front"]
        np.testing.assert_array_equal(
            np.asarray(picture), make_episode(0).steps[0].observation.images["front"]
        )
        compact(root)


def append_with_lerobot(root, seeds):
    """Record episodes with LeRobot's own writer into our folder, each into a new data file."""
    with EpisodeWriter(root.with_name("copy"), SPEC) as writer:
        for seed in seeds:
            writer.save(make_episode(seed))
    copy = EpisodeDataset.open(root.with_name("copy"))
    made = lerobot_datasets.LeRobotDataset.resume("local/test", root=root)
    made.meta.info.data_files_size_in_mb = 0.001
    columns = [
        n for n, f in SPEC.features().items() if f["dtype"] != "image" and n.startswith(("vg.", "next."))
    ]
    for i, seed in enumerate(seeds):
        rows = copy.recorded(i)
        for t, step in enumerate(make_episode(seed).steps):
            frame = {"task": step.observation.task, "action": step.action}
            frame |= {f"observation.images.{c}": image for c, image in step.observation.images.items()}
            frame["observation.state"] = step.observation.state
            frame["observation.environment_state"] = step.observation.environment_state
            frame["intervention"] = np.array([step.intervention])
            outcome = {n: getattr(step, n.removeprefix("next."), False) for n in columns if "next." in n}
            outcome["next.done"] = step.terminated or step.truncated
            for name in columns:
                value = outcome[name] if name in outcome else rows[name][t]
                dtype = SPEC.features()[name]["dtype"]
                shaped = value if dtype == "string" else np.array(value, dtype)
                frame[name] = shaped.reshape(1) if dtype != "string" and shaped.ndim == 0 else shaped
            made.add_frame(frame)
        made.save_episode()
    made.finalize()


def test_a_folder_that_lerobot_appended_to_is_neither_repaired_away_nor_unreadable(tmp_path, caplog):
    root = tmp_path / "set"
    with EpisodeWriter(root, SPEC) as writer:
        writer.save(make_episode(0))
        writer.save(make_episode(1))
    append_with_lerobot(root, [2, 3])
    assert len(layout.existing(root, layout.DATA_TEMPLATE)) > len(
        layout.existing(root, layout.EPISODES_TEMPLATE)
    )
    with EpisodeWriter(root, SPEC) as writer:
        assert writer.save(make_episode(4)) == 4
    assert not [r for r in caplog.records if "dropped" in r.getMessage()]
    assert_lerobot_reads(root, [make_episode(i) for i in range(5)])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "valueguide.data"):
        dataset = EpisodeDataset.open(root)
    assert [r.getMessage().count("no row for episodes [2, 3]") for r in caplog.records] == [1]
    np.testing.assert_array_equal(dataset.has_final, [True, True, False, False, True])
    np.testing.assert_array_equal(dataset.final_state[2], make_episode(2).steps[-1].observation.state)
    np.testing.assert_array_equal(dataset.image(dataset.frames + 3, "front"), dataset.image(19, "front"))
    assert_same_episode(dataset.to_episode(4), make_episode(4))
    assert dataset.to_episode(2).metadata == {}
    assert dataset.dataset_id
    identity = dataset.dataset_id
    assert "NaN" not in (root / layout.STATS).read_text()  # LeRobot had left it there.
    compact(root)
    assert EpisodeDataset.open(root).dataset_id == identity
    assert_lerobot_reads(root, [make_episode(i) for i in range(5)])


PLAIN = {
    "observation.images.front": {
        "dtype": "image",
        "shape": (32, 48, 3),
        "names": ["height", "width", "channels"],
    },
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    "action": {"dtype": "float32", "shape": (1,), "names": ["a"]},
}


def plain_frame(episode, t, extra):
    picture = np.full((32, 48, 3), 40 * episode + 10 * t, np.uint8)
    picture[:, :24] = 255 - picture[:, :24]
    return {
        "observation.images.front": picture,
        "observation.state": np.array([episode, t], np.float32),
        "action": np.array([10 * episode + t], np.float32),
        "task": ["stack", "sort"][episode % 2],
        **extra,
    }


def make_plain(root, features, extra=lambda e, t: {}, use_videos=False):
    made = lerobot_datasets.LeRobotDataset.create(
        "local/plain", 10, features, root=root, use_videos=use_videos, image_writer_threads=0
    )
    for episode, length in enumerate((4, 3)):
        for t in range(length):
            made.add_frame(plain_frame(episode, t, extra(episode, t)))
        made.save_episode()
    made.finalize()
    return made


def test_plain_image_dataset_is_readable_with_derived_outcomes(tmp_path, caplog):
    make_plain(tmp_path / "plain", PLAIN)
    with caplog.at_level(logging.WARNING, "valueguide.data"):
        dataset = EpisodeDataset.open(tmp_path / "plain")
    rules = [r for r in caplog.records if "every episode counts as a success" in r.getMessage()]
    assert len(rules) == 1
    assert (dataset.frames, dataset.episodes, dataset.action.shape) == (7, 2, (7, 1))
    np.testing.assert_array_equal(dataset.action[:, 0], [0, 1, 2, 3, 10, 11, 12])
    np.testing.assert_array_equal(dataset.terminated.nonzero()[0], [3, 6])
    np.testing.assert_array_equal(dataset.success, dataset.terminated)
    np.testing.assert_array_equal(dataset.reward, [0, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(dataset.final_state, [[0, 3], [1, 2]])
    assert [dataset.instructions[dataset.instruction[i]] for i in (0, 6)] == ["stack", "sort"]
    for row, (episode, t) in {0: (0, 0), 6: (1, 2), 7: (0, 3), 8: (1, 2)}.items():
        expected = plain_frame(episode, t, {})["observation.images.front"]
        np.testing.assert_array_equal(dataset.image(row, "front"), expected)
    batch = ChunkLoader(dataset, 2, gamma=0.98).at(np.array([0]))
    np.testing.assert_allclose([batch.reward[0], batch.discount[0]], [-1, 0])  # r = -1, then 0 and mask 0.
    episode = dataset.to_episode(1)
    assert episode.success and episode.task == "sort" and len(episode.steps) == 3
    assert dataset.spec is None and dataset.dataset_id


def test_success_column_and_success_argument_decide(tmp_path):
    flag = {"next.success": {"dtype": "bool", "shape": (1,), "names": None}}
    flag["intervention"] = flag["next.success"]

    def verdict(episode, t):
        return {"next.success": np.array([episode == 1 and t == 2]), "intervention": np.array([t == 1])}

    make_plain(tmp_path / "plain", {**PLAIN, **flag}, verdict)
    dataset = EpisodeDataset.open(tmp_path / "plain")
    np.testing.assert_array_equal(dataset.episode_success, [False, True])
    np.testing.assert_array_equal(dataset.truncated.nonzero()[0], [3])
    np.testing.assert_array_equal(
        dataset.source[:3], [SOURCES.index(s) for s in ("policy", "human", "policy")]
    )
    told = EpisodeDataset.open(tmp_path / "plain", success=[True, False])
    np.testing.assert_array_equal(told.episode_success, [True, False])
    failed = EpisodeDataset.open(tmp_path / "plain", success=False)
    assert failed.truncated.sum() == 2
    loader = ChunkLoader(failed, 2, gamma=0.5, stop_at_source_change=False)
    np.testing.assert_array_equal(loader.starts, [0, 1, 2, 4, 5])  # What followed frames 3 and 6 is unknown.
    last = loader.at(np.array([1, 2]))
    np.testing.assert_array_equal(last.next_state, [[0, 3], [0, 3]])
    np.testing.assert_allclose(last.discount, [0.25, 0.5])
    with pytest.raises(DataError, match="expected the plans that valueguide records"):
        ChunkLoader(failed, 2, only_replans=True)
    with pytest.raises(DataError, match="one for each of 2 episodes"):
        EpisodeDataset.open(tmp_path / "plain", success=[True])


def test_plain_video_dataset_is_readable(tmp_path):
    video = {**PLAIN, "observation.images.front": {**PLAIN["observation.images.front"], "dtype": "video"}}
    make_plain(tmp_path / "plain", video, use_videos=True)
    dataset = EpisodeDataset.open(tmp_path / "plain")
    theirs = open_lerobot(tmp_path / "plain", video_backend="pyav")
    for row in range(7):
        seen = theirs[row]["observation.images.front"].permute(1, 2, 0).numpy() * 255
        ours = dataset.image(row, "front").astype(float)
        assert np.abs(ours - seen).max() <= 2.0
    next(iter((tmp_path / "plain" / "videos").rglob("*.mp4"))).unlink()
    with pytest.raises(DataError, match="video is missing or damaged"):
        EpisodeDataset.open(tmp_path / "plain").image(0, "front")


def test_valueguide_recordings_refuse_a_success_argument(tmp_path):
    with EpisodeWriter(tmp_path / "set", SPEC) as writer:
        writer.save(make_episode(0))
    with pytest.raises(DataError, match="records outcomes"):
        EpisodeDataset.open(tmp_path / "set", success=True)


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda r: truncate(layout.numbered(r, layout.DATA_TEMPLATE, 1)),
            r"data/chunk-000/file-001.parquet: damaged",
        ),
        (lambda r: truncate(layout.numbered(r, layout.FINALS_TEMPLATE, 0)), r"file-000.parquet: damaged"),
        (lambda r: truncate(r / layout.TASKS), "tasks.parquet: damaged"),
        (
            lambda r: layout.numbered(r, layout.DATA_TEMPLATE, 1).unlink(),
            "episodes in the data files: expected 2",
        ),
        (lambda r: (r / layout.INFO).unlink(), "info.json: file is missing"),
        (lambda r: (r / layout.INFO).write_text("{"), "info.json: not readable as JSON"),
        (lambda r: (r / layout.INFO).write_text("{}"), "info.json: field 'codebase_version' is missing"),
        (lambda r: shutil.rmtree(r), "folder not found"),
        (lambda r: edit(r, "v3.0", "v2.1"), "dataset version: expected v3.x, found v2.1"),
        (lambda r: edit(r, '"action"', '"move"'), "a column 'action'"),
        (lambda r: edit(r, '"total_episodes": 2', '"total_episodes": 0'), "dataset is empty"),
    ],
)
def test_damaged_datasets_are_one_clear_line(tmp_path, spoil, message):
    root = tmp_path / "set"
    with EpisodeWriter(root, SPEC) as writer:
        writer.save(make_episode(0))
        writer.save(make_episode(1))
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        EpisodeDataset.open(root)
    assert "\n" not in str(caught.value)


def edit(root, old, new):
    path = root / layout.INFO
    path.write_text(path.read_text().replace(old, new))


def test_an_empty_recording_and_a_damaged_picture(tmp_path):
    with EpisodeWriter(tmp_path / "empty", SPEC):
        pass
    with pytest.raises(DataError, match="empty"):
        EpisodeDataset.open(tmp_path / "empty")
    with EpisodeWriter(tmp_path / "set", SPEC) as writer:
        writer.save(make_episode(0))
    path = layout.numbered(tmp_path / "set", layout.DATA_TEMPLATE, 0)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x89PNG", b"\x00PNG"))
    dataset = EpisodeDataset.open(tmp_path / "set")
    with pytest.raises(DataError, match="not a readable picture"):
        dataset.image(0, "front")
    with pytest.raises(DataError, match="row: expected 0 … 5, found 6"):
        dataset.image(6, "front")
