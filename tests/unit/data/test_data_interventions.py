"""Who acted, in valueguide's columns and in each LeRobot convention, without LeRobot itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_episodes import SPEC, make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.cli.main import main
from valueguide.data import interventions_export, layout
from valueguide.data.interventions import CONVENTIONS, IS_INTERVENTION, PENALTY, convention_of
from valueguide.data.interventions_export import export_interventions
from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import ConfigError, DataError
from valueguide.online.segments import dataset_segments
from valueguide.types import SOURCES, Episode, Observation, Step

LETTERS = {"p": "policy", "h": "human", "e": "expert", "_": "hold"}
# A takeover and a hand-back, holds where the commander changes, the end on a hold, a human from the start.
LOGGED = [("pp_hhpp", "success"), ("ph_", "failure"), ("_ppp", "limit"), ("hh", "success"), ("ee", "limit")]
BARE = DatasetSpec(fps=5, cameras={}, state=("x",), action=("dx",), image_format="none")


def logged(seed: int, sources: str, ending: str) -> Episode:
    episode = make_episode(seed, len(sources), ending)
    for step, letter in zip(episode.steps, sources, strict=True):
        step.source = LETTERS[letter]
        step.intervention = letter == "h"
    return episode


def record(root: Path) -> EpisodeDataset:
    with EpisodeWriter(root, SPEC) as writer:
        for seed, (sources, ending) in enumerate(LOGGED):
            writer.save(logged(seed, sources, ending))
    return EpisodeDataset.open(root)


def letters(dataset: EpisodeDataset) -> list[str]:
    initials = {name: letter for letter, name in LETTERS.items()}
    return [
        "".join(initials[SOURCES[s]] for s in dataset.source[start:end])
        for start, end in zip(dataset.episode_start, dataset.episode_end, strict=True)
    ]


def export(dataset: EpisodeDataset, out: Path, convention: str) -> EpisodeDataset:
    export_interventions(dataset, out, convention)
    return EpisodeDataset.open(out)


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


EXPECTED = {
    "dagger": ["pphhpp", "ph", "ppp", "hh", "hh"],
    "hil_serl": ["pphhpp", "ph", "ppp", "hh", "hh"],
    "gym_record": ["hh", "h", "hh", "hh"],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_sources_survive_each_convention_as_far_as_it_can_say_them(tmp_path: Path, convention: str) -> None:
    dataset = record(tmp_path / "set")
    before = content(dataset.root)
    facts = export_interventions(dataset, tmp_path / "out", convention)
    read = EpisodeDataset.open(tmp_path / "out")
    assert letters(read) == EXPECTED[convention]
    assert read.interventions == convention and facts["found"] == "valueguide"
    assert (facts["episodes"], facts["frames"]) == (read.episodes, read.frames)
    assert facts["left_out"] == {"hold": 3, **({"policy": 8} if convention == "gym_record" else {})}
    assert facts["frames_of"]["expert"] == 2
    assert content(dataset.root) == before
    kept = dataset.source != SOURCES.index("hold")
    if convention == "gym_record":
        kept &= dataset.source != SOURCES.index("policy")
    np.testing.assert_array_equal(read.action, dataset.action[kept])
    np.testing.assert_array_equal(read.state, dataset.state[kept])
    np.testing.assert_array_equal(read.environment_state, dataset.environment_state[kept])
    assert [read.instructions[i] for i in read.instruction] == [
        dataset.instructions[i] for i in dataset.instruction[kept]
    ]
    for row, original in enumerate(np.flatnonzero(kept)):
        for camera in SPEC.cameras:
            np.testing.assert_array_equal(read.image(row, camera), dataset.image(int(original), camera))
    again = export(read, tmp_path / "again", convention)  # From a plain LeRobotDataset.
    assert letters(again) == EXPECTED[convention]
    np.testing.assert_array_equal(again.action, read.action)


def test_outcomes_and_rewards_survive_where_the_convention_has_them(tmp_path: Path) -> None:
    dataset = record(tmp_path / "set")
    assert dataset.episode_terminated.tolist() == [True, True, False, True, False]
    online = export(dataset, tmp_path / "hil_serl", "hil_serl")
    assert online.episode_success.tolist() == [True, False, False, True, False]
    assert online.episode_terminated.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(online.column("next.done").nonzero()[0], [5, 7, 12])  # "ph_" ended on "_".
    np.testing.assert_array_equal(online.reward.nonzero()[0], [5, 12])
    demos = export(dataset, tmp_path / "gym_record", "gym_record")
    assert demos.episode_success.tolist() == [False, False, True, False]  # The first was handed back.
    np.testing.assert_array_equal(demos.truncated.nonzero()[0], [1, 2, 6])
    np.testing.assert_array_equal(demos.column("next.done").nonzero()[0], [1, 2, 4, 6])
    dagger = export(dataset, tmp_path / "dagger", "dagger")
    assert not dagger.success.any() and not dagger.terminated.any()
    told = EpisodeDataset.open(tmp_path / "dagger", success=[True, False, False, True, False])
    np.testing.assert_array_equal(told.success, online.success)


def test_segments_are_cut_at_takeovers_in_every_convention(tmp_path: Path) -> None:
    dataset = record(tmp_path / "set")

    def facts(read: EpisodeDataset, i: int) -> list[tuple[str, str, str, int]]:
        return [(s.source, s.end, s.store, s.steps) for s in dataset_segments(read, i)]

    first = [("policy", "takeover", "rollout", 2), ("human", "handback", "correction", 2)]
    assert facts(dataset, 0) == [*first, ("policy", "success", "rollout", 2)]
    online = export(dataset, tmp_path / "hil_serl", "hil_serl")
    assert facts(online, 0) == facts(dataset, 0)
    assert facts(online, 1) == facts(dataset, 1)
    np.testing.assert_array_equal(
        dataset_segments(online, 0)[1].images["front"], dataset_segments(dataset, 0)[1].images["front"]
    )
    # What followed the last frame of a truncated episode is unknown: the segment ends a step earlier.
    dagger = export(dataset, tmp_path / "dagger", "dagger")
    assert facts(dagger, 0) == [*first, ("policy", "truncated", "rollout", 1)]
    demos = export(dataset, tmp_path / "gym_record", "gym_record")
    assert facts(demos, 2) == [("human", "success", "offline", 2)]


def test_takeovers_are_marked_in_the_episodes_read_back(tmp_path: Path) -> None:
    dataset = record(tmp_path / "set")
    for convention in ("dagger", "hil_serl"):
        read = export(dataset, tmp_path / convention, convention)
        marks = [step.intervention for step in read.to_episode(0).steps]
        assert marks == [False, False, True, True, False, False]


def bare(sources: str, rewards: list[float], terminated: bool) -> Episode:
    last = len(sources) - 1
    steps = [
        Step(
            observation=Observation({}, np.array([t], np.float32), "stack"),
            action=np.array([t], np.float32),
            reward=rewards[t],
            terminated=terminated and t == last,
            truncated=not terminated and t == last,
            source=LETTERS[letter],
        )
        for t, letter in enumerate(sources)
    ]
    return Episode(steps, Observation({}, np.array([-1], np.float32), "stack"), "stack", {})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text("phe_", min_size=1, max_size=9), st.booleans()), min_size=1, max_size=3))
def test_any_sequence_of_sources(tmp_path_factory: pytest.TempPathFactory, episodes: list) -> None:
    folder = tmp_path_factory.mktemp("any")
    with EpisodeWriter(folder / "set", BARE) as writer:
        for number, (sources, terminated) in enumerate(episodes):
            rewards = [float(2 ** (t + number)) for t in range(len(sources))]
            writer.save(bare(sources, rewards, terminated))
    dataset = EpisodeDataset.open(folder / "set")
    stripped = [sources.replace("_", "").replace("e", "h") for sources, _ in episodes]
    driven = [run for sources in stripped for run in sources.split("p") if run]
    expected = {
        "dagger": [s for s in stripped if s],
        "hil_serl": [s for s in stripped if s],
        "gym_record": driven,
    }
    for convention in CONVENTIONS:
        if not expected[convention]:
            with pytest.raises(DataError, match="found none"):
                export_interventions(dataset, folder / convention, convention)
            assert not (folder / convention).exists()
            continue
        read = export(dataset, folder / convention, convention)
        assert letters(read) == expected[convention]
        if convention == "hil_serl":
            # No reward is lost but that of holds before anybody moved.
            moved = [float(dataset.reward[s:e][len(text) - len(text.lstrip("_")) :].sum())
                     for s, e, (text, _) in zip(dataset.episode_start, dataset.episode_end, episodes,
                                                strict=True) if text.strip("_")]  # fmt: skip
            written = np.add.reduceat(read.reward, read.episode_start)
            np.testing.assert_array_equal(written, moved)
            ends = read.column("next.done")[read.episode_end - 1]
            assert ends.tolist() == [end for text, end in episodes if text.strip("_")]


def edit_column(root: Path, name: str, values: list | None, dtype: str = "float32", shape: int = 1) -> None:
    """Set, add or (values None) only describe anew a column of a dataset of one data file."""
    info = layout.read_json(root / layout.INFO)
    info["features"][name] = {"dtype": dtype, "shape": [shape], "names": None}
    (root / layout.INFO).write_text(json.dumps(info))
    if values is None:
        return
    path = layout.numbered(root, layout.DATA_TEMPLATE, 0)
    table = layout.read_parquet(path)
    if name in table.column_names:
        table = table.drop_columns([name])
    layout.write_table(path, table.append_column(name, pa.array(values)))


@pytest.mark.parametrize(
    "convention, column, values, message",
    [
        ("dagger", IS_INTERVENTION, [0.0, 1.0, 1.0],
         r"row 1: columns 'intervention' and 'complementary_info.is_intervention': expected the same answer, "
         "found False and True"),
        ("hil_serl", IS_INTERVENTION, [0.0, 0.0, 0.5],
         r"row 2: column 'complementary_info.is_intervention': expected 0 or 1, found 0.5"),
        ("hil_serl", IS_INTERVENTION, [0.0, float("nan"), 1.0],
         r"row 1: column 'complementary_info.is_intervention': expected 0 or 1, found nan"),
        ("hil_serl", IS_INTERVENTION, [0.0, None, 1.0],
         r"column complementary_info.is_intervention: 1 of 3 values are missing"),
        ("dagger", "vg.source", [0, 0, 0],
         r"row 2: columns 'vg.source' and 'intervention': expected the same answer, found policy and an int"),
        ("dagger", "vg.source", [0, 0, 4], r"row 2: column 'vg.source': expected 0 … 3, found 4"),
        ("dagger", "vg.source", [0, -1, 1], r"row 1: column 'vg.source': expected 0 … 3, found -1"),
    ],
)  # fmt: skip
def test_contradictions_are_one_line_that_names_file_and_column(
    tmp_path: Path, convention: str, column: str, values: list, message: str
) -> None:
    with EpisodeWriter(tmp_path / "set", BARE) as writer:
        writer.save(bare("pph", [0.0, 0.0, 1.0], True))
    root = tmp_path / "out"
    export(EpisodeDataset.open(tmp_path / "set"), root, convention)
    edit_column(root, column, values, "int64" if column == "vg.source" else "float32")
    with pytest.raises(DataError, match=r"out/data/chunk-000/file-000.parquet: " + message) as caught:
        EpisodeDataset.open(root)
    assert "\n" not in str(caught.value)


def test_columns_that_agree_are_read(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "set", BARE) as writer:
        writer.save(bare("pph", [0.0, 0.0, 1.0], True))
    read = export(EpisodeDataset.open(tmp_path / "set"), tmp_path / "out", "dagger")
    edit_column(read.root, IS_INTERVENTION, [0.0, 0.0, 1.0])
    assert letters(EpisodeDataset.open(read.root)) == ["pph"]
    edit_column(read.root, "vg.source", [0, 3, 1], "int64")  # A human may hold, and drive without a takeover.
    assert letters(EpisodeDataset.open(read.root)) == ["p_h"]
    edit_column(read.root, "vg.source", [1, 2, 3], "int64")
    assert letters(EpisodeDataset.open(read.root)) == ["he_"]


@pytest.mark.parametrize(
    "dtype, shape, found", [("bool", 2, r"bool \(2,\)"), ("string", 1, r"string \(1,\)")]
)
def test_columns_of_another_form_are_named_with_the_file(
    tmp_path: Path, dtype: str, shape: int, found: str
) -> None:
    with EpisodeWriter(tmp_path / "set", BARE) as writer:
        writer.save(bare("pph", [0.0, 0.0, 1.0], True))
    read = export(EpisodeDataset.open(tmp_path / "set"), tmp_path / "out", "dagger")
    edit_column(read.root, "intervention", None, dtype, shape)
    expected = "meta/info.json: column 'intervention': expected one number or bool a frame, found " + found
    with pytest.raises(DataError, match=expected):
        EpisodeDataset.open(read.root)


def test_the_convention_follows_from_the_columns() -> None:
    one = {"dtype": "float32", "shape": [1], "names": None}

    def found(*names: str) -> str | None:
        return convention_of(dict.fromkeys(names, one), "info.json")

    assert found("action") is None and found("action", "next.reward", "next.done") is None
    assert found(PENALTY) == "gym_record"
    assert found(PENALTY, IS_INTERVENTION) == "hil_serl"
    assert found(PENALTY, IS_INTERVENTION, "intervention") == "dagger"
    assert found("vg.source", "intervention") == "valueguide"


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = record(tmp_path / "set")
    before = content(dataset.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(interventions_export.layout, "write_json", full)
        with pytest.raises(DataError, match="out: not exported: .*No space left"):
            export_interventions(dataset, tmp_path / "out", "dagger")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    for taken, found in ((tmp_path / "set", "one that exists"), (tmp_path / "set" / "out", "inside the dat")):
        with pytest.raises(ConfigError, match=f"expected a new folder, found .*{found}"):
            export_interventions(dataset, taken, "dagger")
    with pytest.raises(ConfigError, match="expected dagger or hil_serl or gym_record, found 'rlhf'"):
        export_interventions(dataset, tmp_path / "out", "rlhf")
    assert content(dataset.root) == before
    (tmp_path / ".out.exporting" / "data").mkdir(parents=True)  # What a kill leaves.
    (tmp_path / ".out.exporting" / "data" / "old").write_text("old")
    export(dataset, tmp_path / "out", "dagger")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]
    assert not (tmp_path / "out" / "data" / "old").exists()


def test_convert_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "set")
    options = ["convert", "--dataset", str(tmp_path / "set"), "--interventions"]
    with pytest.raises(SystemExit) as stop:
        main([*options, "hil_serl", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "facts.json")])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "5 episodes, 15 frames" in printed and "left out: 3 hold" in printed
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["interventions"], facts["found"], facts["left_out"]) == (
        "hil_serl",
        "valueguide",
        {"hold": 3},
    )
    assert letters(EpisodeDataset.open(tmp_path / "out")) == EXPECTED["hil_serl"]
    for arguments, message in (
        (["dagger", "--out", str(tmp_path / "out")], "expected a new folder, found one that exists"),
        (["rlhf", "--out", str(tmp_path / "new")], "invalid choice: 'rlhf'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*options, *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(SystemExit):
        main([*options, "dagger", "--out", str(tmp_path / "new")])
    assert "set: folder not found" in capsys.readouterr().err
