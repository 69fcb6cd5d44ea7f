"""Stock LeRobot runs a guided policy: its factories, its evaluation loop, a real base and a real critic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.envs import make_env, make_env_config
from lerobot.envs.factory import make_env_pre_post_processors
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_policy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from lerobot.utils.import_utils import register_third_party_plugins

from sim.arm import ACTION_NAMES
from sim.wordings import TRAIN
from valueguide.critics.checkpoint import save_critic
from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.errors import ConfigError, DataError
from valueguide.policies.load import load_policy
from valueguide.policies.processors import AppendEnvironmentState
from valueguide.testing.tiny_models import make_tiny_policy
from valueguide.types import Observation

STATE, ENVIRONMENT, ACTIONS = 6, 51, len(ACTION_NAMES)
HORIZON, EXECUTED = 8, 4
TASK = "press_button"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `critic`: untrained networks for the state suite of the tabletop."""
    root = tmp_path_factory.mktemp("guided")
    tiny = make_tiny_policy(
        "multi_task_dit",
        root / "assets",
        n_obs_steps=1,
        n_action_steps=HORIZON,
        input_features={OBS_STATE: PolicyFeature(FeatureType.STATE, (STATE + ENVIRONMENT,))},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (ACTIONS,))},
    )
    tiny.preprocessor.steps.insert(2, AppendEnvironmentState())
    tiny.save(root / "base")
    spec = CriticSpec(EXECUTED, ACTION_NAMES, STATE, ENVIRONMENT)
    rng = np.random.default_rng(0)
    table = {n: rng.uniform(-1, 1, (64, d)).astype(np.float32) for n, d in _sizes().items()}
    normalizers = Normalizers(**{name: Normalizer.min_max(values) for name, values in table.items()})
    sentences = [s for wordings in TRAIN.values() for s in wordings]
    embeddings = rng.normal(size=(len(sentences), 8)).astype(np.float32)
    network = NetworkConfig(encoder="state", hidden=16, language_dim=8)
    trainer = CriticTrainer(spec, network, TrainConfig(algo="iql"), normalizers, embeddings)
    save_critic(root / "critic", trainer, sentences, {})
    return root


def _sizes() -> dict[str, int]:
    return {"action": ACTIONS, "state": STATE, "environment_state": ENVIRONMENT}


def guided(models: Path, **settings: Any) -> tuple[Any, Any, Any]:
    """(policy, pre-processor, post-processor) from LeRobot's factories, as `lerobot-eval` makes them."""
    register_third_party_plugins()
    settings = {"critic": str(models / "critic"), "base_policy": str(models / "base"), "k": 4} | settings
    config = make_policy_config("vg", device="cpu", **settings)
    policy = make_policy(config, env_cfg=make_env_config("wxai_state", task=TASK))
    return policy.eval(), *make_pre_post_processors(config)


def batch(count: int = 1, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values = {OBS_STATE: STATE, OBS_ENV_STATE: ENVIRONMENT}
    arrays = {
        key: torch.tensor(rng.uniform(-1, 1, (count, d)), dtype=torch.float32) for key, d in values.items()
    }
    return arrays | {"task": [TRAIN[TASK][0]] * count}


def test_stock_evaluation_runs_a_guided_policy(models: Path) -> None:
    policy, before, after = guided(models)
    environment = make_env_config("wxai_state", task=TASK, episode_length=6)
    (vector,) = make_env(environment, n_envs=2)["wxai_state"].values()
    extra = make_env_pre_post_processors(env_cfg=environment, policy_cfg=policy.config)
    with torch.no_grad():
        info = eval_policy(vector, policy, *extra, before, after, n_episodes=2, start_seed=3)
    vector.close()
    assert len(info["per_episode"]) == 2
    assert [d.reason for d in policy.last_decisions] == ["argmax", "argmax"]
    assert policy.last_decisions[0].scores is not None and policy.last_decisions[0].scores.q.shape[1] == 4


def test_the_executed_actions_are_the_critics_choice(models: Path) -> None:
    policy, before, after = guided(models, k=8, seed=1)
    observation = before(batch())
    chunk = policy.predict_action_chunk(observation)[0]
    index, values = policy.last_decisions[0].index, policy.last_decisions[0].values
    assert index == values.argmax() != 0, "choose another seed: the critic should prefer another than 0"
    policy.reset()
    policy._episodes = 0
    played = torch.stack([after(policy.select_action(observation))[0] for _ in range(EXECUTED)])
    torch.testing.assert_close(played, chunk[:EXECUTED])
    assert policy.base is policy._base.policy and next(policy.parameters()).device.type == "cpu"


def test_without_a_critic_it_is_the_base_policy(models: Path) -> None:
    policy, before, _ = guided(models, critic="")
    played = [policy.select_action(before(batch()))[0].numpy() for _ in range(HORIZON)]
    assert policy.last_decisions[0].reason == "no_critic"
    base = load_policy(models / "base")
    raw = batch()
    base.observe(Observation({}, raw[OBS_STATE][0].numpy(), raw["task"][0], 0, raw[OBS_ENV_STATE][0].numpy()))
    seed = int(np.random.default_rng(np.random.SeedSequence((0, 0, 0))).integers(2**31))
    np.testing.assert_allclose(np.stack(played), base.sample(1, seed).actions[0], atol=1e-6)


def test_environments_of_a_batch_do_not_share_their_plans(models: Path) -> None:
    policy, before, _ = guided(models)
    both = before(batch(2))
    actions = policy.select_action(both)
    assert actions.shape == (2, ACTIONS) and actions.dtype == torch.float32
    assert (actions[0] - actions[1]).abs().max() > 1e-4
    with pytest.raises(DataError, match="found 1"):
        policy.select_action(before(batch(1)))


def test_a_saved_guided_policy_loads_through_its_path(models: Path, tmp_path: Path) -> None:
    """`lerobot-eval --policy.path=FOLDER`, with base and critic beside the settings."""
    policy, before, after = guided(models)
    folder = tmp_path / "guided"
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    for name in ("base", "critic"):
        (folder / name).symlink_to(models / name)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"base_policy": "base", "critic": "critic"}))
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    config.pretrained_path = folder
    again = make_policy(config, env_cfg=make_env_config("wxai_state", task=TASK))
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    loaded, _ = make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    first = policy.select_action(before(batch()))
    torch.testing.assert_close(again.select_action(loaded(batch())), first)
    assert not (folder / "model.safetensors").exists()


def test_images_come_back_as_the_pixels_they_were() -> None:
    from lerobot_policy_vg.modeling_vg import observations_of

    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    image = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
    frames = {"observation.images.front": image, "observation.image": image, OBS_STATE: torch.zeros(1, 2)}
    (observation,) = observations_of(frames)
    np.testing.assert_array_equal(observation.images["front"], pixels[0])
    np.testing.assert_array_equal(observation.images["image"], pixels[0])
    assert observation.task == ""
    with pytest.raises(DataError, match="observation.state"):
        observations_of({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k: expected at least 1"),
        ({"beta": -1.0}, "beta"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"base_policy": ""}, "base_policy"),
        ({"executed_length": 3}, "the critic scores"),
        ({"aggregate": "max"}, "aggregate"),
    ],
)
def test_wrong_settings_are_one_line(models: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        guided(models, **settings)
    assert "\n" not in str(error.value)


def test_it_refuses_to_be_trained(models: Path) -> None:
    policy, _, _ = guided(models)
    for call in (policy.get_optim_params, policy.config.get_optimizer_preset, lambda: policy.forward({})):
        with pytest.raises(ConfigError, match="Train its base or critic"):
            call()
