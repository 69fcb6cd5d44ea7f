"""Candidates from one prefix equal the batched result, and candidate 0 equals the stock policy alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch._subclasses.fake_tensor import FakeTensorMode

from valueguide.errors import ConfigError
from valueguide.policies.sampling import make_sampler
from valueguide.policies.sampling.base import BatchedSampler, repeat
from valueguide.policies.sampling.noise import GivenNoise, RowNoise, StackedNoise
from valueguide.testing.tiny_models import CAMERAS, POLICY_TYPES, TinyPolicy, tiny_observation
from valueguide.types import Observation

K, SEED = 5, 7
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in POLICY_TYPES),
    ("multi_task_dit", {"objective": "diffusion"}),
    ("multi_task_dit", {"objective": "diffusion", "noise_scheduler_type": "DDPM"}),
    ("multi_task_dit", {"integration_method": "rk4"}),
    ("multi_task_dit", {"n_obs_steps": 1, "n_action_steps": 8}),
    ("multi_task_dit", {"use_separate_rgb_encoder_per_camera": True}),
    ("diffusion", {"noise_scheduler_type": "DDPM"}),
]
IDS = ["-".join([name, *map(str, config.values())]) for name, config in VARIANTS]


def lerobot_frame(tiny: TinyPolicy, observation: Observation) -> dict[str, Any]:
    """What LeRobot's own rollout feeds a policy, written without the adapter."""
    batch: dict[str, Any] = {"task": observation.task, OBS_STATE: torch.tensor(observation.state)}
    for name in CAMERAS:
        batch[f"{OBS_IMAGES}.{name}"] = torch.tensor(observation.images[name]).permute(2, 0, 1) / 255
    return tiny.preprocessor(batch)


def stock_chunk(
    tiny: TinyPolicy, observations: list[Observation], noise: RowNoise, steps: int
) -> torch.Tensor:
    """The chunk that the untouched policy plays through select_action, physical (H, A)."""
    policy = tiny.policy
    policy.reset()
    frames = [lerobot_frame(tiny, o) for o in observations]
    for frame in frames[:-1]:
        images = {OBS_IMAGES: torch.stack([frame[f"{OBS_IMAGES}.{c}"] for c in CAMERAS], dim=-4)}
        policy._queues = populate_queues(policy._queues, frame | images, exclude_keys=[ACTION])
    with GivenNoise(noise, 1):
        actions = [policy.select_action(dict(frames[-1])) for _ in range(steps)]
    return tiny.postprocessor(torch.stack(actions, dim=1))[0]


@pytest.mark.parametrize(("policy_type", "config"), VARIANTS, ids=IDS)
def test_candidate_zero_is_what_the_stock_policy_does(
    policy_type: str, config: dict[str, Any], tiny: Any
) -> None:
    adapter = tiny(policy_type, **config).adapter()
    history = [tiny_observation(seed) for seed in range(adapter.history)]
    for observation in history:
        adapter.observe(observation)
    candidates = adapter.sample(K, SEED).actions
    expected = stock_chunk(tiny(policy_type, **config), history, RowNoise(SEED), adapter.horizon)
    assert candidates.shape == (K, adapter.horizon, adapter.action_dim)
    assert candidates.dtype == np.float32
    np.testing.assert_allclose(candidates[0], expected.numpy(), atol=1e-5)


def test_smolvla_projects_the_prefix_once_a_decision_and_anew_in_the_next(tiny: Any) -> None:
    adapter = tiny("smolvla").adapter()
    projections = adapter._sampler._projections
    assert projections  # the cross-attention layers of the action expert
    first, second = tiny_observation(0), tiny_observation(1)
    adapter.observe(first)
    before = adapter.sample(K, SEED).actions
    adapter.observe(second)
    assert np.abs(adapter.sample(K, SEED).actions - before).max() > 1e-4
    adapter.observe(first)
    np.testing.assert_array_equal(adapter.sample(K, SEED).actions, before)
    assert all("forward" not in vars(p) for p in projections)  # stock again between decisions


@pytest.mark.parametrize(("policy_type", "config"), VARIANTS, ids=IDS)
def test_shared_prefix_equals_the_batched_result(policy_type: str, config: dict[str, Any], tiny: Any) -> None:
    shared, stock = tiny(policy_type, **config), tiny(policy_type, **config)
    sampler = make_sampler(shared.policy)
    frames = [lerobot_frame(stock, tiny_observation(seed)) for seed in range(sampler.history)]
    with torch.inference_mode():
        actual = sampler([dict(f) for f in frames], K, StackedNoise([SEED]))
        if policy_type == "act":
            expected = _batched_act(stock, frames[-1])
        else:
            expected = BatchedSampler(stock.policy)([dict(f) for f in frames], K, StackedNoise([SEED]))
    assert (actual - actual[:1]).abs().max() > 1e-3, "candidates do not differ"
    tolerance = 0.0 if policy_type.startswith("pi") else 5e-6
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def _batched_act(tiny: TinyPolicy, frame: dict[str, Any]) -> torch.Tensor:
    """Stock ACT on K copies of the observation, with the latents put in."""
    latent = RowNoise(SEED).draw(K, (tiny.policy.config.latent_dim,))
    latent[0] = 0
    hook = tiny.policy.model.encoder_latent_input_proj.register_forward_pre_hook(
        lambda module, args: (latent,)
    )
    actions = tiny.policy.predict_action_chunk(repeat(frame, K))
    hook.remove()
    return actions


@pytest.mark.parametrize("policy_type", POLICY_TYPES)
def test_a_candidate_depends_on_its_seed_and_row_only(policy_type: str, tiny: Any) -> None:
    adapter = tiny(policy_type).adapter()
    adapter.observe(tiny_observation())
    state = torch.get_rng_state()
    many = adapter.sample(K, SEED).actions
    torch.rand(3)
    few = adapter.sample(2, SEED).actions
    other = adapter.sample(2, SEED + 1).actions
    np.testing.assert_allclose(few, many[:2], atol=1e-5)
    assert np.abs(other[1] - few[1]).max() > 1e-3
    torch.set_rng_state(state)
    adapter.sample(K, SEED)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was disturbed"


def test_multi_task_dit_runs_its_text_tower_once_an_instruction(tiny: Any) -> None:
    adapter = tiny("multi_task_dit").adapter()
    calls = []
    tower = adapter.policy.observation_encoder.text_encoder.text_encoder
    tower.register_forward_pre_hook(lambda module, args: calls.append(1))
    for task in ("open the drawer", "push", "open the drawer", "push"):
        adapter.observe(tiny_observation(task=task))
        adapter.sample(2, 0)
    assert len(calls) == 2


def test_multi_task_dit_still_trains_after_sampling(tiny: Any) -> None:
    """What was remembered under inference mode must not reach a training step."""
    policy_parts = tiny("multi_task_dit")
    adapter = policy_parts.adapter()
    adapter.observe(tiny_observation())
    adapter.sample(2, 0)
    encoder = adapter.policy.train().observation_encoder.text_encoder
    tokens = torch.ones(1, 24, dtype=torch.long)
    encoder(tokens, tokens.bool()).sum().backward()
    assert encoder.projection.weight.grad is not None


def test_the_prefix_is_computed_once_for_all_candidates(tiny: Any) -> None:
    adapter = tiny("smolvla").adapter()
    sizes = []
    vision = adapter.policy.model.vlm_with_expert.get_vlm_model().vision_model
    vision.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["pixel_values"].shape[0]), with_kwargs=True
    )
    adapter.observe(tiny_observation())
    adapter.sample(K, 0)
    assert sizes == [1] * len(CAMERAS)


@given(seed=st.integers(0, 2**40), k=st.integers(1, 9), length=st.integers(1, 20), draws=st.integers(1, 3))
def test_noise_rows_do_not_depend_on_k(seed: int, k: int, length: int, draws: int) -> None:
    few, many = RowNoise(seed), RowNoise(seed)
    for _ in range(draws):
        assert torch.equal(few.draw(k, (length, 2)), many.draw(k + 3, (length, 2))[:k])


def test_noise_is_standard_normal_and_draws_differ() -> None:
    noise = RowNoise(3)
    first, second = noise.draw(2000, (8,)), noise.draw(2000, (8,))
    assert abs(float(first.mean())) < 0.03 and abs(float(first.std()) - 1) < 0.03
    assert abs(float((first * second).mean())) < 0.03
    assert abs(float((first[1:] * first[:-1]).mean())) < 0.03


def test_given_noise_replaces_every_normal_draw_of_leading_size_k() -> None:
    k, shape = 3, (3, 4)
    expected = RowNoise(1).draw(k, (4,))
    calls = [
        lambda: torch.randn(shape),
        lambda: torch.randn(*shape),
        lambda: torch.randn(size=shape, dtype=torch.float32),
        lambda: torch.randn_like(torch.zeros(shape)),
        lambda: torch.normal(mean=0.0, std=1.0, size=shape),
        lambda: torch.normal(torch.zeros(shape), torch.ones(shape)),
    ]
    for call in calls:
        with GivenNoise(RowNoise(1), k):
            assert torch.equal(call(), expected)
    with GivenNoise(RowNoise(1), k):
        assert torch.equal(torch.normal(2.0, 3.0, shape), expected * 3 + 2)
        assert not torch.equal(torch.randn(2, 4), expected[:2])


def test_given_noise_is_on_the_device_of_what_it_is_added_to() -> None:
    """Fake tensors have a device and no content, and refuse to be mixed across devices."""
    with FakeTensorMode(), GivenNoise(RowNoise(1), 3):
        there = torch.zeros(3, 4, device="cuda")
        for call in (
            lambda: torch.randn(3, 4, device="cuda"),
            lambda: torch.randn_like(there),
            lambda: torch.normal(0.0, 1.0, (3, 4), device="cuda"),
            lambda: torch.normal(there, 1.0),
            lambda: torch.normal(there, there + 1),
        ):
            assert call().device.type == "cuda"


def test_policies_without_a_sampler_of_their_own_are_batched() -> None:
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    features = {
        "input_features": {
            OBS_STATE: PolicyFeature(FeatureType.STATE, (6,)),
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 84, 84)),
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (4,))},
    }
    torch.manual_seed(0)
    config = make_policy_config("tdmpc", device="cpu", **features, n_gaussian_samples=8, cem_iterations=1)
    stats = {
        OBS_STATE: {"mean": torch.zeros(6), "std": torch.ones(6)},
        ACTION: {"min": -torch.ones(4), "max": torch.ones(4)},
    }
    policy = get_policy_class("tdmpc")(config)
    adapter = TinyPolicy(policy.eval(), *make_pre_post_processors(config, dataset_stats=stats)).adapter()
    assert list(adapter.cameras) == ["image"]
    assert adapter.horizon >= 1, "the horizon is found by sampling once"
    image = np.zeros((84, 84, 3), np.uint8)
    adapter.observe(Observation({"image": image}, np.zeros(6, np.float32), ""))
    before = torch.get_rng_state()
    actions = adapter.sample(3, 0).actions
    assert actions.shape == (3, adapter.horizon, 4)
    np.testing.assert_array_equal(actions, adapter.sample(3, 0).actions)
    assert torch.equal(torch.get_rng_state(), before)


def test_single_step_policies_are_refused(tiny: Any) -> None:
    policy = tiny("act").policy

    def no_chunks(batch: Any) -> Any:
        raise NotImplementedError

    policy.predict_action_chunk = no_chunks
    with pytest.raises(ConfigError, match="predicts action chunks"):
        BatchedSampler(policy)([{OBS_STATE: torch.zeros(1, 6)}], 1, StackedNoise([0]))


def test_what_was_remembered_follows_the_weights(tiny: Any) -> None:
    def change(policy: Any) -> None:
        policy.observation_encoder.text_encoder.projection.weight.data.mul_(-3.0)

    parts, fresh = tiny("multi_task_dit"), tiny("multi_task_dit")
    change(fresh.policy)
    results = []
    adapter = parts.adapter()
    adapter.observe(tiny_observation())
    results.append(adapter.sample(1, 0).actions)
    twin = copy.deepcopy(parts.policy)
    with torch.no_grad():
        parts.policy.observation_encoder.text_encoder.projection.weight.mul_(-3.0)
    results.append(adapter.sample(1, 0).actions)
    expected = fresh.adapter()
    expected.observe(tiny_observation())
    np.testing.assert_array_equal(results[1], expected.sample(1, 0).actions)
    assert np.abs(results[1] - results[0]).max() > 1e-3
    encoder, tokens = twin.observation_encoder.text_encoder, torch.ones(1, 24, dtype=torch.long)
    with torch.no_grad():
        before = encoder(tokens, tokens.bool())
        change(twin)
        assert not torch.equal(encoder(tokens, tokens.bool()), before), "a copy answers for the original"


def test_sampling_again_gives_the_same(tiny: Any) -> None:
    """For Aloha, smolvla converts the state in place: the second call must not see it converted."""
    features = {
        "input_features": {
            OBS_STATE: PolicyFeature(FeatureType.STATE, (14,)),
            f"{OBS_IMAGES}.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (14,))},
    }
    sizes = {"max_state_dim": 14, "max_action_dim": 14}
    adapter = tiny("smolvla", adapt_to_pi_aloha=True, **features, **sizes).adapter()
    state = np.linspace(0.1, 1.5, 14, dtype=np.float32)
    adapter.observe(dataclasses.replace(tiny_observation(), state=state))
    first = adapter.sample(3, 0).actions
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(adapter.sample(3, 0).actions, first)
