"""What was recorded is what is read back, across resume and compaction; bad episodes are refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from data_episodes import SPEC, assert_same_episode, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.data import layout
from valueguide.data.columns import array_column, to_numpy
from valueguide.data.compact import compact
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError
from valueguide.types import SOURCES, Candidates, Decision, Scores

ENDINGS = ("success", "failure", "limit")


def record(root, seeds, spec=SPEC):
    with EpisodeWriter(root, spec) as writer:
        return [writer.save(make_episode(s, 4 + s % 3, ENDINGS[s % 3])) for s in seeds]


def test_episodes_come_back_exactly_and_indices_count_up(tmp_path):
    assert record(tmp_path, range(4)) == [0, 1, 2, 3]
    dataset = EpisodeDataset.open(tmp_path)
    assert (dataset.episodes, dataset.frames) == (4, 4 + 5 + 6 + 4)
    for i in range(4):
        assert_same_episode(dataset.to_episode(i), make_episode(i, 4 + i % 3, ENDINGS[i % 3]))
    assert dataset.cameras == ["front", "wrist"]
    assert dataset.instructions == ["put the carrot on the plate", "open the drawer"]
    assert [dataset.instruction[s] for s in dataset.episode_start] == [0, 1, 0, 1]


@pytest.mark.parametrize("scored", [False, True])
def test_a_single_candidate_comes_back(tmp_path, scored):
    episode = make_episode(0, 4)
    for step in episode.steps:
        if step.candidates is not None:
            q = np.float32([[-3.5]])
            step.candidates = Candidates(step.candidates.actions[:1])
            step.decision = Decision(0, "argmax", 0, q[0], Scores(q)) if scored else Decision(0, "no_critic")
            step.planned_chunk = step.candidates.actions[0]
    with EpisodeWriter(tmp_path, dataclasses.replace(SPEC, k=1, members=1)) as writer:
        writer.save(episode)
    assert_same_episode(EpisodeDataset.open(tmp_path).to_episode(0), episode)


def test_low_dimensional_columns_and_final_observations(tmp_path):
    record(tmp_path, range(3))
    dataset = EpisodeDataset.open(tmp_path)
    episodes = [make_episode(i, 4 + i % 3, ENDINGS[i % 3]) for i in range(3)]
    np.testing.assert_array_equal(dataset.episode_start, [0, 4, 9])
    np.testing.assert_array_equal(dataset.episode_end, [4, 9, 15])
    np.testing.assert_array_equal(dataset.action[4:9], [s.action for s in episodes[1].steps])
    np.testing.assert_array_equal(dataset.final_state, [e.final_observation.state for e in episodes])
    np.testing.assert_array_equal(dataset.rows_of("state")[15 + 2], episodes[2].final_observation.state)
    np.testing.assert_array_equal(dataset.episode_success, [True, False, False])
    np.testing.assert_array_equal(dataset.episode_terminated, [True, True, False])
    np.testing.assert_array_equal(dataset.truncated.nonzero()[0], [14])
    assert dataset.source[2] == SOURCES.index("human")
    np.testing.assert_array_equal(
        dataset.image(15 + 1, "wrist"), episodes[1].final_observation.images["wrist"]
    )
    assert [m["seed"] for m in dataset.metadata] == [0, 1, 2]
    assert dataset.column("vg.candidates").shape == (15, 3, 4, 2)
    assert dataset.column("vg.reason")[:2] == ["argmax", ""]


def test_resume_continues_and_compaction_changes_nothing_but_files(tmp_path):
    root = tmp_path / "set"
    record(root, range(3))
    record(root, range(3, 6))
    before = EpisodeDataset.open(root)
    identity = before.dataset_id
    stats = json.loads((root / layout.STATS).read_text())
    (root / "notes.txt").write_text("kept")
    assert compact(root) == 1
    assert len(layout.existing(root, layout.DATA_TEMPLATE)) == 1
    after = EpisodeDataset.open(root)
    assert after.dataset_id == identity
    assert json.loads((root / layout.STATS).read_text()) == stats
    assert (root / "notes.txt").read_text() == "kept"
    assert record(root, [6]) == [6]
    final = EpisodeDataset.open(root)
    for i in range(7):
        assert_same_episode(final.to_episode(i), make_episode(i, 4 + i % 3, ENDINGS[i % 3]))
    assert final.dataset_id != identity
    assert list(tmp_path.iterdir()) == [root]


def test_compaction_respects_the_size_limit_and_runs_twice(tmp_path):
    record(tmp_path / "set", range(4))
    size = layout.numbered(tmp_path / "set", layout.DATA_TEMPLATE, 0).stat().st_size
    assert compact(tmp_path / "set", target_mb=2.5 * size / 2**20) == 2
    assert compact(tmp_path / "set") == 1


def test_compaction_falls_back_to_two_renames_and_a_crash_between_them_is_undone(tmp_path, monkeypatch):
    from valueguide import disk
    from valueguide.data import swap

    root = tmp_path / "set"
    record(root, range(2))
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *a, **k: object())
    compact(root)
    assert EpisodeDataset.open(root).episodes == 2
    root.rename(swap.aside(root))
    assert EpisodeDataset.open(root).episodes == 2


def test_compaction_on_a_full_disk_leaves_the_dataset_unchanged(tmp_path, monkeypatch):
    root = tmp_path / "set"
    record(root, range(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("valueguide.data.compact._merge_data", full)
    with pytest.raises(DataError, match="not compacted, the dataset is unchanged.*No space"):
        compact(root)
    assert EpisodeDataset.open(root).episodes == 2
    assert list(tmp_path.iterdir()) == [root]


def test_statistics_equal_those_of_all_frames(tmp_path):
    record(tmp_path, range(4))
    dataset = EpisodeDataset.open(tmp_path)
    stats = json.loads((tmp_path / layout.STATS).read_text())
    action = stats["action"]
    np.testing.assert_allclose(action["mean"], dataset.action.mean(0), atol=1e-6)
    np.testing.assert_allclose(action["std"], dataset.action.std(0), atol=1e-6)
    np.testing.assert_allclose(action["max"], dataset.action.max(0), atol=1e-6)
    assert action["count"] == [19]
    pixels = np.stack([dataset.image(i, "front") for i in range(19)]) / 255.0
    image = stats["observation.images.front"]
    np.testing.assert_allclose(np.ravel(image["mean"]), pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(np.ravel(image["std"]), pixels.std((0, 1, 2)), atol=1e-6)
    assert np.shape(image["q50"]) == (3, 1, 1)


def test_statistics_of_columns_with_gaps_leave_the_gaps_out(tmp_path):
    episode = make_episode(0)
    bare = make_episode(1, 3)
    for step in bare.steps:
        step.candidates = step.decision = step.planned_chunk = None
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(bare)
        assert json.loads((tmp_path / layout.STATS).read_text())["vg.scores"]["count"] == [0]
        writer.save(episode)
        writer.save(bare)
    stats = json.loads((tmp_path / layout.STATS).read_text())["vg.scores"]
    q = np.concatenate([s.decision.scores.q for s in episode.steps if s.decision])
    np.testing.assert_allclose(stats["mean"], q.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["max"], q.max(0), atol=1e-6)
    assert stats["count"] == [3]


def test_all_episode_rows_have_the_columns_of_the_first(tmp_path):
    """LeRobot cannot open a dataset otherwise; recordings of earlier versions lack the vg statistics."""
    record(tmp_path, [0])
    first = layout.numbered(tmp_path, layout.EPISODES_TEMPLATE, 0)
    old = [n for n in layout.read_parquet(first).column_names if not n.startswith("stats/vg.")]
    layout.write_table(first, layout.read_parquet(first, old))
    stats = json.loads((tmp_path / layout.STATS).read_text())
    layout.write_json(tmp_path / layout.STATS, {n: s for n, s in stats.items() if not n.startswith("vg.")})
    record(tmp_path, [1])
    assert layout.read_parquet(layout.numbered(tmp_path, layout.EPISODES_TEMPLATE, 1)).column_names == old


def test_fewer_candidates_shorter_chunks_and_nan_scores_survive(tmp_path):
    episode = make_episode(0)
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 2, 2)).astype(np.float32)
    nan = np.full((1, 1), np.nan, np.float32)
    episode.steps[0].candidates = Candidates(one)
    episode.steps[0].planned_chunk = one[0]
    episode.steps[0].decision = Decision(0, "non_finite", scores=Scores(nan))
    episode.steps[2].decision = Decision(0, "no_critic")
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(episode)
    back = EpisodeDataset.open(tmp_path).to_episode(0)
    assert_same_episode(back, episode)
    assert back.steps[0].decision.scores.q.shape == (1, 1)


def test_a_step_without_instruction_takes_the_episodes(tmp_path):
    episode = make_episode(0)
    episode.steps[1].observation = dataclasses.replace(episode.steps[1].observation, task="")
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(episode)
    assert EpisodeDataset.open(tmp_path).instructions == [episode.task]


def test_rebuilding_an_episode_reads_only_its_row_groups(tmp_path, monkeypatch):
    record(tmp_path / "set", range(4))
    compact(tmp_path / "set")
    dataset = EpisodeDataset.open(tmp_path / "set")
    monkeypatch.setattr(layout, "read_parquet", lambda *a: pytest.fail("read a whole file"))
    read = []
    groups = layout.read_row_groups
    monkeypatch.setattr(layout, "read_row_groups", lambda p, g, c: (read.extend(g), groups(p, g, c))[1])
    assert_same_episode(dataset.to_episode(2), make_episode(2, 6, "limit"))
    assert set(read) <= {2}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 4),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.sampled_from(["float32", "int64", "bool"]),
    st.integers(0, 2**31),
)
def test_columns_of_any_shape_come_back(count, shape, dtype, seed):
    values = np.random.default_rng(seed).integers(-5, 5, (count, *shape)).astype(dtype)
    feature = {"dtype": dtype, "shape": tuple(shape)}
    column = array_column(values, feature)
    back = to_numpy(column, () if tuple(shape) == (1,) else tuple(shape), "test")
    np.testing.assert_array_equal(back.reshape(values.shape), values)
    assert len(column) == count and back.dtype == values.dtype


def test_jpeg_is_close_and_none_stores_no_pictures(tmp_path):
    smooth = make_episode(0)
    ramp = np.tile(np.arange(0, 240, 15, dtype=np.uint8)[None, :, None], (12, 1, 3))
    for step in smooth.steps:
        step.observation.images["front"] = ramp
    with EpisodeWriter(tmp_path / "jpeg", dataclasses.replace(SPEC, image_format="jpeg")) as writer:
        writer.save(smooth)
    found = EpisodeDataset.open(tmp_path / "jpeg").image(0, "front")
    assert np.abs(found.astype(int) - ramp).max() <= 6
    with EpisodeWriter(tmp_path / "none", dataclasses.replace(SPEC, image_format="none", k=0)) as writer:
        writer.save(smooth)
    bare = EpisodeDataset.open(tmp_path / "none")
    assert bare.cameras == []
    assert "vg.candidates" not in bare.features
    assert bare.to_episode(0).steps[0].candidates is None
    with pytest.raises(DataError, match="camera"):
        bare.image(0, "front")


def test_spec_from_episode_fits_that_episode(tmp_path):
    episode = make_episode(0)
    spec = DatasetSpec.from_episode(episode, 10, horizon=4, k=3, members=2)
    with EpisodeWriter(tmp_path, spec) as writer:
        writer.save(episode)
    assert_same_episode(EpisodeDataset.open(tmp_path).to_episode(0), episode)
    assert DatasetSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fps": 0}, "fps"),
        ({"k": -1}, "k: expected an integer of 0 or more"),
        ({"horizon": 0}, "horizon"),
        ({"image_format": "gif"}, "image_format"),
        ({"action": ()}, "action"),
        ({"cameras": {"a/b": (4, 4)}}, "camera name"),
    ],
)
def test_bad_specs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SPEC, **change)


def _wrong_camera(e):
    e.steps[1].observation.images["frnt"] = e.steps[1].observation.images.pop("front")


def _wrong_image(e):
    e.steps[1].observation.images["front"] = np.zeros((12, 15, 3), np.uint8)


def _float_image(e):
    e.steps[1].observation.images["front"] = np.zeros((12, 16, 3), np.float32)


def _wrong_action(e):
    e.steps[1].action = np.zeros(3, np.float32)


def _nan_action(e):
    e.steps[1].action = np.array([0, np.nan], np.float32)


def _nan_state(e):
    e.steps[1].observation.state[2] = np.nan


def _nan_final(e):
    e.final_observation.state[0] = np.inf


def _no_steps(e):
    e.steps.clear()


def _bad_source(e):
    e.steps[1].source = "ghost"


def _long_chunk(e):
    e.steps[1].planned_chunk = np.zeros((5, 2), np.float32)


def _nan_chunk(e):
    e.steps[1].planned_chunk = np.full((4, 2), np.nan, np.float32)


def _many_candidates(e):
    e.steps[0].candidates = Candidates(np.zeros((4, 4, 2), np.float32))


def _wrong_scores(e):
    e.steps[0].decision = Decision(0, "argmax", scores=Scores(np.zeros((2, 2), np.float32)))


def _huge_seed(e):
    e.steps[0].decision = Decision(0, "softmax", seed=2**63)


def _goes_on_after_the_end(e):
    e.steps[2].truncated = True


def _bad_metadata(e):
    e.metadata["env"] = object()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_wrong_camera, r"step 1: cameras: expected \['front', 'wrist'\], found \['frnt', 'wrist'\]"),
        (_wrong_image, r"step 1: image 'front': expected uint8 \(12, 16, 3\), found uint8 \(12, 15, 3\)"),
        (_float_image, r"step 1: image 'front'.*found float32"),
        (_wrong_action, r"step 1: action: expected shape \(2,\), found shape \(3,\)"),
        (_nan_action, r"step 1: action: expected finite numbers, found nan in dimension 1"),
        (_nan_state, r"step 1: state: expected finite numbers, found nan in dimension 2"),
        (_nan_final, r"final observation: state: expected finite numbers"),
        (_no_steps, "no steps"),
        (_bad_source, "source.*'ghost'"),
        (_long_chunk, r"planned_chunk: expected at most shape \(4, 2\), found shape \(5, 2\)"),
        (_nan_chunk, "planned_chunk: expected finite numbers"),
        (_many_candidates, "candidates: expected at most shape"),
        (_wrong_scores, "scores: expected at most shape"),
        (_huge_seed, "decision seed: expected a 64-bit integer"),
        (_goes_on_after_the_end, "step 2: terminated or truncated, but 2 more steps follow"),
        (_bad_metadata, "metadata: not JSON-serialisable"),
    ],
)
def test_bad_episodes_are_refused_in_one_line_and_nothing_is_lost(tmp_path, spoil, message):
    with EpisodeWriter(tmp_path, SPEC) as writer:
        writer.save(make_episode(0))
        bad = make_episode(1)
        spoil(bad)
        with pytest.raises(DataError, match=message) as caught:
            writer.save(bad)
        assert "\n" not in str(caught.value)
        assert writer.save(make_episode(1)) == 1
    assert_same_episode(EpisodeDataset.open(tmp_path).to_episode(1), make_episode(1))


def test_another_spec_a_second_recorder_and_a_foreign_dataset_are_refused(tmp_path):
    record(tmp_path / "a", [0])
    with pytest.raises(DataError, match=r"another spec: fps: expected 10, found 20. Record into a new"):
        EpisodeWriter(tmp_path / "a", dataclasses.replace(SPEC, fps=20))
    with (
        EpisodeWriter(tmp_path / "a", SPEC) as writer,
        pytest.raises(DataError, match="another process is recording"),
    ):
        EpisodeWriter(tmp_path / "a", SPEC)
    with pytest.raises(DataError, match="recording is closed"):
        writer.save(make_episode(0))
    layout.write_json(tmp_path / "b" / layout.INFO, {"codebase_version": "v3.0"})
    with pytest.raises(DataError, match="not a dataset recorded by valueguide"):
        EpisodeWriter(tmp_path / "b", SPEC)


def test_package_works_with_torch_rclpy_and_mujoco_blocked(tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'rclpy', 'mujoco', 'lerobot', 'datasets'): sys.modules[name] = None\n"
        "from data_episodes import SPEC, make_episode\n"
        "from valueguide.data.writer import EpisodeWriter\n"
        "from valueguide.data.loader import ChunkLoader\n"
        "from valueguide.data.frames import FrameCache\n"
        "from valueguide.data.reader import EpisodeDataset\n"
        "from valueguide.data.compact import compact\n"
        "with EpisodeWriter(sys.argv[1], SPEC) as w: w.save(make_episode(0))\n"
        "compact(sys.argv[1])\n"
        "d = EpisodeDataset.open(sys.argv[1])\n"
        "ChunkLoader(d, 2, batch_size=2, frames=FrameCache.build(d, progress=False)).batch(0)\n"
        "print('fine')\n"
    )
    here = str(__file__).rsplit("/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, cwd=here
    )
    assert done.stdout.strip() == "fine", done.stderr
