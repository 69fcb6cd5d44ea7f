"""One call for many states gives what one call for each of them gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE

from valueguide.errors import ConfigError, DataError
from valueguide.interfaces import BatchProposer
from valueguide.policies.adapter import LeRobotPolicy
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.policies.sampling.noise import RowNoise, StackedNoise
from valueguide.policies.tokens import RememberingTokenizer
from valueguide.testing.tiny_models import TinyPolicy, tiny_observation
from valueguide.types import Observation

K = 3
TASKS = ("open the drawer", "put the carrot on the plate", "open the drawer", "push it")
SEEDS = np.array([5, 0, 5, 2**40])
ONE_STEP: list[tuple[str, dict[str, Any]]] = [
    ("act", {}),
    ("diffusion", {"n_obs_steps": 1, "n_action_steps": 8}),
    ("diffusion", {"n_obs_steps": 1, "n_action_steps": 8, "noise_scheduler_type": "DDPM"}),
    ("multi_task_dit", {"n_obs_steps": 1, "n_action_steps": 8}),
    ("multi_task_dit", {"n_obs_steps": 1, "n_action_steps": 8, "objective": "diffusion"}),
    ("multi_task_dit", {"n_obs_steps": 1, "n_action_steps": 8, "integration_method": "rk4"}),
    ("smolvla", {}),
    ("pi0", {}),
    ("pi05", {}),
]
IDS = ["-".join([name, *map(str, list(config.values())[2:])]) for name, config in ONE_STEP]


def observations() -> list[Observation]:
    return [tiny_observation(seed, task) for seed, task in enumerate(TASKS)]


def one_by_one(adapter: LeRobotPolicy, rows: list[list[Observation]], k: int = K) -> np.ndarray:
    chunks = []
    for row, seed in zip(rows, SEEDS, strict=True):
        adapter.reset()
        for observation in row:
            adapter.observe(observation)
        chunks.append(adapter.sample(k, int(seed)).actions)
    return np.stack(chunks)


@pytest.mark.parametrize(("policy_type", "config"), ONE_STEP, ids=IDS)
def test_a_row_is_what_sample_gives_alone(policy_type: str, config: dict[str, Any], tiny: Any) -> None:
    adapter = tiny(policy_type, **config).adapter(version="v1")
    assert isinstance(adapter, BatchProposer)
    rows = observations()
    chunks = adapter.propose(rows, K, SEEDS)
    assert chunks.shape == (4, K, adapter.horizon, adapter.action_dim) and chunks.dtype == np.float32
    np.testing.assert_allclose(chunks, one_by_one(adapter, [[row] for row in rows]), atol=2e-5)
    assert np.abs(chunks[0] - chunks[2]).max() > 1e-3, "the observation has no effect"
    # Neither the other rows nor K matter.
    np.testing.assert_allclose(adapter.propose(rows[2:3], 1, SEEDS[2:3])[0], chunks[2, :1], atol=2e-5)
    same_state = adapter.propose([rows[0]] * 2, K, np.array([5, 6]))
    np.testing.assert_allclose(same_state[0], chunks[0], atol=2e-5)
    assert np.abs(same_state[1, 1] - same_state[0, 1]).max() > 1e-3, "the seed has no effect"


@pytest.mark.parametrize("policy_type", ["multi_task_dit", "diffusion"])
def test_policies_with_a_history_take_windows(policy_type: str, tiny: Any) -> None:
    adapter = tiny(policy_type).adapter()
    seen = observations()
    rows = [[seen[0], seen[1]], [seen[1]], [seen[1], seen[2]], [seen[3], seen[3]]]
    np.testing.assert_allclose(adapter.propose(rows, K, SEEDS), one_by_one(adapter, rows), atol=2e-5)
    with pytest.raises(ConfigError, match="history: expected sequences of up to 2 observations"):
        adapter.propose(seen, K, SEEDS)
    with pytest.raises(ConfigError, match="observations a row: expected 1 to 2, found 3"):
        adapter.propose([seen[:3]], K, SEEDS[:1])


def test_policies_without_a_sampler_are_asked_row_by_row() -> None:
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
    policy = get_policy_class("tdmpc")(config).eval()
    adapter = TinyPolicy(policy, *make_pre_post_processors(config, dataset_stats=stats)).adapter()
    rng = np.random.default_rng(0)
    rows = [
        Observation(
            {"image": rng.integers(0, 256, (84, 84, 3), np.uint8)}, rng.normal(size=6).astype(np.float32), ""
        )
        for _ in SEEDS
    ]
    before = torch.get_rng_state()
    chunks = adapter.propose(rows, 2, SEEDS)
    np.testing.assert_allclose(chunks, one_by_one(adapter, [[row] for row in rows], 2), atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_relative_actions_are_relative_to_their_own_state(tiny: Any) -> None:
    """pi05 with relative actions adds the state that was pre-processed last."""
    adapter = tiny("pi05", use_relative_actions=True).adapter()
    rows = observations()
    chunks = adapter.propose(rows, K, SEEDS)
    np.testing.assert_allclose(chunks, one_by_one(adapter, [[row] for row in rows]), atol=2e-5)
    absolute = tiny("pi05").adapter().propose(rows, K, SEEDS)
    offset = np.stack([row.state[:4] for row in rows])[:, None, None]
    np.testing.assert_allclose(chunks - absolute, np.broadcast_to(offset, chunks.shape), atol=1e-4)


def test_the_environment_state_is_appended(tiny: Any) -> None:
    parts = tiny("multi_task_dit", n_obs_steps=1)
    parts.preprocessor.steps.insert(2, AppendEnvironmentState())
    adapter = parts.adapter()
    whole = observations()
    split = [dataclasses.replace(o, state=o.state[:4], environment_state=o.state[4:]) for o in whole]
    plain = tiny("multi_task_dit", n_obs_steps=1).adapter()
    np.testing.assert_array_equal(adapter.propose(split, K, SEEDS), plain.propose(whole, K, SEEDS))
    with pytest.raises(DataError, match="environment_state"):
        adapter.propose(whole, K, SEEDS)


def test_proposing_leaves_the_own_history_and_random_state_alone(tiny: Any) -> None:
    adapter = tiny("multi_task_dit").adapter()
    adapter.observe(tiny_observation(1))
    adapter.observe(tiny_observation(2))
    state, expected = torch.get_rng_state(), adapter.sample(K, 3).actions
    adapter.propose([[row] for row in observations()], K, SEEDS)
    np.testing.assert_array_equal(adapter.sample(K, 3).actions, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_towers_run_once_for_all_rows_and_once_an_instruction(tiny: Any) -> None:
    adapter = tiny("multi_task_dit", n_obs_steps=1).adapter()
    encoder, sizes, texts = adapter.policy.observation_encoder, [], []
    encoder.vision_encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    encoder.text_encoder.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: texts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    adapter.propose(observations(), K, SEEDS)
    assert sizes == [len(SEEDS) * len(adapter.cameras)]
    assert sum(texts) == len(set(TASKS))


def test_misfits_are_one_clear_line(tiny: Any) -> None:
    adapter = tiny("multi_task_dit", n_obs_steps=1).adapter()
    rows = observations()
    assert adapter.propose([], 2, np.zeros(0, np.int64)).shape == (0, 2, adapter.horizon, adapter.action_dim)
    for bad, message in (
        ((rows, 0, SEEDS), "K: expected at least 1"),
        ((rows, 1, SEEDS[:2]), "seeds: expected 4, one a row, found 2"),
        ((rows, 1, -SEEDS), "seed: expected 0 or more"),
        ((rows, 1, SEEDS[None]), "seed: expected"),
        (([[], *rows[1:]], 1, SEEDS), "observations a row: expected 1 to 1, found 0"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            adapter.propose(*bad)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"observation.state: shape"):
        adapter.propose([*rows[:3], dataclasses.replace(rows[3], state=np.zeros(2, np.float32))], 1, SEEDS)


@given(
    seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
    k=st.integers(1, 5),
    length=st.integers(1, 9),
    draws=st.integers(1, 3),
)
def test_stacked_noise_is_each_seeds_own_noise(seeds: list[int], k: int, length: int, draws: int) -> None:
    stacked, alone = StackedNoise(seeds), [RowNoise(seed) for seed in seeds]
    for _ in range(draws):
        rows = stacked.draw(len(seeds) * k, (length, 2)).view(len(seeds), k, length, 2)
        assert all(
            torch.equal(row, noise.draw(k, (length, 2))) for row, noise in zip(rows, alone, strict=True)
        )


def test_the_tokenizer_is_asked_about_new_sets_of_texts_only() -> None:
    asked = []

    def tokenize(texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        asked.append(list(texts))
        return {"input_ids": torch.tensor([[len(text)] for text in texts])}

    tokenizer = RememberingTokenizer(tokenize)
    first = tokenizer(["bb", "a", "bb", "ccc"])["input_ids"]
    assert first[:, 0].tolist() == [2, 1, 2, 3]
    assert tokenizer(["ccc", "bb", "a"])["input_ids"][:, 0].tolist() == [3, 2, 1]
    assert asked == [["a", "bb", "ccc"]]
