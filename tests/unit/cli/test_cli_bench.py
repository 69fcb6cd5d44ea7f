"""`valueguide bench`: the figures that docs/results quotes are there and follow from the seconds beside them.

The commands' own code on the shipped checkpoints; only pictures and the large policy are made small.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from valueguide.bench import critic as critic_bench
from valueguide.bench import steering as steering_bench
from valueguide.cli.main import main
from valueguide.testing.tiny_models import make_tiny_policy


def _bench(folder: Path, *arguments: str) -> dict[str, Any]:
    target = folder / "result.json"
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments, "--device", "cpu", "--json", str(target)])
    assert stop.value.code == 0
    result = json.loads(target.read_text())
    assert result["device"] == "cpu"
    return result


def _quotients(seconds: dict[str, float], by: str) -> Any:
    return pytest.approx({name: value / seconds[by] for name, value in seconds.items()})


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    def small_smolvla(folder: Path, device: str) -> Any:
        return make_tiny_policy("smolvla", folder, device=device).adapter()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering_bench, "encode_once", partial(steering_bench.encode_once, chunks=6, side=64))
        patch.setattr(steering_bench, "real_size_smolvla", small_smolvla)
        return _bench(tmp_path_factory.mktemp("bench"), "steering", "--repeats", "2")


def test_encoding_once_is_compared_with_encoding_for_each_chunk(steering: dict[str, Any]) -> None:
    figures = steering["encode_once_vs_repeated"]
    seconds = figures["seconds"]
    assert figures["k"] == 6 and seconds.keys() == {"once", "repeated"}
    assert figures["speedup"] == pytest.approx(seconds["repeated"] / seconds["once"])
    assert figures["largest_difference"] < 1e-4  # "equal results"


def test_the_cost_of_more_candidates_is_relative_to_one(steering: dict[str, Any]) -> None:
    for name, ks in (("base_policy", (1, 4, 16)), ("smolvla_real_size", (1, 4))):
        figures = steering[name]
        assert list(figures["seconds"]) == [f"k={k}" for k in ks]
        assert min(figures["seconds"].values()) > 0
        assert figures["ratio"] == _quotients(figures["seconds"], "k=1")
        assert figures["peak_memory_mb"] > 100


def test_the_critics_shares_are_of_whole_guided_decisions(steering: dict[str, Any]) -> None:
    figures = steering["base_policy_critic"]
    seconds = figures["seconds"]
    assert figures["k"] == 16
    assert figures["critic_share"] == pytest.approx(
        seconds["critic"] / (seconds["critic"] + seconds["policy"])
    )
    critic_s = steering["encode_once_vs_repeated"]["seconds"]["once"]
    policy_s = steering["smolvla_real_size"]["seconds"]["k=4"]
    assert steering["smolvla_real_size"]["full_size_critic_share"] == pytest.approx(
        critic_s / (critic_s + policy_s)
    )


def test_the_large_policy_can_be_left_out_and_every_figure_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(steering_bench, "encode_once", partial(steering_bench.encode_once, chunks=2, side=32))
    monkeypatch.delattr(steering_bench, "real_size_smolvla")
    result = _bench(tmp_path, "steering", "--repeats", "1", "--skip-real-size")
    assert list(result) == ["device", "encode_once_vs_repeated", "base_policy", "base_policy_critic"]
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed["device"] == "cpu"
    for name, value in (
        ("encode_once_vs_repeated.speedup", result["encode_once_vs_repeated"]["speedup"]),
        ("base_policy.ratio.k=16", result["base_policy"]["ratio"]["k=16"]),
        ("base_policy_critic.critic_share", result["base_policy_critic"]["critic_share"]),
    ):
        assert float(printed[name]) == pytest.approx(value, rel=1e-3)


def test_the_learner_is_measured_with_both_networks_and_both_sources_of_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = partial(critic_bench.random_dataset, episodes=2, length=12, side=32)
    monkeypatch.setattr(critic_bench, "random_dataset", small)
    result = _bench(tmp_path, "critic", "--seconds", "0.2")
    runs = {
        "small_film_cnn_cached": ("small_film_cnn", "cached", 64),
        "small_film_cnn_decoded": ("small_film_cnn", "decoded", 64),
        "resnet34_film_cached": ("resnet34_film", "cached", 8),
    }
    assert result.keys() == {"device", *runs, "bytes_per_frame"}
    for name, (encoder, frames, batch_size) in runs.items():
        figures = result[name]
        assert (figures["encoder"], figures["frames"], figures["batch_size"]) == (encoder, frames, batch_size)
        assert figures["samples_per_second"] > 0 and 0 <= figures["data_wait_share"] <= 1
        assert figures["peak_memory_mb"] > 100
    size = result["bytes_per_frame"]
    assert size["uint8"] == 32 * 32 * 3 and size["ratio"] == size["uint8"] / size["float32"]


@pytest.mark.slow
def test_the_published_sizes_are_the_default(tmp_path: Path) -> None:
    figures = steering_bench.encode_once(repeats=1)
    assert figures["k"] == 50 and figures["speedup"] > 1
    policy = steering_bench.real_size_smolvla(tmp_path)
    vocabulary = 2 * 49_280 * 960  # the published tokenizer's rows, in and out
    size = sum(p.numel() for p in policy.policy.parameters())
    assert size + vocabulary == pytest.approx(450e6, rel=0.01)
    assert set(policy.cameras) == {"front", "wrist"} and policy.horizon == 50
