"""Frozen towers run once for each sentence and picture, and change no loss by it."""

import pytest
import torch
from test_policies_flow_loss import ROWS, frames_of

from valueguide.policies.flow_loss import flow_losses
from valueguide.policies.frozen_towers import PictureMemory, frozen_towers_once
from valueguide.testing.tiny_models import make_tiny_policy


def losses(policy, frames):
    torch.manual_seed(3)
    return flow_losses(policy, frames)


class CountedTower(torch.nn.Module):
    """Sums a picture up; counts the rows of each call."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.calls = torch.nn.Parameter(torch.tensor(scale)), []

    def forward(self, pictures):
        self.calls.append(len(pictures))
        return self.scale * pictures.sum(dim=(1, 2, 3))[:, None]


@pytest.fixture
def tiny(tmp_path):
    made = make_tiny_policy("multi_task_dit", tmp_path)
    made.policy.observation_encoder.vision_encoder.requires_grad_(False)
    return made


def seen_once(frames, see, keys):
    """The frames with the tower's outputs instead of pictures."""
    changed = []
    for back, frame in enumerate(frames):
        changed.append(dict(frame))
        for key in keys:
            names = [(key, back, row) for row in range(len(frame[key]))]
            changed[-1][key] = see(names, lambda rows, pictures=frame[key]: pictures[rows])
    return changed


@pytest.mark.parametrize("changes", [{}, {"image_resize_shape": (72, 72), "image_crop_shape": (64, 64)}])
def test_the_losses_stay_and_the_encoders_come_back(changes, tmp_path):
    tiny = make_tiny_policy("multi_task_dit", tmp_path, image_crop_is_random=False, **changes)
    encoder, keys = tiny.policy.observation_encoder, list(tiny.policy.config.image_features)
    encoder.vision_encoder.requires_grad_(False)
    before, frames = dict(encoder.__dict__), frames_of(tiny, history=2)
    towers = encoder.text_encoder, encoder.vision_encoder
    plain, memory = losses(tiny.policy, frames), PictureMemory()
    with frozen_towers_once(tiny.policy, memory) as see:
        for _ in range(2):
            assert torch.allclose(plain, losses(tiny.policy, seen_once(frames, see, keys)), atol=1e-5)
    with pytest.raises(RuntimeError), frozen_towers_once(tiny.policy, PictureMemory()):
        raise RuntimeError
    assert (encoder.text_encoder, encoder.vision_encoder) == towers and encoder.__dict__ == before
    assert len(memory) == 2 * ROWS * len(keys)
    assert torch.equal(plain, losses(tiny.policy, frames))


def test_a_known_picture_is_not_looked_at_again():
    tower, memory = CountedTower(), PictureMemory()
    pictures = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, 2, 2)
    memory.belongs_to(tower)

    def outputs(rows):
        return memory.outputs(tower, rows, lambda asked: pictures[rows][asked]).squeeze(1).tolist()

    assert outputs([0, 1, 1]) == [0.0, 12.0, 12.0]
    assert outputs(list(range(20))) == [12.0 * i for i in range(20)]
    outputs([19, 3])
    # Two, then the other 18, in calls of one size: how a row is rounded does not depend on the others.
    assert tower.calls == [16, 16, 16] and len(memory) == 20
    memory.belongs_to(CountedTower())
    assert len(memory) == 20
    memory.belongs_to(CountedTower(2.0))
    assert len(memory) == 0


@pytest.mark.parametrize("reason", ["learns", "cropped", "other"])
def test_what_changes_is_not_remembered(reason, tmp_path, tiny):
    if reason == "learns":
        tiny.policy.observation_encoder.vision_encoder.requires_grad_(True)
    elif reason == "cropped":
        tiny = make_tiny_policy("multi_task_dit", tmp_path / "cropped", image_crop_shape=(64, 64))
        tiny.policy.observation_encoder.vision_encoder.requires_grad_(False)
    else:
        tiny = make_tiny_policy("smolvla", tmp_path / "other")
    frames = frames_of(tiny, history=1 if reason == "other" else 2)
    plain = losses(tiny.policy, frames)
    with frozen_towers_once(tiny.policy, PictureMemory()) as see:
        assert see is None
        assert torch.allclose(plain, losses(tiny.policy, frames), atol=1e-5)
