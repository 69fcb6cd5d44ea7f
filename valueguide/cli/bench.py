"""`valueguide bench steering | critic`: measurements with their baselines, as a table and as JSON."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from valueguide.cli.common import shipped
from valueguide.cli.device import add_device_argument, usable_device

EXAMPLES = """examples:
  valueguide bench steering --json -
  valueguide bench critic --seconds 30 --json critic.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=("steering", "critic"))
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each small measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each learner measurement")
    parser.add_argument("--skip-real-size", action="store_true", help="without the 450 M parameter SmolVLA")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print one line per figure."""
    device = usable_device(args.device)
    measured = _steering(args, device) if args.name == "steering" else _critic(args, device)
    result = {"device": device, **measured}
    for line in _lines(result):
        print(line)
    return result


def _steering(args: argparse.Namespace, device: str) -> dict[str, Any]:
    from valueguide.bench import steering
    from valueguide.critics.scorer import LearnedCritic
    from valueguide.policies.load import load_policy

    out: dict[str, Any] = {"encode_once_vs_repeated": steering.encode_once(min(args.repeats, 3), device)}
    base = load_policy(shipped("wxai", "policy"), device)
    critic = LearnedCritic.load(shipped("wxai", "critic"), device)
    observation = steering.random_observation(base)
    out["base_policy"] = steering.candidates_of(base, observation, (1, 4, 16), args.repeats)
    out["base_policy_critic"] = steering.critic_share(base, critic, observation, 16, args.repeats)
    if args.skip_real_size:
        return out
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        smolvla = steering.real_size_smolvla(Path(folder), device)
        big = steering.random_observation(smolvla)
        out["smolvla_real_size"] = steering.candidates_of(smolvla, big, (1, 4), min(args.repeats, 3))
        policy_s = out["smolvla_real_size"]["seconds"]["k=4"]
    full = out["encode_once_vs_repeated"]["seconds"]["once"]
    out["smolvla_real_size"]["full_size_critic_share"] = full / (full + policy_s)
    return out


def _critic(args: argparse.Namespace, device: str) -> dict[str, Any]:
    from valueguide.bench import critic

    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="valueguide-bench-") as folder:
        dataset = critic.random_dataset(Path(folder) / "noise")
        for frames in ("cached", "decoded"):
            out[f"small_film_cnn_{frames}"] = critic.learner_speed(
                dataset, "small_film_cnn", frames, 64, args.seconds, device
            )
        out["resnet34_film_cached"] = critic.learner_speed(
            dataset, "resnet34_film", "cached", 8, args.seconds, device
        )
        out["bytes_per_frame"] = critic.image_bytes(dataset)
    return out


def _lines(result: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            lines += _lines(value, f"{name}.")
        else:
            lines.append(f"{name:55} {value:.4g}" if isinstance(value, float) else f"{name:55} {value}")
    return lines
