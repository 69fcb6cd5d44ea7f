"""LearnedCritic: what it accepts, what it refuses in one line, and the frozen vision tower."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from critics_batches import (
    ACTION_NAMES,
    IMAGE_SPEC,
    INSTRUCTIONS,
    PRIVILEGED,
    STATE,
    make_batch,
    make_trainer,
)

from valueguide.critics.checkpoint import save_critic
from valueguide.critics.scorer import LearnedCritic
from valueguide.errors import CheckpointError, ConfigError, DataError
from valueguide.interfaces import BatchScorer, Critic
from valueguide.types import Observation


def _observation(pictures=True, seed=0):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in IMAGE_SPEC.items()}
    return Observation(
        images=images if pictures else {},
        state=rng.normal(size=STATE).astype(np.float32),
        task=INSTRUCTIONS[0],
        environment_state=None if pictures else rng.normal(size=PRIVILEGED).astype(np.float32),
    )


def _chunks(k, steps=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.1, 0.1, (k, steps, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def state_critic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "critic"
    save_critic(folder, make_trainer(), INSTRUCTIONS, {})
    return LearnedCritic.load(folder)


@pytest.fixture(scope="module")
def image_critic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "critic"
    save_critic(folder, make_trainer(kind="small_film_cnn"), INSTRUCTIONS, {})
    return LearnedCritic.load(folder)


def test_it_is_a_critic(state_critic):
    assert isinstance(state_critic, Critic)
    assert state_critic.spread_limit is None


def test_one_candidate_scores_as_it_does_among_many(image_critic):
    features = image_critic.encode(_observation())
    actions = _chunks(6)
    q = image_critic.score(features, actions).q
    assert q.shape == (2, 6) and q.dtype == np.float32
    for i in range(6):
        np.testing.assert_allclose(
            image_critic.score(features, actions[i : i + 1]).q[:, 0], q[:, i], atol=1e-5
        )


def test_scores_follow_the_candidates_and_only_their_first_steps(image_critic):
    features = image_critic.encode(_observation())
    actions, order = _chunks(5, steps=4), np.array([3, 0, 4, 1, 2])
    q = image_critic.score(features, actions).q
    np.testing.assert_allclose(image_critic.score(features, actions[order]).q, q[:, order], atol=1e-5)
    later = actions.copy()
    later[:, 2:] = 9.0
    assert np.array_equal(image_critic.score(features, later).q, q)
    later[0, 1, 2] += 0.05
    assert not np.array_equal(image_critic.score(features, later).q, q)


def test_float64_actions_score_like_float32(state_critic):
    features = state_critic.encode(_observation(pictures=False))
    actions = _chunks(3)
    q = state_critic.score(features, actions.astype(np.float64)).q
    np.testing.assert_allclose(q, state_critic.score(features, actions).q, atol=1e-6)


def test_the_instruction_and_both_cameras_matter_once_trained(tmp_path):
    trainer = make_trainer(kind="small_film_cnn", warmup_steps=1, critic_rate=1e-2, polyak=1.0)
    for step in range(3):
        trainer.update(make_batch(4, seed=step, kind="small_film_cnn"))
    save_critic(tmp_path / "critic", trainer, INSTRUCTIONS, {})
    critic = LearnedCritic.load(tmp_path / "critic")
    observation, actions = _observation(), _chunks(3)
    changed = [replace(observation, task=INSTRUCTIONS[1])]
    for name in IMAGE_SPEC:
        images = observation.images | {name: 255 - observation.images[name]}
        changed.append(replace(observation, images=images))
    q = critic.score(critic.encode(observation), actions).q
    for other in changed:
        assert np.abs(critic.score(critic.encode(other), actions).q - q).max() > 1e-5


def test_clipped_actions_are_counted(state_critic):
    before = state_critic._normalizers.action.clipped
    state_critic.score(state_critic.encode(_observation(pictures=False)), np.full((2, 2, 3), 5.0, np.float32))
    assert state_critic._normalizers.action.clipped - before == 12
    assert 0 < state_critic.clip_rate <= 1


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 2, 2), (4, 2, 7), (4, 1, 3), (2, 3)])
def test_wrong_candidates_are_refused(state_critic, shape):
    features = state_critic.encode(_observation(pictures=False))
    with pytest.raises(DataError, match=r"candidate shape: expected \(K >= 1, H >= 2, 3\), found"):
        state_critic.score(features, np.zeros(shape, np.float32))


def _image(**change):
    return lambda o: replace(o, images=o.images | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: replace(o, images={}), r"cameras: expected \['front', 'wrist'\], found no images"),
        (lambda o: replace(o, images={"side": o.images["front"]}), r"cameras: .*found \['side'\]"),
        (
            _image(wrist=np.zeros((16, 32, 3), np.uint8)),
            "image 'wrist': expected .*32, 32, 3.* found .*16, 32",
        ),
        (_image(front=np.zeros((3, 32, 32), np.uint8)), "image 'front'"),
        (_image(front=np.zeros((32, 32, 3), np.float32)), "image 'front': .*found float32"),
        (lambda o: replace(o, state=o.state[:-1]), r"state: expected 4 values, found \(3,\)"),
        (
            lambda o: replace(o, state=o.state * np.float32("nan")),
            "state: expected finite numbers, found NaN",
        ),
        (lambda o: replace(o, state=o.state + np.float32("inf")), "state: expected finite numbers"),
    ],
)
def test_wrong_observations_are_refused(image_critic, change, message):
    with pytest.raises(DataError, match=message) as caught:
        image_critic.encode(change(_observation()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "found none"), (np.zeros(3, np.float32), "expected 5 values"), (np.full(5, np.nan), "finite")],
)
def test_wrong_privileged_state_is_refused(state_critic, value, message):
    with pytest.raises(DataError, match=f"environment_state: .*{message}"):
        state_critic.encode(replace(_observation(pictures=False), environment_state=value))


def test_a_foreign_instruction_is_refused(tmp_path):
    class FakeEncoder:
        dim = 6

        def encode(self, sentences):
            return np.eye(6, dtype=np.float32)[[5] * len(sentences)]

    from valueguide.critics.checkpoint import LoadedCritic

    save_critic(tmp_path / "critic", make_trainer(), INSTRUCTIONS, {})
    critic = LearnedCritic(LoadedCritic(tmp_path / "critic"), "critic", FakeEncoder())
    with pytest.raises(ConfigError, match="instruction: expected one of the tasks .*found 'fly'"):
        critic.encode(replace(_observation(pictures=False), task="fly"))


def test_a_fitting_robot_passes(image_critic):
    image_critic.check_compatible(ACTION_NAMES, {**IMAGE_SPEC, "side": (8, 8)}, STATE, 2)
    image_critic.check_compatible()


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        ({"action_names": ("x", "y")}, "action names"),
        ({"action_names": ("y", "x", "grip")}, "action names"),
        ({"state_dim": 5}, "state size: expected 4, found 5"),
        ({"horizon": 1}, "planned steps: expected >= 2, found 1"),
        ({"cameras": {"front": (32, 32)}}, "camera 'wrist': expected .*no such camera"),
        ({"cameras": {**IMAGE_SPEC, "front": (64, 64)}}, r"camera 'front': .*found \(64, 64\)"),
    ],
)
def test_another_robot_or_policy_is_refused(image_critic, robot, message):
    with pytest.raises(CheckpointError, match=f"critic {image_critic.version}: {message}"):
        image_critic.check_compatible(**robot)


def test_devices_other_than_the_cpu_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="device"):
        LearnedCritic.load(tmp_path, device="cuda")


def test_a_frozen_tower_gives_the_features_that_training_was_given(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**settings)).eval()
    trainer = make_trainer(kind="frozen_clip", network={"feature_dim": 16})
    trainer.normalizers.features = replace(
        trainer.normalizers.features, offset=np.full(16, 0.1, np.float32), scale=np.full(16, 2, np.float32)
    )
    folder = tmp_path / "critic"
    save_critic(folder, trainer, INSTRUCTIONS, {}, tower, settings)
    critic = LearnedCritic.load(folder)
    observation, actions = _observation(), _chunks(4)
    with torch.no_grad():
        pictures = torch.stack([torch.from_numpy(observation.images[name]) for name in IMAGE_SPEC])
        cls = tower(pixel_values=pictures.permute(0, 3, 1, 2) / 127.5 - 1).last_hidden_state[:, 0]
    batch = replace(
        make_batch(1, kind="frozen_clip"),
        state=observation.state[None],
        instruction=np.zeros(1, int),
        features=cls.reshape(1, 16).numpy(),
    )
    with torch.no_grad():
        expected = trainer.target.encode(trainer.inputs(batch, following=False))
    features = critic.encode(observation)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    assert critic.score(features, actions).q.shape == (2, 4)

    save_critic(folder, trainer, INSTRUCTIONS, {}, tower)
    with pytest.raises(CheckpointError, match="configuration of its vision tower"):
        LearnedCritic.load(folder)
    save_critic(folder, trainer, INSTRUCTIONS, {}, tower.vision_model.encoder
                if hasattr(tower, "vision_model") else tower.encoder, settings)  # fmt: skip
    with pytest.raises(CheckpointError, match="missing tensors"):
        LearnedCritic.load(folder)


def test_many_observations_score_as_one_by_one(state_critic, image_critic):
    for critic, pictures in ((state_critic, False), (image_critic, True)):
        observations = [_observation(pictures, seed) for seed in range(3)]
        observations[1] = replace(observations[1], task=INSTRUCTIONS[1])
        actions = np.stack([_chunks(4, seed=seed) for seed in range(3)])
        alone = [critic.score(critic.encode(o), a).q for o, a in zip(observations, actions, strict=True)]
        np.testing.assert_allclose(
            critic.score_batch(observations, actions), np.stack(alone, axis=1), rtol=1e-5, atol=1e-6
        )
    assert isinstance(state_critic, BatchScorer)


@pytest.mark.parametrize("shape", [(2, 4, 2, 3), (3, 4, 1, 3), (3, 0, 2, 3), (3, 4, 3), (3, 4, 2, 2)])
def test_a_batch_of_wrong_shape_is_refused(state_critic, shape):
    observations = [_observation(False)] * 3
    with pytest.raises(DataError, match="candidate shape"):
        state_critic.score_batch(observations, np.zeros(shape, np.float32))
