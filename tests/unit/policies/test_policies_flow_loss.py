"""Per-sample flow losses: LeRobot's own mean, sample by sample, and what padding and sentences do to it."""

import numpy as np
import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_STATE

from valueguide.errors import ConfigError
from valueguide.policies.flow_loss import FLOW_POLICIES, flow_losses
from valueguide.policies.sampling.base import stack_history
from valueguide.testing.tiny_models import SENTENCES, make_tiny_policy, tiny_observation

ROWS = 3


def frames_of(tiny, pad=0, history=1):
    """`history` pre-processed frames of ROWS observations, with actions in the newest."""
    adapter = tiny.adapter()
    frames = []
    for step in range(history):
        seen = [tiny_observation(seed=10 * step + i) for i in range(ROWS)]
        images = {name: np.stack([o.images[name] for o in seen]) for name in seen[0].images}
        rng = np.random.default_rng(step)
        actions = rng.normal(size=(ROWS, tiny.policy.config.horizon if hasattr(tiny.policy.config, "horizon")
                                   else tiny.policy.config.chunk_size, 4)).astype(np.float32)  # fmt: skip
        frames.append(
            adapter.preprocess(
                [SENTENCES[i % 2] for i in range(ROWS)],
                np.stack([o.state for o in seen]),
                None,
                images,
                actions,
            )
        )
    is_pad = torch.zeros(ROWS, frames[-1][ACTION].shape[1], dtype=torch.bool)
    if pad:
        is_pad[0, -pad:] = True
    frames[-1]["action_is_pad"] = is_pad
    return frames


@pytest.mark.parametrize("kind", FLOW_POLICIES)
def test_one_finite_loss_a_sample_whose_gradient_reaches_the_policy(kind, tmp_path):
    tiny = make_tiny_policy(kind, tmp_path)
    frames = frames_of(tiny, history=2 if kind == "multi_task_dit" else 1)
    tiny.policy.requires_grad_(True)
    torch.manual_seed(0)
    losses = flow_losses(tiny.policy, frames)
    assert losses.shape == (ROWS,) and torch.isfinite(losses).all()
    assert len(losses.unique()) == ROWS
    losses[0].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.policy.parameters())


@pytest.mark.parametrize("pad", [0, 3])
def test_multi_task_dit_agrees_with_lerobots_mean(pad, tmp_path):
    tiny = make_tiny_policy("multi_task_dit", tmp_path, do_mask_loss_for_padding=True)
    frames = frames_of(tiny, pad, history=2)
    torch.manual_seed(1)
    mine = flow_losses(tiny.policy, frames)
    batch = stack_history(frames, list(tiny.policy.config.image_features), [OBS_STATE])
    torch.manual_seed(1)
    condition = tiny.policy.observation_encoder.encode(batch)
    theirs = tiny.policy.objective.compute_loss(tiny.policy.noise_predictor, batch, condition)
    steps = (~frames[-1]["action_is_pad"]).sum(1)
    assert torch.allclose((mine * steps).sum() / steps.sum(), theirs, atol=1e-6)


def test_padded_targets_change_nothing(tmp_path):
    tiny = make_tiny_policy("multi_task_dit", tmp_path)
    frames = frames_of(tiny, 3, history=2)
    torch.manual_seed(2)
    before = flow_losses(tiny.policy, frames)
    torch.manual_seed(2)
    assert torch.equal(before, flow_losses(tiny.policy, frames))
    frames[-1]["action_is_pad"][0] = True
    torch.manual_seed(2)
    assert flow_losses(tiny.policy, frames)[0] == 0


def test_other_policies_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="policy type"):
        flow_losses(make_tiny_policy("act", tmp_path).policy, [{}])
    diffusion = make_tiny_policy("multi_task_dit", tmp_path, objective="diffusion").policy
    with pytest.raises(ConfigError, match="objective"):
        flow_losses(diffusion, [{}])
