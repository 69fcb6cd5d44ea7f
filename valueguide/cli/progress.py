"""`valueguide progress score | success | filter | …`: from frames to progress, and what it is good for."""

from __future__ import annotations

import argparse
from typing import Any

from valueguide.cli import (
    progress_agree,
    progress_filter,
    progress_score,
    progress_success,
    progress_train,
    progress_weights,
)

EXAMPLES = """examples:
  # a local model (a folder, or a name on the Hub); its controls run too
  valueguide progress score --dataset runs/day1/dataset --model models/my_vlm --out day1.jsonl

  # any OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, or a hosted one with its key in the environment
  valueguide progress score --dataset runs/day1/dataset --backend openai \\
      --url http://127.0.0.1:8000/v1 --model Qwen/Qwen3-VL-8B-Instruct --out day1.jsonl

  # a bag; controls of 20 episodes only; four processes, each with its own GPU where there are some
  torchrun --nproc-per-node 4 -m valueguide.cli.main progress score --dataset runs/day1/bag \\
      --model models/my_vlm --control-episodes 20 --out day1.jsonl

  # two episodes with known progress in the prompt; the probability of "True" instead of written values
  valueguide progress score --dataset D --model M --examples D --example-episodes 0,1 --episodes 2-99 \\
      --out o.jsonl
  valueguide progress score --dataset D --model M --backend topreward --out o2.jsonl

  # which episodes succeeded: thresholds from labelled episodes, then verdicts on others
  valueguide progress success --scores labelled.jsonl --calibrate labelled.jsonl --out outputs/detector
  valueguide progress success --scores day1.jsonl --detector outputs/detector/detector.json --out outputs/day1

  # the better half of each task as a new dataset, and a control of the same size
  valueguide progress filter --dataset D --scores day1.jsonl --top 0.5 --per-task --out D_top
  valueguide progress filter --dataset D --random D_top --per-task --seed 1 --out D_random

  # does the scored progress agree with the simulator's and with a critic's value; weights for imitation
  valueguide progress agree --dataset D --critic outputs/critic --out agreement.html --json agreement.json
  valueguide progress weights --dataset D --chunk 16 --out weights.parquet

  # a small model of this simulator, from `valueguide collect --suite wxai`
  valueguide progress train --dataset outputs/demos --out outputs/progress-vlm
"""
_WHATS: dict[str, tuple[Any, str]] = {
    "score": (progress_score, "progress of every frame of episodes, with controls"),
    "success": (progress_success, "which episodes succeeded, by calibrated thresholds"),
    "filter": (progress_filter, "the episodes worth keeping, as a new dataset"),
    "agree": (progress_agree, "progress against the simulator's truth and a critic's value"),
    "weights": (progress_weights, "advantage weights for imitation, by the gain of progress"),
    "train": (progress_train, "the small model, from simulated episodes"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar=" | ".join(_WHATS))
    for name, (module, text) in _WHATS.items():
        module.add_arguments(whats.add_parser(name, help=text))


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Does one of them; returns its result, None where another process of the same run tells it."""
    return _WHATS[args.what][0].run(args)
