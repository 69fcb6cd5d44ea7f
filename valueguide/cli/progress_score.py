"""`valueguide progress score`: how far along the task is in every frame, with its quality and controls."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueguide.cli.device import add_device_argument
from valueguide.progress.columns import FILE, KINDS
from valueguide.progress.rows import Row
from valueguide.progress.shards import held, launched

if TYPE_CHECKING:
    from valueguide.data.reader import EpisodeDataset


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--dataset", type=Path, required=True, help="LeRobotDataset v3 folder, or an MCAP bag")
    one.add_argument("--episodes", default="", help="such as 0-9,12 (default: all)")
    one.add_argument("--camera", action="append", default=[], help="may be repeated (default: the first)")
    one.add_argument("--out", type=Path, required=True, help="JSON lines; an existing file is continued")
    one.add_argument(
        "--parquet",
        default=None,
        metavar="FILE",
        help=f'every frame, as LeRobot reads it (default: {FILE} in the dataset\'s folder; "": none)',
    )
    one.add_argument("--frames", type=int, default=15, help="evenly spread, the first (anchor) included")
    one.add_argument("--longest-edge", type=int, default=0, help="shrink pictures to this; 0: as they are")
    one.add_argument("--shuffles", type=int, default=3, help="questions a clip, combined by the median")
    one.add_argument("--seed", type=int, default=0, help="of the first shuffle, and of --control-episodes")
    one.add_argument("--reasks", type=int, default=2, help="after an answer that cannot be used")
    one.add_argument(
        "--control-episodes",
        type=int,
        default=0,
        metavar="COUNT",
        help="controls of a random sample of so many episodes (default: of all)",
    )
    one.add_argument("--wrong-instruction", default="", help="default: another instruction of the dataset")
    one.add_argument("--cache", default="outputs/progress-cache", help='folder of answers; "" keeps none')
    one.add_argument("--robot", default="", help="for a bag that does not describe its robot")
    one.add_argument("--namespace", default=None, help="of the recorded graph, where the bag does not say")
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
    group.add_argument("--model", default="", help="folder, Hub name, or name at the endpoint (default: the "
                       "small one that ships, which knows nothing but this simulator)")  # fmt: skip
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


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Estimates what is not in --out yet; returns settings and summary, None where others still work.

    Raises RequestFailed, after everything else is written, when some clips brought no answer.
    """
    from valueguide.cli.common import progress_bar
    from valueguide.cli.progress_setup import cameras_of, dataset_folder, make_estimator, make_jobs
    from valueguide.data.reader import EpisodeDataset
    from valueguide.progress.batch import run_jobs
    from valueguide.progress.rows import RowFile

    place = launched(os.environ)
    dataset = EpisodeDataset.open(dataset_folder(args))
    jobs = make_jobs(args, dataset)
    episodes = set(place.share(sorted({job.key[0] for job in jobs})))
    mine = [job for job in jobs if job.key[0] in episodes]
    estimator, workers = make_estimator(args, dataset, place)
    plan = {
        "dataset": dataset.dataset_id,
        "frames": args.frames,
        "longest_edge": args.longest_edge,
        "wrong_instruction": args.wrong_instruction,
        **estimator.describe(),
    }
    rows = RowFile(args.out, plan, place)
    try:
        with progress_bar(len(mine), "clips") as bar:
            bar.update(sum(rows.finished(job.key) for job in mine))
            run_jobs(mine, estimator, rows, workers, lambda row: bar.update(1))
    finally:
        rows.close()
    found = rows.by_key()
    if not found.keys() >= {job.key for job in jobs}:
        print(f"process {place.rank} of {place.count} has done its share; the last one tells the result")
        return None
    parquet = _write_parquet(args, dataset, list(found.values()), cameras_of(args, dataset)[0], plan)
    return {
        "settings": plan,
        "out": str(args.out),
        "parquet": parquet,
        **_tell(args, [found[job.key] for job in jobs]),
    }


def _write_parquet(
    args: argparse.Namespace, dataset: EpisodeDataset, rows: list[Row], camera: str, plan: Row
) -> str | None:
    """Progress of every frame by the rows of one camera; returns where it is."""
    from valueguide.progress.columns import progress_columns, write_progress

    if args.parquet == "":
        return None
    path = Path(args.parquet) if args.parquet else dataset.root / FILE
    columns = progress_columns(dataset, rows, camera)
    with held(args.out):  # two processes may both find that all is there
        write_progress(path, dataset, columns, {"camera": camera, "settings": plan})
    counts = ", ".join(f"{int((columns.kind == i).sum())} {kind}" for i, kind in enumerate(KINDS))
    print(f"{dataset.frames} frames ({counts}) of camera {camera} in {path}")
    return str(path)


def _tell(args: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    from valueguide.progress.batch import why
    from valueguide.progress.request import RequestFailed
    from valueguide.progress.summary import Prices, summarise, table

    summary = summarise(rows, Prices(args.price_input, args.price_output))
    print(table(summary))
    print(f"rows in {args.out}")
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        raise RequestFailed(
            f"{args.out}: {len(failed)} of {len(rows)} clips without an answer, for one: {why(failed[0])}. "
            "Run the same command again to go on"
        )
    return summary
