"""Stock LeRobot finds the reward model `gvl` by its name: config, model, processors, saved settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards.factory import (
    get_reward_model_class,
    make_reward_model,
    make_reward_model_config,
    make_reward_pre_post_processors,
)
from lerobot.utils.import_utils import register_third_party_plugins

from valueguide.errors import ConfigError, DataError
from valueguide.testing.fake_openai_server import FakeOpenAiServer
from valueguide.testing.tiny_vlms import build_tiny_vlm

KEY = "observation.images.front"
#: Brightness, which the server takes for percent, of 6 frames in two episodes.
LEVELS = np.array([[0, 20, 40, 60, 80, 100], [0, 10, 50, 30, 20, 10]], np.uint8)


def _batch(**more: Any) -> dict[str, Any]:
    frames = np.broadcast_to(LEVELS[:, :, None, None, None], (2, 6, 3, 8, 12))
    return {KEY: torch.tensor(frames), "task": ["push it", "pull it"], **more}


def _config(url: str, **settings: Any) -> RewardModelConfig:
    register_third_party_plugins()
    common = {"device": "cpu", "model": "m", "backend": "openai", "url": url, "image_key": KEY}
    return make_reward_model_config("gvl", **common | {"shuffles": 1} | settings)


def test_lerobots_factories_find_it_by_name(tmp_path: Path) -> None:
    with FakeOpenAiServer() as server:
        config = _config(server.url, frames=4)
        model = make_reward_model(config)
        before, _ = make_reward_pre_post_processors(config)
        assert type(model) is get_reward_model_class("gvl") and not model.is_trainable
        seen = before(_batch())
        assert torch.allclose(model.compute_reward(seen), torch.tensor([1.0, 0.1]))
        texts = [part.get("text", "") for part in server.bodies[-1]["messages"][0]["content"]]
        assert "The task is: pull it." in texts[0] and "Frame 3:" in texts and "Frame 4:" not in texts
        floats = before(_batch(**{KEY: _batch()[KEY].float() / 255}))
        assert torch.allclose(model.compute_reward(floats), torch.tensor([1.0, 0.1]))
        last = before(_batch(**{KEY: _batch()[KEY].movedim(2, -1), "task": "push it"}))
        assert torch.allclose(model.compute_reward(last), torch.tensor([1.0, 0.1]))
        model.save_pretrained(tmp_path)
        saved = RewardModelConfig.from_pretrained(tmp_path)
        saved.pretrained_path = str(tmp_path)
        assert torch.allclose(make_reward_model(saved).compute_reward(seen), torch.tensor([1.0, 0.1]))


def test_the_newest_frame_is_told_with_its_quality() -> None:
    with FakeOpenAiServer() as server:
        found = make_reward_model(_config(server.url)).predict_progress(
            np.broadcast_to(LEVELS[0, :, None, None, None], (6, 8, 12, 3)), "push it"
        )
    assert found.voc == 1.0 and found.parse_rate == 1.0
    assert np.allclose(found.values[1:], [0.2, 0.4, 0.6, 0.8, 1.0]) and np.isnan(found.values[0])


def test_no_usable_answer_is_no_reward(tmp_path: Path) -> None:
    """A real model with random weights talks nonsense; nothing is made of it."""
    folder = str(build_tiny_vlm("smolvlm", tmp_path))
    model = make_reward_model(_config("", backend="transformers", model=folder, reasks=0, frames=3))
    assert torch.isnan(model.compute_reward(_batch())).all()


def test_a_fresh_process_knows_it_after_plugin_discovery_alone() -> None:
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins as find; find();"
        "from lerobot.configs.rewards import RewardModelConfig as C; print('gvl' in C.get_known_choices())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"


@pytest.mark.parametrize(
    "batch, words",
    [
        ({"task": "push it"}, KEY),
        (_batch(**{KEY: torch.zeros(2, 3, 8, 12)}), "T >= 2"),
        (_batch(**{KEY: torch.zeros(2, 1, 3, 8, 12)}), "single frame"),
        (_batch(task=["push it"]), "2 sentences"),
        (_batch(task=None), "2 sentences"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch: dict[str, Any], words: str) -> None:
    with FakeOpenAiServer() as server:
        model = make_reward_model(_config(server.url))
        with pytest.raises(DataError, match=words):
            model.compute_reward(batch)


@pytest.mark.parametrize("wrong", [{"model": ""}, {"backend": "grpc"}, {"frames": 1}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not available") as refused:
        _config("http://127.0.0.1:9/v1", **wrong)
    assert isinstance(refused.value.__cause__, ConfigError)


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    register_third_party_plugins()
    gvl = get_reward_model_class("gvl")
    with pytest.raises(ConfigError, match="a saved one"):
        gvl.from_pretrained(tmp_path / "none")
    make_reward_model_config("reward_classifier", device="cpu")._save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reward model: expected gvl"):
        gvl.from_pretrained(tmp_path)
