"""Per-frame progress: what is an estimate and what is not, on disk and as LeRobot's own reader takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.data.reader import EpisodeDataset
from valueguide.data.schema import DatasetSpec
from valueguide.data.writer import EpisodeWriter
from valueguide.errors import DataError
from valueguide.progress.columns import (
    FILE,
    KINDS,
    progress_columns,
    read_progress,
    spread_out,
    write_progress,
)
from valueguide.types import Episode, Observation, Step

LENGTHS = (6, 4)


def _row(frames: list[int], progress: list[float | None], **facts: Any) -> dict[str, Any]:
    known = {"episode": 0, "camera": "front", "variant": "real", "status": "ok"}
    return {**known, "frames": frames, "progress": progress, **facts}


def _kinds(kind: np.ndarray) -> list[str]:
    return [KINDS[i] for i in kind]


def test_an_episode_by_hand() -> None:
    """Frame 6 is the observation after the last of six actions: it holds up frame 5, which nobody saw."""
    found = spread_out(_row([0, 2, 3, 6], [None, 0.4, 0.1, 0.7]), 6, 10.0)
    assert np.allclose(found.value, [0.0, 0.2, 0.4, 0.1, 0.3, 0.5])
    assert _kinds(found.kind) == ["declared", "between", "estimated", "estimated", "between", "between"]
    assert np.allclose(found.before_s, [0.0, 0.0, 0.2, 0.3, 0.3, 0.3])
    assert np.allclose(found.after_s, [0.0, 0.2, 0.2, 0.3, 0.6, 0.6])


def test_nothing_is_made_up_outside_of_what_is_known() -> None:
    nothing = spread_out(_row([0, 2, 3], [None, None, None], status="malformed"), 4, 10.0)
    for one in (
        nothing,
        spread_out({}, 4, 10.0),
        spread_out(_row([0, 3], [None, 1.0], status="failed"), 4, 1.0),
    ):
        assert np.isnan(one.value).all() and _kinds(one.kind) == ["missing"] * 4
        assert np.isnan(one.before_s).all() and np.isnan(one.after_s).all()
    # Token probability has no declared anchor; frames after the last estimate stay unknown.
    tokens = spread_out(_row([0, 2, 4], [None, 0.2, 0.4], log_probability=[]), 7, 10.0)
    assert np.allclose(tokens.value, [np.nan, np.nan, 0.2, 0.3, 0.4, np.nan, np.nan], equal_nan=True)
    assert _kinds(tokens.kind) == ["missing"] * 2 + ["estimated", "between", "estimated"] + ["missing"] * 2


@settings(deadline=None)  # a busy machine is not an error
@given(st.integers(2, 40), st.sets(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 9999))
def test_estimates_keep_their_values_and_the_rest_lies_between(
    length: int, asked: set[int], seed: int
) -> None:
    frames = [0, *sorted({min(frame, length) for frame in asked})]
    values = [None, *np.random.default_rng(seed).random(len(frames) - 1).tolist()]
    found = spread_out(_row(frames, values), length, 10.0)
    inside = [(frame, value) for frame, value in zip(frames, values, strict=True) if frame < length][1:]
    assert _kinds(found.kind).count("estimated") == len(inside)
    for frame, value in inside:
        assert found.value[frame] == np.float32(value) and found.estimated[frame]
    known = found.value[~np.isnan(found.value)]
    assert len(known) == min(frames[-1] + 1, length)
    assert known.min() >= 0 and known.max() <= max(v for v in values if v is not None) + 1e-6


@pytest.fixture()
def dataset(tmp_path: Path) -> EpisodeDataset:
    spec = DatasetSpec(fps=10, cameras={"front": (4, 4)}, state=("x",), action=("dx",))
    seen = Observation({"front": np.zeros((4, 4, 3), np.uint8)}, np.zeros(1, np.float32), "push it")
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        for length in LENGTHS:
            steps = [Step(seen, np.zeros(1, np.float32)) for _ in range(length)]
            steps[-1].truncated = True
            writer.save(Episode(steps, seen, "push it"))
    return EpisodeDataset.open(tmp_path / "data")


def _written(dataset: EpisodeDataset) -> Path:
    rows = [
        _row([0, 2, 3, 6], [None, 0.4, 0.1, 0.7]),
        _row([0, 2, 4], [None, None, None], episode=1, status="malformed"),
        _row([0, 6], [None, 1.0], camera="side"),
        _row([0, 6], [None, 1.0], variant="blank"),
    ]
    write_progress(
        dataset.root / FILE, dataset, progress_columns(dataset, rows, "front"), {"camera": "front"}
    )
    return dataset.root / FILE


def test_what_is_written_is_read(dataset: EpisodeDataset) -> None:
    _written(dataset)
    found = read_progress(dataset)
    assert np.allclose(found.value, [0.0, 0.2, 0.4, 0.1, 0.3, 0.5, *[np.nan] * 4], equal_nan=True)
    assert found.estimated.tolist() == [False, False, True, True, False, False] + [False] * 4
    assert np.allclose(found.after_s[:6], [0.0, 0.2, 0.2, 0.3, 0.6, 0.6])


def test_lerobots_reward_aligned_training_reads_it(dataset: EpisodeDataset) -> None:
    """Weights by hand, chunks of 2: what falls counts nothing, episode 1 is unknown."""
    rabc = pytest.importorskip("lerobot.rewards.sarm.rabc")
    import torch

    weights = rabc.RABCWeights(
        _written(dataset), chunk_size=2, device=torch.device("cpu"), fallback_weight=0.5
    )
    assert len(weights.progress_lookup) == 6 and weights.progress_lookup[3] == pytest.approx(0.1)
    assert weights.episode_boundaries == {0: {"start": 0, "end": 6}, 1: {"start": 6, "end": 10}}
    raw = weights._compute_weights(np.array([weights._compute_delta(i) for i in range(10)], np.float32))
    # Deltas 0.4, -0.1, -0.1, 0.4, 0.2, 0.0; the last is within 0 and kappa, so soft: (0 - (m - 2s)) / 4s.
    mean, std = 0.8 / 6, np.std([0.4, -0.1, -0.1, 0.4, 0.2, 0.0])
    assert np.allclose(raw, [1, 0, 0, 1, 1, (2 * std - mean) / (4 * std), 0.5, 0.5, 0.5, 0.5], atol=1e-4)


def test_files_of_other_datasets_and_damaged_ones_are_refused(
    dataset: EpisodeDataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="progress score"):
        read_progress(dataset)
    path = _written(dataset)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 9), tmp_path / "short.parquet")
    pq.write_table(table.drop_columns(["progress_kind"]), tmp_path / "columns.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "nameless.parquet")
    (tmp_path / "damaged.parquet").write_bytes(path.read_bytes()[:-40])
    for name, words in (
        ("short", "made for"),
        ("columns", "columns"),
        ("nameless", "made for"),
        ("damaged", "damaged"),
    ):
        with pytest.raises(DataError, match=words):
            read_progress(dataset, tmp_path / f"{name}.parquet")
