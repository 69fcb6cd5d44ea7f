"""Some episodes as a new dataset: what was recorded stays as it was, and LeRobot reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_episodes import SPEC, assert_same_episode, make_episode

from valueguide.data import layout
from valueguide.data.compact import compact
from valueguide.data.reader import EpisodeDataset
from valueguide.data.subset import write_subset
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError

EPISODES = [make_episode(0, 4), make_episode(1, 5, "limit"), make_episode(2, 3), make_episode(3, 6)]


@pytest.fixture(params=["a file each", "one file"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    with EpisodeWriter(tmp_path / "set", SPEC) as writer:
        for episode in EPISODES:
            writer.save(episode)
    if request.param == "one file":
        assert compact(tmp_path / "set") == 1
    return tmp_path / "set"


def test_kept_episodes_are_the_same_to_the_bit(root: Path, tmp_path: Path) -> None:
    source, done = EpisodeDataset.open(root), []
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    write_subset(source, tmp_path / "out", [3, 1], {"why": "test"}, done.append)
    assert sum(done) == 2
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found = EpisodeDataset.open(tmp_path / "out")
    assert found.episode_index.tolist() == [0, 1] and found.frames == 11 and found.outcomes_recorded
    for new, old in enumerate((1, 3)):
        assert_same_episode(found.to_episode(new), EPISODES[old])
        assert found.metadata[new] == source.metadata[old]
    assert layout.read_json(tmp_path / "out/meta/valueguide/subset.json") == {"why": "test"}
    assert np.asarray(found.column("index")).tolist() == list(range(11))
    old = pq.read_table(source.data_files[0]).schema
    assert pq.read_table(found.data_files[0]).schema.equals(old, check_metadata=True)
    for frame in range(found.frames):  # not decoded and encoded again
        was = int(source.episode_start[1]) + frame if frame < 5 else int(source.episode_start[3]) + frame - 5
        camera = found.cameras[0]
        assert found.stored_image(frame, camera) == source.stored_image(was, camera)


def test_statistics_are_those_of_a_recording_of_the_same_episodes(root: Path, tmp_path: Path) -> None:
    write_subset(EpisodeDataset.open(root), tmp_path / "out", [0, 2], {})
    with EpisodeWriter(tmp_path / "wanted", SPEC) as writer:
        for i in (0, 2):
            writer.save(EPISODES[i])
    stats = [layout.read_json(tmp_path / name / layout.STATS) for name in ("out", "wanted")]
    assert stats[0].keys() == stats[1].keys()
    for name, entry in stats[1].items():
        for key, value in entry.items():
            if name != "task_index":  # the instructions keep their numbers, the dropped ones too
                np.testing.assert_allclose(stats[0][name][key], value, atol=1e-6, err_msg=f"{name} {key}")


def test_recording_goes_on_in_it_and_it_is_compacted(root: Path, tmp_path: Path) -> None:
    write_subset(EpisodeDataset.open(root), tmp_path / "out", [0, 3], {})
    with EpisodeWriter(tmp_path / "out", SPEC) as writer:
        assert writer.save(EPISODES[2]) == 2
    identity = EpisodeDataset.open(tmp_path / "out").dataset_id
    assert compact(tmp_path / "out") == 1
    found = EpisodeDataset.open(tmp_path / "out")
    assert found.dataset_id == identity
    for new, old in enumerate((0, 3, 2)):
        assert_same_episode(found.to_episode(new), EPISODES[old])


def test_lerobot_reads_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lerobot.datasets")
    import datasets
    from test_data_lerobot import assert_lerobot_reads

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    write_subset(EpisodeDataset.open(root), tmp_path / "out", [1, 3], {})
    assert_lerobot_reads(tmp_path / "out", [EPISODES[1], EPISODES[3]])


def test_videos_of_lerobots_own_datasets_are_copied_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lerobot = pytest.importorskip("lerobot.datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = {
        "observation.images.top": {"dtype": "video", "shape": (64, 64, 3), "names": ["h", "w", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    }
    made = lerobot.LeRobotDataset.create("local/made", 10, features, root=tmp_path / "made", use_videos=True)
    for episode in range(3):
        for step in range(4 + episode):
            image = np.full((64, 64, 3), 40 * episode + 10 * step, np.uint8)
            made.add_frame(
                {
                    "observation.images.top": image,
                    "action": np.array([episode, step], np.float32),
                    "task": "go",
                }
            )
        made.save_episode()
    made.finalize()
    source = EpisodeDataset.open(tmp_path / "made")
    assert not source.outcomes_recorded and source.episode_success.all()  # a guess, and known as one
    write_subset(source, tmp_path / "out", [0, 2], {})
    for path in (tmp_path / "out/videos").rglob("*.mp4"):
        assert path.read_bytes() == (tmp_path / "made" / path.relative_to(tmp_path / "out")).read_bytes()
    ours = EpisodeDataset.open(tmp_path / "out")
    theirs = lerobot.LeRobotDataset("local/out", root=tmp_path / "out")
    original = lerobot.LeRobotDataset("local/made", root=tmp_path / "made")
    assert (theirs.num_episodes, len(theirs)) == (2, 10)
    for new, old in ((0, 0), (3, 3), (4, 9), (9, 14)):
        assert ours.action[new].tolist() == source.action[old].tolist()
        assert np.array_equal(ours.image(new, "top"), source.image(old, "top"))
        seen, wanted = theirs[new], original[old]
        assert bool((seen["observation.images.top"] == wanted["observation.images.top"]).all())
        assert seen["action"].tolist() == wanted["action"].tolist() and seen["task"] == "go"


def test_wrong_choices_leave_nothing_behind(root: Path, tmp_path: Path) -> None:
    source = EpisodeDataset.open(root)
    (tmp_path / "there").mkdir()
    for out, episodes, error in (
        (tmp_path / "there", [0], ConfigError),
        (root / "inside", [0], ConfigError),
        (tmp_path / "out", [4], ConfigError),
        (tmp_path / "out", [], DataError),
    ):
        with pytest.raises(error):
            write_subset(source, out, episodes, {})
    shutil.rmtree(root / "meta/episodes")
    with pytest.raises(DataError, match="meta/episodes"):
        write_subset(source, tmp_path / "out", [0], {})
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
