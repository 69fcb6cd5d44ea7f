"""Frames: which, how large, and an order that gives nothing away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.errors import ConfigError, DataError
from valueguide.progress.frames import frames_digest, sample_positions, shrink, shuffled, video_frames
from valueguide.progress.request import Clip


@settings(deadline=None)
@given(st.integers(2, 500), st.integers(2, 60))
def test_positions_ascend_and_hold_both_ends(length: int, count: int) -> None:
    positions = sample_positions(length, count)
    assert positions[0] == 0 and positions[-1] == length - 1
    assert np.all(np.diff(positions) > 0) and len(positions) == min(length, count)
    gaps = np.diff(positions)
    assert gaps.max() - gaps.min() <= 1


def test_positions_by_hand() -> None:
    assert sample_positions(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert sample_positions(3, 15).tolist() == [0, 1, 2]


@pytest.mark.parametrize("length, count, error", [(10, 1, ConfigError), (1, 5, DataError)])
def test_too_few_frames_are_refused(length: int, count: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="2 or more"):
        sample_positions(length, count)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**31), st.text(max_size=8))
def test_an_order_is_a_permutation_and_repeatable(count: int, seed: int, content: str) -> None:
    order = shuffled(count, seed, content)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, shuffled(count, seed, content))


def test_orders_are_uniform() -> None:
    """All 6 orders of 3 frames, the sorted one too (leaving it out would tell something)."""
    counts = Counter(tuple(shuffled(3, seed, "clip").tolist()) for seed in range(6000))
    assert len(counts) == 6
    expected = 1000.0
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 20.5  # 0.1 % point at 5 degrees of freedom


def test_a_number_says_nothing_about_the_time_of_its_frame() -> None:
    orders = np.stack([shuffled(14, seed, "clip") for seed in range(4000)])
    assert np.all(np.abs(orders.mean(axis=0) - 6.5) < 0.3)  # five standard errors
    correlations = [np.corrcoef(order, np.arange(14))[0, 1] for order in orders]
    assert abs(np.mean(correlations)) < 0.02


def test_the_same_seed_gives_other_clips_unrelated_orders() -> None:
    pairs = [(shuffled(14, seed, "a"), shuffled(14, seed, "b")) for seed in range(500)]
    assert abs(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])) < 0.07
    assert not any(np.array_equal(a, b) for a, b in pairs)


def test_shrink_keeps_the_aspect_ratio_and_never_enlarges() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    assert shrink(image, 320).shape == (240, 320, 3)
    assert shrink(image, 0).shape == image.shape and shrink(image, 1000).shape == image.shape


def test_digests_tell_shape_and_content_apart() -> None:
    one = np.zeros((2, 4, 3, 3), np.uint8)
    assert frames_digest(one) != frames_digest(one.reshape(2, 3, 4, 3))
    other = one.copy()
    other[1, 0, 0, 0] = 1
    assert frames_digest(one) != frames_digest(other) and frames_digest(one) == frames_digest(one.copy())


def test_video_frames(tmp_path: Path) -> None:
    path = tmp_path / "hand.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 16))
    for i in range(11):
        video.write(np.full((16, 32, 3), (0, 0, 20 * i), np.uint8))  # red in OpenCV's order
    video.release()
    frames = video_frames(path, 3)
    assert frames.shape == (3, 16, 32, 3) and frames.dtype == np.uint8
    assert np.allclose(frames[:, 0, 0, 0], [0, 100, 200], atol=6) and frames[-1, 0, 0, 2] < 10
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(DataError, match=name):
            video_frames(tmp_path / name, 3)


@pytest.mark.parametrize(
    "frames, positions",
    [
        (np.zeros((3, 4, 4, 3), np.float32), [0, 1, 2]),
        (np.zeros((3, 4, 4), np.uint8), [0, 1, 2]),
        (np.zeros((1, 4, 4, 3), np.uint8), [0]),
        (np.zeros((3, 4, 4, 3), np.uint8), [0, 1]),
        (np.zeros((3, 4, 4, 3), np.uint8), [0, 2, 2]),
    ],
)
def test_a_clip_checks_itself(frames: np.ndarray, positions: list[int]) -> None:
    with pytest.raises(DataError):
        Clip(frames, "t", np.array(positions))
