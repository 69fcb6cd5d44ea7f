"""The frozen tower sees each frame once, whoever asks, and says what the critic itself would see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from valueguide.cli.common import shipped
from valueguide.critics.checkpoint import LoadedCritic
from valueguide.critics.scorer import LearnedCritic
from valueguide.online.segments import segments_of
from valueguide.online.vision import FrozenTower, frozen_tower
from valueguide.types import Episode, Observation, Step

STEPS = 5


@pytest.fixture(scope="module")
def loaded() -> LoadedCritic:
    return LoadedCritic(Path(shipped("wxai", "critic")))


@pytest.fixture
def seen(loaded):
    rng = np.random.default_rng(0)
    images = {c: (STEPS + 1, *size, 3) for c, size in loaded.spec.cameras.items()}
    pictures = {c: rng.integers(0, 256, shape, np.uint8) for c, shape in images.items()}
    state = np.zeros(loaded.spec.state_dim, np.float32)
    return [
        Observation({c: p[i] for c, p in pictures.items()}, state, loaded.instructions[0])
        for i in range(STEPS + 1)
    ]


@pytest.fixture
def tower(loaded, tmp_path) -> FrozenTower:
    made = frozen_tower(loaded, tmp_path)
    assert made is not None
    return made


def stacked(seen):
    return {camera: np.stack([o.images[camera] for o in seen]) for camera in seen[0].images}


def test_features_are_the_critics_own_and_made_once(tower, loaded, seen, monkeypatch):
    expected = LearnedCritic(loaded, "").vision_features(stacked(seen))
    np.testing.assert_allclose(tower.of_observations(seen[:4]), expected[:4], atol=1e-4)
    asked = []
    original = tower._critic.vision_features
    monkeypatch.setattr(
        tower._critic,
        "vision_features",
        lambda images: asked.append(len(images[next(iter(images))])) or original(images),
    )
    np.testing.assert_allclose(tower.of_observations(seen[::-1]), expected[::-1], atol=1e-4)
    assert asked == [2], "only the two frames that it had not seen"


def test_a_segments_features_outlive_the_process(loaded, seen, tmp_path, monkeypatch):
    action = np.zeros(loaded.spec.action_dim, np.float32)
    steps = [Step(o, action, source="expert") for o in seen[:-1]]
    steps[-1].terminated = steps[-1].success = True
    segment = segments_of(Episode(steps, seen[-1], seen[0].task), "one")[0]
    first = frozen_tower(loaded, tmp_path).of_segment(7, segment)
    assert first.shape[0] == STEPS + 1
    np.testing.assert_allclose(first, LearnedCritic(loaded, "").vision_features(stacked(seen)), atol=1e-4)
    again = frozen_tower(loaded, tmp_path)
    monkeypatch.setattr(again._critic, "vision_features", lambda images: pytest.fail("encoded again"))
    np.testing.assert_array_equal(again.of_segment(7, segment), first)


def test_a_critic_of_states_has_no_tower(tmp_path):
    assert frozen_tower(LoadedCritic(Path(shipped("wxai-state", "critic"))), tmp_path) is None
