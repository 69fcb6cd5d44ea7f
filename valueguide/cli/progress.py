"""`valueguide progress estimate`: how far along the task is in every frame asked about, with its quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from valueguide.cli.device import add_device_argument

EXAMPLES = """examples:
  # a local model (a folder, or a name on the Hub), with the controls that expose a model that counts frames
  valueguide progress estimate --dataset runs/day1/dataset --model models/my_vlm --controls --out day1.jsonl

  # any OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, or a hosted one with its key in the environment
  valueguide progress estimate --dataset runs/day1/dataset --backend openai \\
      --url http://127.0.0.1:8000/v1 --model Qwen/Qwen3-VL-8B-Instruct --out day1.jsonl

  # two episodes with known progress in the prompt; the probability of "True" instead of written values
  valueguide progress estimate --dataset D --model M --examples D --example-episodes 0,1 --episodes 2-99 \\
      --out o.jsonl
  valueguide progress estimate --dataset D --model M --backend topreward --controls --out o2.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="estimate")
    one = whats.add_parser("estimate", help="progress of the frames of episodes, as JSON lines")
    one.add_argument("--dataset", type=Path, required=True, help="folder of a LeRobotDataset v3")
    one.add_argument("--episodes", default="", help="such as 0-9,12 (default: all)")
    one.add_argument("--camera", action="append", default=[], help="may be repeated (default: the first)")
    one.add_argument("--out", type=Path, required=True, help="JSON lines; an existing file is continued")
    one.add_argument("--frames", type=int, default=15, help="evenly spread, the first (anchor) included")
    one.add_argument("--longest-edge", type=int, default=0, help="shrink pictures to this; 0: as they are")
    one.add_argument("--shuffles", type=int, default=3, help="questions a clip, combined by the median")
    one.add_argument("--seed", type=int, default=0, help="of the first shuffle")
    one.add_argument("--reasks", type=int, default=2, help="after an answer that cannot be used")
    one.add_argument("--controls", action="store_true", help="also clips that must not look like progress")
    one.add_argument("--wrong-instruction", default="", help="default: another instruction of the dataset")
    one.add_argument("--cache", default="outputs/progress-cache", help='folder of answers; "" keeps none')
    _prompt_arguments(one.add_argument_group("prompt"))
    _backend_arguments(one)


def _prompt_arguments(group: Any) -> None:
    group.add_argument("--answer", default="", help="json or lines (default: json at endpoints, else lines)")
    group.add_argument("--describe", action="store_true", help="ask for a description of each frame first")
    group.add_argument("--examples-first", action="store_true", help="before the anchor: reusable prefix")
    group.add_argument("--examples", type=Path, help="dataset of in-context episodes that succeeded")
    group.add_argument("--example-episodes", default="0", help="which of them, such as 0,1")
    group.add_argument("--example-video", type=Path, help="in-context video of a person, first to last step")
    group.add_argument("--example-task", default="", help="what that person does")
    group.add_argument("--example-frames", type=int, default=8, help="frames of each example")
    group.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    group.add_argument("--top-p", type=float, default=1.0, help="share of probability that is drawn from")
    group.add_argument("--max-tokens", type=int, default=0, help="0: enough for the answer (no thinking)")


def _backend_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("backend")
    names = ("transformers", "openai", "topreward")
    group.add_argument("--backend", default="transformers", choices=names, help="what answers")
    group.add_argument("--model", required=True, help="folder, Hub name, or name at the endpoint")
    group.add_argument("--revision", default="", help="of a model on the Hub")
    group.add_argument("--dtype", default="auto", help="of a local model's weights")
    group.add_argument("--processor", default="{}", help="JSON options for a local model's processor")
    group.add_argument("--url", default="", help="base address of an endpoint")
    group.add_argument("--key-env", default="", help="environment variable with its key (default: no key)")
    group.add_argument("--schema", default="auto", choices=("auto", "on", "off"), help="hold answers to JSON")
    group.add_argument("--fields", default="{}", help="JSON merged into every request; null takes one out")
    group.add_argument("--concurrency", type=int, default=4, help="questions at an endpoint at once")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for each try of a request")
    group.add_argument("--tries", type=int, default=6, help="of each request")
    group.add_argument("--price-input", type=float, default=0.0, help="of a million tokens")
    group.add_argument("--price-output", type=float, default=0.0, help="of a million tokens")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Estimates what is not in --out yet; returns settings and summary.

    Raises RequestFailed, after everything else is written, when some clips brought no answer.
    """
    from valueguide.cli.common import progress_bar
    from valueguide.cli.progress_setup import make_estimator, make_jobs
    from valueguide.data.reader import EpisodeDataset
    from valueguide.progress.batch import run_jobs, why
    from valueguide.progress.request import RequestFailed
    from valueguide.progress.rows import RowFile
    from valueguide.progress.summary import Prices, summarise, table

    dataset = EpisodeDataset.open(args.dataset)
    jobs = make_jobs(args, dataset)
    estimator, workers = make_estimator(args, dataset)
    plan = {
        "dataset": dataset.dataset_id,
        "frames": args.frames,
        "longest_edge": args.longest_edge,
        "wrong_instruction": args.wrong_instruction,
        **estimator.describe(),
    }
    rows = RowFile(args.out, plan)
    try:
        with progress_bar(len(jobs), "clips") as bar:
            bar.update(sum(rows.finished(job.key) for job in jobs))
            run_jobs(jobs, estimator, rows, workers, lambda row: bar.update(1))
    finally:
        rows.close()
    asked = {job.key for job in jobs}
    found = [row for key, row in rows.by_key().items() if key in asked]
    summary = summarise(found, Prices(args.price_input, args.price_output))
    print(table(summary))
    print(f"rows in {args.out}")
    failed = [row for row in found if row["status"] == "failed"]
    if failed:
        raise RequestFailed(
            f"{args.out}: {len(failed)} of {len(found)} clips without an answer, for one: {why(failed[0])}. "
            "Run the same command again to go on"
        )
    return {"settings": plan, "out": str(args.out), **summary}
