"""`valueguide progress train`: the small vision-language model, from simulated episodes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from valueguide.errors import ConfigError, mismatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=Path, action="append", required=True, help="of `collect`; repeat to join several"
    )
    parser.add_argument("--camera", default="", help="whose pictures it learns from (default: the first)")
    parser.add_argument("--tower", default="", help="critic folder whose vision tower is the start "
                        "(default: the shipped one; none: random weights)")  # fmt: skip
    parser.add_argument("--sight-steps", type=int, default=1000, help="updates on single pictures")
    parser.add_argument("--read-steps", type=int, default=1000, help="of --steps, those before it answers")
    parser.add_argument("--steps", type=int, default=4000, help="updates of the language model")
    parser.add_argument("--batch-size", type=int, default=16, help="questions per update")
    parser.add_argument("--frames", default="3-16", help="fewest and most frames of a question")
    parser.add_argument(
        "--related",
        default="pick_can,can_near_plate",
        help="tasks of which one is progress of another; never the wrong instruction for each other",
    )
    parser.add_argument("--every", type=int, default=500, help="updates between savings and measurements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an unfinished run beside it is resumed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the model's facts and its quality on held-out episodes."""
    from valueguide.cli.common import progress_bar, shipped
    from valueguide.data.reader import EpisodeDataset
    from valueguide.vlm.train_phase import VlmTrainSettings
    from valueguide.vlm.train_run import VlmRun

    settings = VlmTrainSettings(
        sight_steps=args.sight_steps,
        read_steps=args.read_steps,
        steps=args.steps,
        batch=args.batch_size,
        frames=_frames(args.frames),
        seed=args.seed,
    )
    if not 0 <= args.read_steps < args.steps:
        wanted = f"0 or more, fewer than --steps {args.steps}"
        raise ConfigError(mismatch("--read-steps", "updates", wanted, args.read_steps))
    datasets = [EpisodeDataset.open(folder) for folder in args.dataset]
    tower = None if args.tower == "none" else Path(args.tower or shipped("wxai", "critic"))
    training = args.out.parent / f"{args.out.name}.training"
    related = [name for name in args.related.split(",") if name]
    camera = args.camera or datasets[0].cameras[0]
    run = VlmRun(datasets, camera, settings, training, args.out, tower, related)
    with progress_bar(run.total, "updates") as bar:

        def say(text: str) -> None:
            bar.note(text.split(": ", 1)[-1][:60])
            print(text, file=sys.stderr, flush=True)

        result = run.train(args.every, bar.update, say)
    print(json.dumps(result["quality"], indent=1))
    print(f"model in {args.out}")
    return {"model": str(args.out), **result}


def _frames(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 2 <= int(first) <= int(last)):
        raise ConfigError(mismatch("--frames", "value", "fewest-most, 2 or more, such as 3-16", repr(text)))
    return int(first), int(last)
