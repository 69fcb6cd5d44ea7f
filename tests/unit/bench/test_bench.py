"""The benchmarks' arithmetic and wiring, on tiny models; the figures themselves are not tested."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from valueguide.bench import critic as critic_bench
from valueguide.bench import steering as steering_bench
from valueguide.bench.measure import medians, peak_memory_mb
from valueguide.testing.tiny_models import make_tiny_policy


def test_medians_take_turns_and_ignore_one_slow_run() -> None:
    order: list[str] = []
    slow_once = iter([0.0, 0.05, 0.0, 0.0])

    def first() -> None:
        order.append("a")
        time.sleep(next(slow_once))

    seconds = medians({"a": first, "b": lambda: order.append("b")}, repeats=3, warm_up=1)
    assert order == ["a", "b", *["a", "b"] * 3]
    assert seconds["a"] < 0.04
    assert peak_memory_mb() > 10


def test_candidate_ratios_are_relative_to_the_first_k(tmp_path: Path) -> None:
    policy = make_tiny_policy("multi_task_dit", tmp_path).adapter()
    observation = steering_bench.random_observation(policy)
    out = steering_bench.candidates_of(policy, observation, (1, 4), repeats=2)
    assert out["ratio"]["k=1"] == 1.0
    assert out["ratio"]["k=4"] == pytest.approx(out["seconds"]["k=4"] / out["seconds"]["k=1"])


def test_learner_speed_reports_rate_wait_and_memory(tmp_path: Path) -> None:
    dataset = critic_bench.random_dataset(tmp_path / "noise", episodes=2, length=12, side=32)
    for frames in ("cached", "decoded"):
        out = critic_bench.learner_speed(dataset, "small_film_cnn", frames, batch_size=8, seconds=0.5)
        assert out["samples_per_second"] > 0
        assert 0 <= out["data_wait_share"] <= 1
    assert critic_bench.image_bytes(dataset) == {"uint8": 3072.0, "float32": 12288.0, "ratio": 0.25}
