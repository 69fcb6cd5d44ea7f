"""The base policy's trainer and the backbone's losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from valueguide.policies.backbone import LabelHeads, PictureSet, pixels_to_model, train_vision
from valueguide.policies.clip_assets import build_clip_folder
from valueguide.policies.load import load_policy, save_policy
from valueguide.policies.train import PolicyData, PolicySize, PolicyTrainer, make_config
from valueguide.types import Observation

_SENTENCES = ("open the drawer", "press the button")
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_SIZES = {"present": 3, "position": 9, "from_hand": 9, "heading": 4, "joints": 2, "pixel": 12}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "clip"
    vision = _TOWER | {"image_size": 64, "patch_size": 16}
    text = _TOWER | {"max_position_embeddings": 32}
    return build_clip_folder(folder, _SENTENCES, vision, text, vocab_size=300, seed=0, projection_dim=32)


def _data(features: bool) -> PolicyData:
    """Two tasks whose actions differ only by the instruction."""
    rng = np.random.default_rng(0)
    count = 120
    instruction = np.repeat([0, 1], count // 2)
    actions = np.where(instruction[:, None] == 0, 0.8, -0.8) + rng.normal(0, 0.02, (count, 2))
    actions[0], actions[1] = -1.0, 1.0  # so that the range is not just the two modes
    last = np.repeat(np.arange(9, count, 10), 10)
    return PolicyData(
        state=rng.normal(size=(count, 3)).astype(np.float32),
        actions=actions.astype(np.float32),
        last=last,
        instruction=instruction,
        instructions=_SENTENCES,
        features=rng.normal(size=(count, 2, 32)).astype(np.float32) if features else None,
    )


def test_state_policy_learns_to_follow_instructions_and_reloads_equal(clip: Path, tmp_path: Path) -> None:
    size = PolicySize(horizon=4, hidden_dim=32, num_layers=1, num_heads=2, flow_steps=4, learning_rate=5e-3)
    config = make_config(size, str(clip), 3, 2, {})
    trainer = PolicyTrainer(config, _data(False), {}, append_environment_state=False, seed=1)
    losses = [loss for _, loss in trainer.train(250, 64)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    save_policy(trainer.policy, trainer.preprocessor, trainer.postprocessor, tmp_path / "p", clip_folder=clip)
    policy = load_policy(tmp_path / "p")
    means = []
    for sentence in _SENTENCES:
        policy.reset()
        policy.observe(Observation({}, np.zeros(3, np.float32), sentence))
        means.append(policy.sample(16, 0).actions.mean())
    assert means[0] > 0.4 and means[1] < -0.4


def test_cached_features_stand_in_for_the_tower_exactly(clip: Path) -> None:
    cameras = {"front": (64, 64), "wrist": (64, 64)}
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (120, 2, 64, 64, 3), dtype=np.uint8)
    tower = CLIPVisionModel.from_pretrained(clip).eval()
    with torch.inference_mode():
        cls = tower(pixel_values=pixels_to_model(pictures).flatten(0, 1)).last_hidden_state[:, 0]
    features = cls.reshape(120, 2, -1).numpy()
    data = PolicyData(**{**vars(_data(False)), "features": features})
    size = PolicySize(horizon=4, hidden_dim=32, num_layers=1, num_heads=2)
    trainer = PolicyTrainer(make_config(size, str(clip), 3, 2, cameras), data, cameras, False)
    encoder = trainer.policy.observation_encoder
    direct = trainer.preprocessor(
        {
            "observation.state": torch.from_numpy(data.state[:1]),
            "observation.images.front": torch.from_numpy(pictures[:1, 0]).permute(0, 3, 1, 2) / 255.0,
            "observation.images.wrist": torch.from_numpy(pictures[:1, 1]).permute(0, 3, 1, 2) / 255.0,
            "task": [_SENTENCES[0]],
        }
    )
    direct["observation.images"] = torch.stack(
        [direct["observation.images.front"], direct["observation.images.wrist"]], dim=-4
    )[:, None]
    direct["observation.state"] = direct["observation.state"][:, None]
    with torch.inference_mode():
        wanted = encoder.eval().encode(direct)
    batch = trainer._batch(0, 8)
    row = int(np.random.default_rng([trainer.seed, 0]).integers(120, size=8)[0])
    cached = torch.cat([batch[key][0, 0].flatten() for key in trainer.config.image_features])
    offset = direct["observation.state"].shape[-1]
    with torch.inference_mode():
        tokens = tower(pixel_values=pixels_to_model(pictures[row]).float()).last_hidden_state[:, 0]
    torch.testing.assert_close(cached, tokens.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        wanted[0, offset : offset + 64], torch.from_numpy(features[0]).flatten(), atol=1e-5, rtol=1e-5
    )


def test_only_the_head_is_trained(clip: Path) -> None:
    size = PolicySize(horizon=4, hidden_dim=32, num_layers=1, num_heads=2)
    trainer = PolicyTrainer(make_config(size, str(clip), 3, 2, {}), _data(False), {}, False)
    tower = trainer.policy.observation_encoder.text_encoder.text_encoder
    before = {n: p.clone() for n, p in tower.named_parameters()}
    head = trainer.policy.noise_predictor.output_proj.weight.clone()
    for _ in trainer.train(3, 16):
        pass
    assert trainer.policy.observation_encoder.text_encoder.text_encoder is tower
    assert all(torch.equal(p, before[n]) for n, p in tower.named_parameters())
    assert not torch.equal(head, trainer.policy.noise_predictor.output_proj.weight)


def test_training_is_reproducible(clip: Path) -> None:
    size = PolicySize(horizon=4, hidden_dim=32, num_layers=1, num_heads=2)
    runs = []
    for _ in range(2):
        trainer = PolicyTrainer(make_config(size, str(clip), 3, 2, {}), _data(False), {}, False, seed=4)
        runs.append([loss for _, loss in trainer.train(5, 16)])
    assert runs[0] == runs[1]


def test_label_losses_ignore_what_is_absent() -> None:
    heads = LabelHeads(8, 2, _SIZES)
    cls, patches = torch.randn(4, 2, 8), torch.randn(4, 2, 16, 8)
    labels = {key: torch.zeros(4, size) for key, size in _SIZES.items()}
    labels["present"][:, 0] = 1
    labels["pixel"] = torch.full((4, 12), float("nan"))
    labels["pixel"][:, :2] = 0.4
    other = {key: value.clone() for key, value in labels.items()}
    other["position"][:, 3:] = 9.0  # of absent objects
    other["from_hand"][:, 3:] = 9.0
    first, second = heads.loss(cls, patches, labels)[1], heads.loss(cls, patches, other)[1]
    assert first["position"] == second["position"] and first["from_hand"] == second["from_hand"]
    other["position"][:, :3] = 9.0
    assert heads.loss(cls, patches, other)[1]["position"] > first["position"]


def test_the_vision_tower_learns_a_position(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = CLIPVisionConfig(**_TOWER, image_size=32, patch_size=8)
    model, heads = CLIPVisionModel(config), LabelHeads(32, 1, {**_SIZES, "pixel": 6})

    def batch(step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        at = rng.integers(4, 28, (32, 2))
        images = np.zeros((32, 1, 32, 32, 3), np.uint8)
        for i, (x, y) in enumerate(at):
            images[i, 0, y - 3 : y + 3, x - 3 : x + 3] = 255
        labels = {key: np.zeros((32, size), np.float32) for key, size in _SIZES.items()}
        labels["present"][:, 0] = 1
        labels["position"][:, :2] = (at - 16) * 0.01
        labels["pixel"] = np.full((32, 6), np.nan, np.float32)
        labels["pixel"][:, :2] = at / 32
        return images, labels

    metrics = [m for _, m in train_vision(model, heads, batch, 220, learning_rate=3e-3)]
    for name in ("position", "pointer"):
        assert np.mean([m[name] for m in metrics[-20:]]) < 0.7 * np.mean([m[name] for m in metrics[:5]])


def test_picture_sets_span_files(tmp_path: Path) -> None:
    for worker, count in enumerate((3, 2)):
        np.save(tmp_path / f"images_{worker}.npy", np.full((count, 2, 4, 4, 3), worker, np.uint8))
        np.savez(tmp_path / f"labels_{worker}.npz", present=np.full((count, 1), worker, np.float32))
    pictures = PictureSet(tmp_path)
    images, labels = pictures.take(np.array([0, 2, 3, 4]))
    assert len(pictures) == 5
    assert images[:, 0, 0, 0, 0].tolist() == [0, 0, 1, 1] == labels["present"][:, 0].tolist()
    with pytest.raises(FileNotFoundError):
        PictureSet(tmp_path / "none")
